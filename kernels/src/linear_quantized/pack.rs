//! Blocks as the innermost loop reads them. Rows of a file's blocks come in, panels go out: a lane of every vector is an output, and
//! a panel is read from its first byte to its last. Never a change of a value, and no more memory than the file's but for scales of
//! 6 bits, which take 8.

use std::ops::Deref;

use half::f16;

use super::Error;
use super::blocks::{Block, Blocks};
use crate::launch::aligned::Aligned;
use crate::launch::panels::Shape;
use crate::launch::{self, Isa, bytes};
use crate::linear;

/// Where the parts of one block of every output of a panel lie, in bytes from its start. `W` is the panel's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// Of 8 bits: elements `[groups 8, W, 4]`. The others: nibbles `[units, pairs 4, W, 4]`, a unit being 32 inputs: in a byte's lower
    /// bits the element of the first group of a pair, in its upper ones that of the second; a group is 4 inputs.
    pub(super) quants: usize,
    /// Of 5 bits: `[units, W, 4]`, bit `g` of a byte for group `g` of the unit. Of 6 bits: `[half units, W, 4]`, bits `2 g` and `2 g + 1`
    /// of a byte for group `g` of the half.
    pub(super) bits: usize,
    /// `[pairs, W, 2]`, each pair the scales of elements side by side.
    pub(super) scales: usize,
    /// As the scales.
    pub(super) mins: usize,
    /// f16 `[W]`.
    pub(super) d: usize,
    /// f16 `[W]`.
    pub(super) dmin: usize,
    /// Of all.
    pub(super) len: usize,
}

impl Layout {
    pub(super) const fn new(blocks: Blocks, width: usize) -> Self {
        let elements = blocks.elements();
        let (quants, bits) = match blocks.bits() {
            8 => (elements, 0),
            bits => (elements / 2, elements * (bits - 4) / 8),
        };
        let bits_at = quants * width;
        let scales_at = bits_at + bits * width;
        let mins_at = scales_at + scales(blocks) * width;
        let d = mins_at + mins(blocks) * width;
        let dmin = if blocks.has_minimums() { 2 } else { 0 };
        Self {
            quants: 0,
            bits: bits_at,
            scales: scales_at,
            mins: mins_at,
            d,
            dmin: d + 2 * width,
            len: d + (2 + dmin) * width,
        }
    }
}

/// Weights `[n, k]` in blocks of one type, packed for an instruction set.
#[derive(Debug)]
pub struct Quantized {
    shape: Shape,
    blocks: Blocks,
    layout: Layout,
    /// `[panels, blocks of a row, a block of every output]`
    panels: Aligned,
}

impl Deref for Quantized {
    type Target = Shape;

    fn deref(&self) -> &Shape {
        &self.shape
    }
}

impl Quantized {
    /// Packs weights `[n, k]` for the instruction set that ops use now. Each part is rows of blocks as a file holds them; several
    /// parts of one `k`, such as queries, keys and values, become one layer whose outputs lie side by side.
    ///
    /// # Errors
    /// [`Error::Inputs`] when `k` is not whole blocks, [`Error::Bytes`] when a part is not whole rows, [`linear::Error::Empty`]
    /// when there is no element, [`Error::NotFinite`] when a scale is no number.
    pub fn new(blocks: Blocks, parts: &[&[u8]], inputs: usize) -> Result<Self, Error> {
        Self::new_on(launch::isa(), blocks, parts, inputs)
    }

    pub(crate) fn new_on(isa: Isa, blocks: Blocks, parts: &[&[u8]], inputs: usize) -> Result<Self, Error> {
        let row = blocks.row_bytes(inputs)?;
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if inputs == 0 || len == 0 {
            return Err(linear::Error::Empty { outputs: len / row.max(1), inputs }.into());
        }
        if let Some(part) = parts.iter().find(|part| !part.len().is_multiple_of(row)) {
            return Err(Error::Bytes { bytes: part.len(), inputs, row, blocks });
        }
        let shape = Shape::new(len / row, inputs, bytes::form(isa));
        let layout = Layout::new(blocks, shape.width());
        let of_row = inputs / blocks.elements();
        // Whole f32, which a block of a panel always is: its width is a multiple of 4.
        let panels = Aligned::zeros(shape.panels() * of_row * layout.len / size_of::<f32>());
        let mut packed = Self { shape, blocks, layout, panels };
        let mut block = Block::EMPTY;
        for (output, row) in parts.iter().flat_map(|part| part.chunks_exact(row)).enumerate() {
            for (index, bytes) in row.chunks_exact(blocks.bytes()).enumerate() {
                block.read(blocks, bytes);
                if !block.d.is_finite() || !block.dmin.is_finite() {
                    return Err(Error::NotFinite { output });
                }
                packed.put(output, index, &block);
            }
        }
        Ok(packed)
    }

