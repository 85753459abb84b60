//! The sum of rows over vectors of any width. A checked call comes in, rows are written. Never unsafe: the instructions are
//! in `launch::lanes`.

use half::{bf16, f16};

use super::Term;
use crate::launch::lanes::{Kernel, Lanes};
use crate::stored::{Stored, Values};

/// A call whose lengths have been checked.
pub(super) struct Embed<'a> {
    pub(super) terms: &'a [Term<'a>],
    pub(super) dim: usize,
    pub(super) out: &'a mut [f32],
}

impl Kernel for Embed<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) {
        for (token, out) in self.out.chunks_exact_mut(self.dim).enumerate() {
            out.fill(0.0);
            for term in self.terms {
                let row = row(term.table, term.indices[token] as usize, self.dim);
                match term.table.stored {
                    Stored::F32 => add(l, row, f32::from_le_bytes, |l, xs| l.load(xs), out),
                    Stored::F16 => add(l, row, f16::from_le_bytes, |l, xs| l.load_f16(xs), out),
                    Stored::Bf16 => add(l, row, bf16::from_le_bytes, |l, xs| l.load_bf16(xs), out),
                }
            }
        }
    }
}

/// The bytes of one row.
#[inline(always)]
fn row(table: Values<'_>, index: usize, dim: usize) -> &[u8] {
    let bytes = dim * table.stored.bytes();
    &table.bytes[index * bytes..][..bytes]
}

/// `out += row`. A vector's elements are first put where they are aligned, for a file may hold them anywhere.
#[inline(always)]
fn add<L: Lanes, T: Copy + Default + Into<f32>, const BYTES: usize>(
    l: L,
    row: &[u8],
    read: impl Fn([u8; BYTES]) -> T,
    load: impl Fn(L, &[T]) -> L::V,
    out: &mut [f32],
) {
    let mut elements = [T::default(); 16];
    let mut out = out.chunks_exact_mut(L::WIDTH);
    let mut row = row.chunks_exact(L::WIDTH * BYTES);
    for (out, row) in (&mut out).zip(&mut row) {
        for (element, bytes) in elements.iter_mut().zip(row.chunks_exact(BYTES)) {
            *element = read(bytes.try_into().expect("chunks of so many bytes"));
        }
        l.store(l.add(l.load(out), load(l, &elements)), out);
    }
    for (out, bytes) in out.into_remainder().iter_mut().zip(row.remainder().chunks_exact(BYTES)) {
        *out += read(bytes.try_into().expect("chunks of so many bytes")).into();
    }
}
