//! Noise that is the same on every machine: a counter-based generator, and logarithm and exponential of our own. Seed, position and token
//! come in, a number goes out. Never a state, never a function of the system's library, whose last digits differ between systems.
//!
//! Everything is whole numbers or single operations of f64 in a fixed order, which every CPU rounds alike; none are fused.

use std::f64::consts::{LN_2, SQRT_2};

/// Tokens of a part of a group, which are the lanes of the generator; and such parts, which are the words of its answer.
pub(super) const LANES: usize = 16;
const WORDS: usize = 4;

/// More than any noise: the largest is 22.874, the smallest −3.130.
pub(super) const GUMBEL_MAX: f64 = 22.875;

/// The noise that [`super::sample`] adds to the scaled logit of a token: `−ln(−ln u)` with `u = (r + ½) / 2³²`, where `r` are 32 even
/// bits. The largest sum belongs to token `i` with its probability.
///
/// `r` is word `⌊token / 16⌋ mod 4` of Philox 4x32-10 with the seed as key (its lower half first) and the counter
/// `(16 · ⌊token / 64⌋ + token mod 16, lower half of the position, upper half of the position, 0)`: 16 counters make the noise of 64 tokens
/// in a row, each word that of 16 in a row.
///
/// # Source
/// Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, 2011, for Philox; Gumbel: Statistics of Extremes, 1958, for
/// the distribution.
pub fn gumbel(seed: u64, position: u64, token: u32) -> f64 {
    let (group, within) = (token / 64, token as usize % 64);
    let words = philox(counters::<1>(16 * group + (within % LANES) as u32, position), key(seed));
    of_bits(words[within / LANES][0])
}

/// The noise that 32 even bits give. It rises with them.
#[inline(always)]
pub(super) fn of_bits(r: u32) -> f64 {
    // Exact: 33 bits.
    let u = (f64::from(r) + 0.5) * (1.0 / 4_294_967_296.0);
    -ln(-ln(u))
}

/// The bits of tokens `64 · group` on.
#[inline(always)]
pub(super) fn bits_of_group(group: u32, seed: u64, position: u64) -> [[u32; LANES]; WORDS] {
    philox(counters::<LANES>(16 * group, position), key(seed))
}

/// `N` counters, the first words of which count on from `first`.
#[inline(always)]
fn counters<const N: usize>(first: u32, position: u64) -> [[u32; N]; WORDS] {
    let mut counters = [[0; N], [position as u32; N], [(position >> 32) as u32; N], [0; N]];
    for (lane, counter) in counters[0].iter_mut().enumerate() {
        *counter = first + lane as u32;
    }
    counters
}

fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// Philox 4x32-10 of `N` counters with one key. Words of a counter are in rows, so that a row is a vector.
#[inline(always)]
fn philox<const N: usize>(mut counters: [[u32; N]; WORDS], mut key: [u32; 2]) -> [[u32; N]; WORDS] {
    const ROUNDS: usize = 10;
    const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    // The golden ratio, and √3 − 1, of 2³².
    const STEPS: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    for _ in 0..ROUNDS {
        let [mut a, mut b, mut c, mut d] = counters;
        for lane in 0..N {
            let first = u64::from(MULTIPLIERS[0]) * u64::from(a[lane]);
            let second = u64::from(MULTIPLIERS[1]) * u64::from(c[lane]);
            a[lane] = (second >> 32) as u32 ^ b[lane] ^ key[0];
            b[lane] = second as u32;
            c[lane] = (first >> 32) as u32 ^ d[lane] ^ key[1];
            d[lane] = first as u32;
        }
        counters = [a, b, c, d];
        key = [key[0].wrapping_add(STEPS[0]), key[1].wrapping_add(STEPS[1])];
    }
    counters
}

