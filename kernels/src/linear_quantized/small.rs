//! The innermost loops over blocks of 32: a few rows times two vectors of outputs. A checked product comes in, its sums are written.
//! Never a choice of how much is done at a time, but for rows of a tile.

use super::blocks::Blocks;
use super::pack::Layout;
use super::rows::GROUP;
use super::simd::Product;
use super::tile::{GROUPS, Place, VECTORS, ahead, vector};
use crate::launch::bytes::{Bytes, Kernel};

/// Blocks at a time, as many inputs as the larger blocks have.
const BLOCKS: usize = 8;

/// A product over blocks of 32 whose elements have 8 bits.
pub(super) struct Whole<'a>(pub(super) Product<'a>);

impl Kernel for Whole<'_> {
    #[inline(always)]
    fn run<B: Bytes>(self, b: B) {
        const { assert!(B::TILE_ROWS == 4, "a tile for every count of rows") };
        let Product { x, weights, panels, rows, c, c_stride } = self.0;
        assert_eq!(weights.width(), VECTORS * B::WIDTH, "panels of this instruction set");
        assert!(rows.end <= x.len(), "rows that are there");
        let (k, blocks) = (weights.inputs(), weights.blocks_a_row());
        let tiles = rows.len().div_ceil(B::TILE_ROWS);
        for panel in panels.clone() {
            let (first_block, layout) = weights.panel(panel);
            for block in (0..blocks).step_by(BLOCKS) {
                let count = BLOCKS.min(blocks - block);
                // SAFETY: the panel has so many blocks, and each of the rows has what is read of it here; `c` has a panel's
                // columns of every row, as who made the product vouches.
                unsafe {
                    let from = first_block.add(block * layout.len);
                    let place = Place {
                        words: x.words.as_ptr().add(rows.start * (k / GROUP) + block * GROUPS),
                        words_stride: k / GROUP,
                        scales: x.scales.as_ptr().add(rows.start * blocks + block),
                        scales_stride: blocks,
                        sums: std::ptr::null(),
                        sums_stride: 0,
                        c: c.add((panel - panels.start) * VECTORS * B::WIDTH),
                        c_stride,
                        accumulate: block > 0,
                    };
                    let mut first = 0;
                    for index in 0..tiles {
                        let rows = (rows.len() - first).div_ceil(tiles - index);
                        let place = place.behind(first);
                        match rows {
                            1 => whole_tile::<B, 1>(b, from, layout, count, place),
                            2 => whole_tile::<B, 2>(b, from, layout, count, place),
                            3 => whole_tile::<B, 3>(b, from, layout, count, place),
                            _ => whole_tile::<B, 4>(b, from, layout, count, place),
                        }
                        first += rows;
                    }
                }
            }
        }
    }
}

/// `ROWS` rows times some blocks of a panel.
///
/// # Safety
/// So many blocks can be read; the place has so many rows.
#[inline(always)]
unsafe fn whole_tile<B: Bytes, const ROWS: usize>(b: B, from: *const u8, layout: Layout, count: usize, place: Place) {
    let mut totals = [[b.splat_f32(0.0); VECTORS]; ROWS];
    if place.accumulate {
        for (row, totals) in totals.iter_mut().enumerate() {
            for (v, total) in totals.iter_mut().enumerate() {
                // SAFETY: as the caller vouches.
                *total = unsafe { b.load_f32(place.c.add(row * place.c_stride + v * B::WIDTH)) };
            }
        }
    }
    for block in 0..count {
        let mut sums = [[b.splat(0); VECTORS]; ROWS];
        // SAFETY: as the caller vouches.
        unsafe {
            let from = from.add(block * layout.len);
            ahead(b, from, const { Layout::new(Blocks::Q8_0, VECTORS * B::WIDTH).len }, 0, 1);
            for group in 0..GROUPS {
                let at = from.add(group * VECTORS * vector::<B>());
                let weights = [b.load(at), b.load(at.add(vector::<B>()))];
                for (row, sums) in sums.iter_mut().enumerate() {
                    let x = b.splat(*place.words.add(row * place.words_stride + block * GROUPS + group));
                    for v in 0..VECTORS {
                        sums[v] = b.add_signed(sums[v], weights[v], x);
                    }
                }
            }
            for v in 0..VECTORS {
                let d = b.load_f16(from.add(layout.d + 2 * v * B::WIDTH));
                for row in 0..ROWS {
                    let scale = b.splat_f32(*place.scales.add(row * place.scales_stride + block));
                    totals[row][v] = b.add(totals[row][v], b.mul(b.mul(b.float(sums[row][v]), d), scale));
                }
            }
        }
    }
    for (row, totals) in totals.into_iter().enumerate() {
        for (v, total) in totals.into_iter().enumerate() {
            // SAFETY: as the caller vouches.
            unsafe { b.store_f32(total, place.c.add(row * place.c_stride + v * B::WIDTH)) };
        }
    }
}