    /// The type of the blocks.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        size_of_val(&self.panels[..])
    }

    /// Blocks of a row.
    pub(super) fn blocks_a_row(&self) -> usize {
        self.inputs() / self.blocks.elements()
    }

    /// Where the first block of a panel lies, and the bytes from there to the next block and to the next panel.
    pub(super) fn panel(&self, panel: usize) -> (*const u8, Layout) {
        let len = self.blocks_a_row() * self.layout.len;
        (self.panels.bytes()[panel * len..(panel + 1) * len].as_ptr(), self.layout)
    }

    /// Where one block of the panel of an output begins, and the output's place in it.
    fn place(&self, output: usize, index: usize) -> (usize, usize) {
        let (panel, lane) = (output / self.width(), output % self.width());
        ((panel * self.blocks_a_row() + index) * self.layout.len, lane)
    }

    fn put(&mut self, output: usize, index: usize, block: &Block) {
        let ((at, lane), width, layout, blocks) = (self.place(output, index), self.width(), self.layout, self.blocks);
        let to = &mut self.panels.bytes_mut()[at..at + layout.len];
        let group = |g: usize| u32::from_le_bytes(block.quants[4 * g..][..4].try_into().expect("four bytes"));
        let mut word = |at: usize, index: usize, word: u32| {
            to[at + (index * width + lane) * 4..][..4].copy_from_slice(&word.to_le_bytes());
        };
        let (groups, units) = (blocks.elements() / 4, blocks.elements() / 32);
        if blocks.bits() == 8 {
            (0..groups).for_each(|g| word(layout.quants, g, group(g)));
        } else {
            // Four bytes at a time, of which no bit is moved to another byte.
            const LOW: u32 = 0x0f0f_0f0f;
            (0..groups / 2)
                .for_each(|pair| word(layout.quants, pair, group(2 * pair) & LOW | (group(2 * pair + 1) & LOW) << 4));
        }
        match blocks.bits() {
            5 => (0..units).for_each(|unit| {
                let bits = |g| (group(8 * unit + g) >> 4 & 0x0101_0101) << g;
                word(layout.bits, unit, (0..8).fold(0, |all, g| all | bits(g)));
            }),
            6 => (0..2 * units).for_each(|half| {
                let bits = |g| (group(4 * half + g) >> 4 & 0x0303_0303) << (2 * g);
                word(layout.bits, half, (0..4).fold(0, |all, g| all | bits(g)));
            }),
            _ => {}
        }
        let mut byte = |at: usize, s: usize, byte: u8| to[at + (s / 2 * width + lane) * 2 + s % 2] = byte;
        (0..scales(blocks)).for_each(|s| byte(layout.scales, s, block.scales[s]));
        (0..mins(blocks)).for_each(|s| byte(layout.mins, s, block.mins[s]));
        to[layout.d + 2 * lane..][..2].copy_from_slice(&block.d.to_le_bytes());
        if blocks.has_minimums() {
            to[layout.dmin + 2 * lane..][..2].copy_from_slice(&block.dmin.to_le_bytes());
        }
    }

    /// One block of an output, as it was before it was packed.
    pub(super) fn block(&self, output: usize, index: usize) -> Block {
        let ((at, lane), width, layout, blocks) = (self.place(output, index), self.width(), self.layout, self.blocks);
        let from = &self.panels.bytes()[at..at + layout.len];
        let mut block = Block::EMPTY;
        let byte = |at: usize, index: usize, i: usize| from[at + (index * width + lane) * 4 + i];
        for p in 0..blocks.elements() {
            let (g, i) = (p / 4, p % 4);
            block.quants[p] = match blocks.bits() {
                8 => byte(layout.quants, g, i),
                _ => byte(layout.quants, g / 2, i) >> (4 * (g % 2)) & 0x0f,
            };
            block.quants[p] |= match blocks.bits() {
                5 => (byte(layout.bits, g / 8, i) >> (g % 8) & 1) << 4,
                6 => (byte(layout.bits, g / 4, i) >> (2 * (g % 4)) & 3) << 4,
                _ => 0,
            };
        }
        let byte = |at: usize, s: usize| from[at + (s / 2 * width + lane) * 2 + s % 2];
        let half = |at: usize| f16::from_le_bytes([from[at + 2 * lane], from[at + 2 * lane + 1]]);
        (0..scales(blocks)).for_each(|s| block.scales[s] = byte(layout.scales, s));
        (0..mins(blocks)).for_each(|s| block.mins[s] = byte(layout.mins, s));
        block.d = half(layout.d);
        if blocks.has_minimums() {
            block.dmin = half(layout.dmin);
        }
        block
    }
}

/// Scales of a block, beside `d`.
const fn scales(blocks: Blocks) -> usize {
    if blocks.elements() == 32 { 0 } else { blocks.elements() / blocks.elements_a_scale() }
}

/// Minimums of a block, beside `dmin`.
const fn mins(blocks: Blocks) -> usize {
    if blocks.has_minimums() { scales(blocks) } else { 0 }
}
