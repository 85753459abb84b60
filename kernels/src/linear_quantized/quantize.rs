//! Numbers into GGUF's blocks, each rounded to the nearest that its block has. f32 come in, bytes of a file go out. Never a search
//! for better scales: a block's range decides them.

use half::f16;

use super::blocks::{Blocks, IQ4_NL};
use super::{Error, MINIMUM_SCALE};

/// Puts numbers into blocks.
///
/// # Shapes
/// `values`: whole blocks, one after the other.
///
/// # Errors
/// [`Error::Inputs`], when they are not whole blocks; [`Error::NotANumber`], when one is NaN or infinite; [`Error::TooLarge`], when
/// f16, in which scales are stored, has no scale so large.
pub fn quantize(blocks: Blocks, values: &[f32]) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(blocks.row_bytes(values.len())?);
    if let Some(index) = values.iter().position(|x| !x.is_finite()) {
        return Err(Error::NotANumber { index });
    }
    for (index, values) in values.chunks_exact(blocks.elements()).enumerate() {
        match blocks {
            Blocks::Q4_0 => offset(values, 4, &mut bytes),
            Blocks::Q4_1 => ranged(values, 4, &mut bytes),
            Blocks::Q5_0 => offset(values, 5, &mut bytes),
            Blocks::Q5_1 => ranged(values, 5, &mut bytes),
            Blocks::IQ4_NL => tabled(values, &mut bytes),
            Blocks::Q8_0 => q8_0(values, &mut bytes),
            Blocks::Q4_K => q4_or_q5(values, 15.0, &mut bytes),
            Blocks::Q5_K => q4_or_q5(values, 31.0, &mut bytes),
            Blocks::Q6_K => q6(values, &mut bytes),
        }
        .ok_or(Error::TooLarge { index: index * blocks.elements(), blocks })?;
    }
    Ok(bytes)
}

/// A scale as it is stored, and what a number is multiplied with. `None` where f16 does not reach so far.
fn stored(scale: f32) -> Option<(f16, f32)> {
    let stored = f16::from_f32(scale);
    stored.is_finite().then(|| (stored, inverse(stored.to_f32())))
}

/// 0 for what has no inverse.
fn inverse(x: f32) -> f32 {
    if x.abs() >= MINIMUM_SCALE { x.recip() } else { 0.0 }
}

fn most(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |most, x| most.max(x.abs()))
}

fn q8_0(values: &[f32], to: &mut Vec<u8>) -> Option<()> {
    let (d, inverse) = stored(most(values) / 127.0)?;
    to.extend(d.to_le_bytes());
    to.extend(values.iter().map(|x| ((x * inverse).round_ties_even().clamp(-127.0, 127.0) as i8).cast_unsigned()));
    Some(())
}

/// Q4_0 and Q5_0: the largest magnitude becomes the least element, which reaches one step further than the greatest.
fn offset(values: &[f32], bits: u32, to: &mut Vec<u8>) -> Option<()> {
    let half = (1 << (bits - 1)) as f32;
    let (d, inverse) = stored(furthest(values) / -half)?;
    let quants = values.iter().map(|x| ((x * inverse).round_ties_even() + half).clamp(0.0, 2.0 * half - 1.0) as u8);
    to.extend(d.to_le_bytes());
    small_quants(&quants.collect::<Vec<u8>>(), bits, to);
    Some(())
}

/// Q4_1 and Q5_1: the elements reach from the least number to the greatest.
fn ranged(values: &[f32], bits: u32, to: &mut Vec<u8>) -> Option<()> {
    let (least, most) = values.iter().fold((f32::MAX, f32::MIN), |(least, most), x| (least.min(*x), most.max(*x)));
    let greatest = ((1 << bits) - 1) as f32;
    let ((d, inverse), (m, _)) = (stored(most / greatest - least / greatest)?, stored(least)?);
    let quants = values.iter().map(|x| ((x - m.to_f32()) * inverse).round_ties_even().clamp(0.0, greatest) as u8);
    to.extend(d.to_le_bytes());
    to.extend(m.to_le_bytes());
    small_quants(&quants.collect::<Vec<u8>>(), bits, to);
    Some(())
}