/// `ln x` for positive normal `x`, off by at most 2 units in the last place; near 1 as exact as elsewhere.
///
/// `x = 2ᵉ · m` with `m` from √½ to √2, `s = (m − 1) / (m + 1)`, `ln m = 2 (s + s³/3 + s⁵/5 + …)`; `s²` is at most 0.0295, so that the
/// first term left out is below 2e-18 of the first.
#[inline(always)]
pub(super) fn ln(x: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = x.to_bits();
    let mut e = (bits >> 52) as i64 - 1023;
    let mut m = f64::from_bits(bits & MANTISSA | 1023 << 52);
    if m > SQRT_2 {
        m *= 0.5;
        e += 1;
    }
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let mut series = 0.0;
    for odd in [23.0, 21.0, 19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        series = series * z + 1.0 / odd;
    }
    e as f64 * LN_2 + (2.0 * s + 2.0 * s * z * series)
}

/// `e^(−x)` for `x` from 0 to 30, off by at most 5e-15 of its value.
///
/// `x = n · ln 2 + r`, and `e^(−r)` by its Taylor series, whose first term left out is below 2e-19.
pub(super) fn exp_of_negative(x: f64) -> f64 {
    let n = (x / LN_2).floor();
    let r = x - n * LN_2;
    let mut series = 1.0;
    for k in (1..=18_u32).rev() {
        series = 1.0 - series * r / f64::from(k);
    }
    series * f64::from_bits((1023 - n as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Numbers;

    #[test]
    fn philox_gives_its_authors_answers() {
        // The known answers that come with its authors' library.
        let check = |counter: [u32; 4], key: [u32; 2], want: [u32; 4]| {
            assert_eq!(philox(counter.map(|word| [word]), key).map(|[word]| word), want);
            assert_eq!(philox(counter.map(|word| [word; LANES]), key), want.map(|word| [word; LANES]));
        };
        check([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        check([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        check(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        );
    }

    #[test]
    fn a_group_has_the_noise_of_its_tokens() {
        let (seed, position) = (0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210);
        for group in [0, 1, 7, 4000] {
            let words = bits_of_group(group, seed, position);
            for within in 0..64 {
                let noise = of_bits(words[within as usize / LANES][within as usize % LANES]);
                assert_eq!(noise, gumbel(seed, position, 64 * group + within));
            }
        }
    }

    #[test]
    fn the_logarithm_and_the_exponential_are_as_exact_as_they_say() {
        let mut numbers = Numbers::new(1);
        let near = |found: f64, expected: f64, x: f64, off: f64| {
            assert!((found - expected).abs() <= off * expected.abs(), "{found} and {expected} of {x}");
        };
        for _ in 0..100_000 {
            let u = (numbers.bits() >> 11) as f64 / (1_u64 << 53) as f64;
            for x in [u + 1e-300, 1.0 - u * 1e-9, 1.0 + u, 40.0 * u + 1e-10] {
                near(ln(x), x.ln(), x, 5e-16);
            }
            near(exp_of_negative(27.0 * u), (-27.0 * u).exp(), 27.0 * u, 5e-15);
        }
        assert_eq!((ln(1.0), exp_of_negative(0.0)), (0.0, 1.0));
    }

    #[test]
    fn the_noise_rises_with_its_bits_and_stays_in_its_range() {
        let bits = [0, 1, 1 << 20, 1 << 31, u32::MAX - 1, u32::MAX];
        assert!(bits.map(of_bits).is_sorted());
        assert!(of_bits(u32::MAX) < GUMBEL_MAX && of_bits(0) > -3.131);
        assert!(GUMBEL_MAX - of_bits(0) < super::super::CELLS as f64 / 1024.0, "what is out of reach cannot win");
    }

    #[test]
    fn the_noise_is_that_of_known_seeds() {
        // Computed beside, with the same operations in another language. A change would make every seeded text another one.
        let check = |(seed, position, token): (u64, u64, u32), want: f64| {
            assert_eq!(gumbel(seed, position, token), want, "seed {seed}, position {position}, token {token}");
        };
        check((0, 0, 0), 0.084_820_251_111_387_75);
        check((1, 2, 3), 3.514_385_686_557_572_4);
        check((u64::MAX, u64::MAX, u32::MAX), -0.492_521_183_900_765_6);
        check((1, 0, 128_255), -0.798_668_335_999_528_7);
    }
}
