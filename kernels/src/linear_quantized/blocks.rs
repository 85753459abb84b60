//! GGUF's blocks of quantised weights. Bytes of a file come in, numbers go out. Never a product, never a packing.
//!
//! | type | elements | bytes | in this order |
//! |---|--:|--:|---|
//! | Q4_0 | 32 | 18 | `d`: f16, 32 elements of 4 bits: 16 bytes, in whose lower halves the first 16 elements lie |
//! | Q4_1 | 32 | 20 | `d`, `m`: f16, elements as Q4_0 |
//! | Q5_0 | 32 | 22 | `d`: f16, the elements' fifth bits: 4 bytes, the other four as Q4_0 |
//! | Q5_1 | 32 | 24 | `d`, `m`: f16, elements as Q5_0 |
//! | Q8_0 | 32 | 34 | `d`: f16, 32 elements: i8 |
//! | IQ4_NL | 32 | 18 | as Q4_0 |
//! | Q4_K | 256 | 144 | `d`, `dmin`: f16, 8 scales and 8 minimums of 6 bits: 12 bytes, 256 elements of 4 bits: 128 bytes |
//! | Q5_K | 256 | 176 | as Q4_K, with the fifth bits of the elements, 32 bytes, before the other four |
//! | Q6_K | 256 | 210 | 256 elements' lower four bits: 128 bytes, their upper two: 64 bytes, 16 scales: i8, `d`: f16 |
//!
//! ```text
//! Q4_0, Q5_0    w = d · (q − 8), d · (q − 16)      q in 0..=15, 0..=31
//! Q4_1, Q5_1    w = d · q + m                      q in 0..=15, 0..=31
//! Q8_0          w = d · q                          q in −128..=127
//! IQ4_NL        w = d · t_q                        q in 0..=15; a table of 16 numbers from −127 to 113
//! Q4_K, Q5_K    w = d · sc_s · q − dmin · m_s      q in 0..=15, 0..=31; a scale and a minimum in 0..=63 for each 32 elements
//! Q6_K          w = d · sc_s · (q − 32)            q in 0..=63; a scale for each 16 elements
//! ```
//!
//! # Source
//! The block structs of ggml (`ggml/src/ggml-common.h`, which has IQ4_NL's table, too) and the description of its quantisation types;
//! checked against the reference reader in Python of the same project, gguf 0.19.0 (`gguf/quants.py`).

use half::f16;

use super::Error;

/// How a block holds its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names that files and their readers use")]
pub enum Blocks {
    /// 4 bits, a scale for 32 elements: 4.5 bits an element.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32 elements: 5 bits an element.
    Q4_1,
    /// 5 bits, a scale for 32 elements: 5.5 bits an element.
    Q5_0,
    /// 5 bits, a scale and a minimum for 32 elements: 6 bits an element.
    Q5_1,
    /// 8 bits, a scale for 32 elements: 8.5 bits an element.
    Q8_0,
    /// 4 bits, which are places in a table, a scale for 32 elements: 4.5 bits an element.
    IQ4_NL,
    /// 4 bits, a scale and a minimum for 32 elements: 4.5 bits an element.
    Q4_K,
    /// 5 bits, a scale and a minimum for 32 elements: 5.5 bits an element.
    Q5_K,
    /// 6 bits, a scale for 16 elements: 6.5625 bits an element.
    Q6_K,
}

/// Elements of the largest block.
pub(super) const ELEMENTS_MAX: usize = 256;

/// What the elements of [`Blocks::IQ4_NL`] stand for: numbers that lie closer to each other near zero, where most weights are.
pub(super) const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

impl Blocks {
    /// All of them.
    pub const ALL: &[Blocks] = &[
        Blocks::Q4_0,
        Blocks::Q4_1,
        Blocks::Q5_0,
        Blocks::Q5_1,
        Blocks::Q8_0,
        Blocks::IQ4_NL,
        Blocks::Q4_K,
        Blocks::Q5_K,
        Blocks::Q6_K,
    ];

