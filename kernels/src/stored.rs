//! Numbers as a file holds them: bytes and their type come in, f32 come out. Never a copy of more than what is asked for.

use half::{bf16, f16};

/// How a number is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// 32 bits, IEEE 754.
    F32,
    /// 16 bits, IEEE 754.
    F16,
    /// The upper half of an f32.
    Bf16,
}

impl Stored {
    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Numbers side by side, little-endian, at any address.
#[derive(Clone, Copy, Debug)]
pub struct Values<'a> {
    /// The bytes.
    pub bytes: &'a [u8],
    /// What they are.
    pub stored: Stored,
}

impl<'a> Values<'a> {
    /// Numbers that are at hand.
    pub fn of_f32(values: &'a [f32]) -> Self {
        // SAFETY: f32 has no padding, and any byte may be read as u8. On the little-endian CPUs that we run on these are the
        // bytes that a file would hold.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) };
        Self { bytes, stored: Stored::F32 }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.stored.bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number `index`.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> f32 {
        match self.stored {
            Stored::F32 => f32::from_le_bytes(self.bytes[4 * index..][..4].try_into().expect("four bytes")),
            Stored::F16 => self.half(index, f16::from_le_bytes).to_f32(),
            Stored::Bf16 => self.half(index, bf16::from_le_bytes).to_f32(),
        }
    }

    /// Number `index` of a 16-bit type.
    #[inline]
    pub(crate) fn half<T>(&self, index: usize, of: impl Fn([u8; 2]) -> T) -> T {
        of(self.bytes[2 * index..][..2].try_into().expect("two bytes"))
    }

    /// All of them.
    pub fn to_f32(&self) -> Vec<f32> {
        (0..self.len()).map(|index| self.get(index)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_read_at_any_address() {
        let numbers = [1.5_f32, -2.0, 0.25];
        assert_eq!(Values::of_f32(&numbers).to_f32(), numbers);
        let f16s: Vec<u8> = numbers.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let bf16s: Vec<u8> = numbers.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        let f32s: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        for (bytes, stored) in [(f16s, Stored::F16), (bf16s, Stored::Bf16), (f32s, Stored::F32)] {
            let shifted = [&[0], &bytes[..]].concat();
            let values = Values { bytes: &shifted[1..], stored };
            assert_eq!((values.len(), values.to_f32()), (3, numbers.to_vec()), "{stored:?}");
        }
    }
}