/// IQ4_NL: the place of the nearest number of the table, whose first one is the furthest from zero.
fn tabled(values: &[f32], to: &mut Vec<u8>) -> Option<()> {
    let (d, inverse) = stored(furthest(values) / f32::from(IQ4_NL[0]))?;
    let off = |x: f32, place: usize| (x - f32::from(IQ4_NL[place])).abs();
    let nearest =
        |x: f32| (1..IQ4_NL.len()).fold(0, |best, place| if off(x, place) < off(x, best) { place } else { best });
    let quants = values.iter().map(|x| nearest(x * inverse) as u8);
    to.extend(d.to_le_bytes());
    small_quants(&quants.collect::<Vec<u8>>(), 4, to);
    Some(())
}

/// The number that is the furthest from zero.
fn furthest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |furthest: f32, x| if x.abs() > furthest.abs() { *x } else { furthest })
}

/// 32 elements of 4 or 5 bits: the fifth bits, then the first 16 elements in the lower halves of 16 bytes.
fn small_quants(quants: &[u8], bits: u32, to: &mut Vec<u8>) {
    if bits == 5 {
        to.extend(quants.chunks_exact(8).map(|quants| (0..8).fold(0, |all, p| all | quants[p] >> 4 << p)));
    }
    to.extend((0..16).map(|p| quants[p] & 0x0f | quants[p + 16] << 4));
}

/// Q4_K when the greatest quant is 15, Q5_K when it is 31.
fn q4_or_q5(values: &[f32], greatest: f32, to: &mut Vec<u8>) -> Option<()> {
    // Zero is in every range, so that a minimum is never above it.
    let least = |part: &[f32]| part.iter().fold(0.0_f32, |least, x| least.min(*x));
    let range = |part: &[f32]| part.iter().fold(0.0_f32, |most, x| most.max(*x)) / greatest - least(part) / greatest;
    let parts = || values.chunks_exact(32);
    let (d, d_inverse) = stored(parts().map(range).fold(0.0, f32::max) / 63.0)?;
    let (dmin, dmin_inverse) = stored(parts().map(|part| -least(part)).fold(0.0, f32::max) / 63.0)?;
    let (mut scales, mut mins, mut quants) = ([0_u8; 8], [0_u8; 8], [0_u8; 256]);
    for (s, part) in parts().enumerate() {
        scales[s] = (range(part) * d_inverse).round_ties_even().min(63.0) as u8;
        mins[s] = (-least(part) * dmin_inverse).round_ties_even().min(63.0) as u8;
        let inverse = inverse(d.to_f32() * f32::from(scales[s]));
        let minimum = dmin.to_f32() * f32::from(mins[s]);
        for (quant, x) in quants[32 * s..].iter_mut().zip(part) {
            *quant = ((x + minimum) * inverse).round_ties_even().clamp(0.0, greatest) as u8;
        }
    }
    to.extend(d.to_le_bytes());
    to.extend(dmin.to_le_bytes());
    to.extend((0..4).map(|s| scales[s] | scales[s + 4] >> 4 << 6));
    to.extend((0..4).map(|s| mins[s] | mins[s + 4] >> 4 << 6));
    to.extend((0..4).map(|s| scales[s + 4] & 0x0f | mins[s + 4] << 4));
    if greatest > 15.0 {
        to.extend((0..32).map(|p| (0..8).fold(0, |bits, s| bits | quants[32 * s + p] >> 4 << s)));
    }
    to.extend((0..128).map(|p| {
        let first = p / 32 * 64 + p % 32;
        quants[first] & 0x0f | quants[first + 32] << 4
    }));
    Some(())
}

fn q6(values: &[f32], to: &mut Vec<u8>) -> Option<()> {
    let ranges = || values.chunks_exact(16).map(|part| most(part) / 31.0);
    let (d, d_inverse) = stored(ranges().fold(0.0, f32::max) / 127.0)?;
    let (mut scales, mut quants) = ([0_u8; 16], [0_u8; 256]);
    for (s, (range, part)) in ranges().zip(values.chunks_exact(16)).enumerate() {
        scales[s] = (range * d_inverse).round_ties_even().min(127.0) as u8;
        let inverse = inverse(d.to_f32() * f32::from(scales[s]));
        for (quant, x) in quants[16 * s..].iter_mut().zip(part) {
            *quant = ((x * inverse).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8;
        }
    }
    for quants in quants.chunks_exact(128) {
        to.extend((0..64).map(|p| quants[p] & 0x0f | quants[p + 64] << 4));
    }
    for quants in quants.chunks_exact(128) {
        to.extend((0..32).map(|p| (0..4).fold(0, |bits, run| bits | quants[32 * run + p] >> 4 << (2 * run))));
    }
    to.extend(scales);
    to.extend(d.to_le_bytes());
    Some(())
}