    /// Elements of a block.
    pub const fn elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::IQ4_NL => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Bytes of a row of so many elements, which must be whole blocks.
    ///
    /// # Errors
    /// [`Error::Inputs`], when they are not.
    pub fn row_bytes(self, elements: usize) -> Result<usize, Error> {
        if !elements.is_multiple_of(self.elements()) {
            return Err(Error::Inputs { inputs: elements, blocks: self });
        }
        Ok(elements / self.elements() * self.bytes())
    }

    /// Bits of an element.
    pub(super) const fn bits(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::IQ4_NL | Self::Q4_K => 4,
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => 5,
            Self::Q6_K => 6,
            Self::Q8_0 => 8,
        }
    }

    /// Whether something is taken away from every weight that each block states for itself.
    pub(super) const fn has_minimums(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q4_K | Self::Q5_K)
    }

    /// How much elements are above what they stand for.
    pub(super) const fn excess(self) -> i16 {
        match self {
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6_K => 32,
            Self::Q4_1 | Self::Q5_1 | Self::Q8_0 | Self::IQ4_NL | Self::Q4_K | Self::Q5_K => 0,
        }
    }

    /// Elements that have a scale of their own.
    pub(super) const fn elements_a_scale(self) -> usize {
        if matches!(self, Self::Q6_K) { 16 } else { 32 }
    }
}

/// What one block holds, each number in a byte of its own. Of blocks of 32 the first 32 quants are of use; their scale is 1, and where
/// they have a minimum, that is 1, too.
pub(super) struct Block {
    pub(super) d: f16,
    /// What minimums are multiplied with before they are taken away: of Q4_1 and Q5_1, `−m`.
    pub(super) dmin: f16,
    /// Q6_K's are signed.
    pub(super) scales: [u8; 16],
    pub(super) mins: [u8; 8],
    /// As they are stored: Q8_0's are signed, those of some others have [`Blocks::excess`] too much.
    pub(super) quants: [u8; ELEMENTS_MAX],
}

impl Block {
    pub(super) const EMPTY: Self =
        Self { d: f16::ZERO, dmin: f16::ZERO, scales: [1; 16], mins: [1; 8], quants: [0; ELEMENTS_MAX] };

    /// Reads one block, which has the bytes of its type.
    pub(super) fn read(&mut self, blocks: Blocks, bytes: &[u8]) {
        match blocks {
            Blocks::Q4_0 | Blocks::Q4_1 | Blocks::Q5_0 | Blocks::Q5_1 | Blocks::IQ4_NL => {
                self.d = half_at(bytes, 0);
                let mut rest = &bytes[2..];
                if blocks.has_minimums() {
                    self.dmin = -half_at(rest, 0);
                    rest = &rest[2..];
                }
                let (bits, nibbles) = rest.split_at(rest.len() - 16);
                let (first, second) = self.quants[..32].split_at_mut(16);
                for ((first, second), byte) in first.iter_mut().zip(second).zip(nibbles) {
                    (*first, *second) = (byte & 0x0f, byte >> 4);
                }
                for (quants, bits) in self.quants.chunks_exact_mut(8).zip(bits) {
                    quants.iter_mut().enumerate().for_each(|(p, quant)| *quant |= (bits >> p & 1) << 4);
                }
            }
            Blocks::Q8_0 => {
                self.d = half_at(bytes, 0);
                self.quants[..32].copy_from_slice(&bytes[2..34]);
            }
            Blocks::Q4_K => {
                self.read_scales(bytes);
                self.read_nibbles(&bytes[16..144]);
            }
            Blocks::Q5_K => {
                self.read_scales(bytes);
                self.read_nibbles(&bytes[48..176]);
                // Bit s of byte p is the fifth bit of element p of the 32 that scale s is for.
                for (s, quants) in self.quants.chunks_exact_mut(32).enumerate() {
                    for (quant, bits) in quants.iter_mut().zip(&bytes[16..48]) {
                        *quant |= (bits >> s & 1) << 4;
                    }
                }
            }
            Blocks::Q6_K => {
                let (lower, rest) = bytes.split_at(128);
                let (upper, rest) = rest.split_at(64);
                let halves = self.quants.chunks_exact_mut(128).zip(lower.chunks_exact(64).zip(upper.chunks_exact(32)));
                for (quants, (lower, upper)) in halves {
                    // Four runs of 32: two in the lower nibbles of 64 bytes, two in the upper ones; their upper bits in pairs.
                    for (run, quants) in quants.chunks_exact_mut(32).enumerate() {
                        let lower = &lower[run % 2 * 32..][..32];
                        for (quant, (lower, upper)) in quants.iter_mut().zip(lower.iter().zip(upper)) {
                            *quant = (lower >> (run / 2 * 4) & 0x0f) | (upper >> (2 * run) & 3) << 4;
                        }
                    }
                }
                self.scales.copy_from_slice(&rest[..16]);
                self.d = half_at(rest, 16);
            }
        }
    }

    /// `d`, `dmin`, and 8 scales and 8 minimums of 6 bits in 12 bytes: the first four of each whole, the lower bits of the others
    /// in the last four bytes, their upper bits above the first ones.
    fn read_scales(&mut self, bytes: &[u8]) {
        (self.d, self.dmin) = (half_at(bytes, 0), half_at(bytes, 2));
        let packed = &bytes[4..16];
        for s in 0..4 {
            (self.scales[s], self.mins[s]) = (packed[s] & 63, packed[s + 4] & 63);
            self.scales[s + 4] = packed[s + 8] & 0x0f | packed[s] >> 6 << 4;
            self.mins[s + 4] = packed[s + 8] >> 4 | packed[s + 4] >> 6 << 4;
        }
    }

    /// 64 elements in 32 bytes: the first 32 in the lower nibbles.
    fn read_nibbles(&mut self, bytes: &[u8]) {
        for (quants, bytes) in self.quants.chunks_exact_mut(64).zip(bytes.chunks_exact(32)) {
            let (lower, upper) = quants.split_at_mut(32);
            for ((lower, upper), byte) in lower.iter_mut().zip(upper).zip(bytes) {
                (*lower, *upper) = (byte & 0x0f, byte >> 4);
            }
        }
    }

    /// The weight `p`, exactly.
    pub(super) fn weight(&self, blocks: Blocks, p: usize) -> f64 {
        let (d, q, s) = (self.d.to_f64(), self.quants[p], p / blocks.elements_a_scale());
        let above = f64::from(q) - f64::from(blocks.excess());
        match blocks {
            Blocks::Q4_0 | Blocks::Q5_0 => d * above,
            Blocks::Q8_0 => d * f64::from(q.cast_signed()),
            Blocks::IQ4_NL => d * f64::from(IQ4_NL[usize::from(q)]),
            Blocks::Q4_1 | Blocks::Q5_1 | Blocks::Q4_K | Blocks::Q5_K => {
                d * f64::from(self.scales[s]) * above - self.dmin.to_f64() * f64::from(self.mins[s])
            }
            Blocks::Q6_K => d * f64::from(self.scales[s].cast_signed()) * above,
        }
    }
}

fn half_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// The weights that blocks stand for, each computed exactly and rounded to f32 once.
///
/// # Shapes
/// `bytes`: whole blocks; `out`: as many elements as they have.
///
/// # Errors
/// [`Error::Bytes`], when the bytes are not the blocks of so many elements; [`Error::Inputs`], when the elements are not whole
/// blocks.
///
/// # Source
/// See the head of this file.
pub fn dequantize(blocks: Blocks, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
    let wanted = blocks.row_bytes(out.len())?;
    if bytes.len() != wanted {
        return Err(Error::Bytes { bytes: bytes.len(), inputs: out.len(), row: wanted, blocks });
    }
    let mut block = Block::EMPTY;
    for (bytes, out) in bytes.chunks_exact(blocks.bytes()).zip(out.chunks_exact_mut(blocks.elements())) {
        block.read(blocks, bytes);
        out.iter_mut().enumerate().for_each(|(p, out)| *out = block.weight(blocks, p) as f32);
    }
    Ok(())
}
