//! Where the keys and values of all sequences lie. Rows of new tokens and the blocks that they belong to come in, numbers in their
//! storage type lie there. Never a decision about which block is whose: tables are the caller's.

use half::{bf16, f16};

use super::{Error, Rows};
use crate::launch::aligned::Aligned;
use crate::launch::lanes::Lanes;
pub use crate::stored::Stored as Kind;

/// Values of a token are padded with zeros to whole vectors of every instruction set.
const PADDED_TO: usize = 16;

/// How much a cache holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Blocks, of all sequences together.
    pub blocks: usize,
    /// Tokens of a block. Keys are read where they lie when it is a multiple of 16; otherwise (on some CPUs) they are gathered first,
    /// which is slow.
    pub block: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Shape {
    /// What a cache of this shape takes, in bytes; `None` when that is more than can be addressed.
    pub fn bytes(&self, kind: Kind) -> Option<usize> {
        let heads = self.blocks.checked_mul(self.kv_heads)?.checked_mul(self.block)?;
        let of = |dim: usize| heads.checked_mul(dim)?.checked_mul(kind.bytes())?.checked_next_multiple_of(64);
        let bytes = of(self.head_dim)?.checked_add(of(self.head_dim.checked_next_multiple_of(PADDED_TO)?)?)?;
        (bytes <= isize::MAX as usize).then_some(bytes)
    }

    /// Elements of a row of values.
    pub(super) fn value_stride(&self) -> usize {
        self.head_dim.next_multiple_of(PADDED_TO)
    }

    /// Where a head's keys of a block begin: element `c` of token `t` is `c · block + t` behind that, so that a vector holds
    /// the same element of as many tokens.
    pub(super) fn keys_of(&self, block: u32, head: usize) -> usize {
        (block as usize * self.kv_heads + head) * self.head_dim * self.block
    }

    /// Where a head's values of a block begin: `[block, value_stride]`.
    pub(super) fn values_of(&self, block: u32, head: usize) -> usize {
        (block as usize * self.kv_heads + head) * self.block * self.value_stride()
    }
}

/// Keys and values in blocks: of each, `[blocks, kv_heads]` times a block's tokens of one head side by side.
#[derive(Clone, Debug)]
pub struct Cache {
    shape: Shape,
    kind: Kind,
    keys: Aligned,
    values: Aligned,
}

impl Cache {
    /// All zeros, which take no memory until they are written.
    ///
    /// # Errors
    /// [`Error::Shape`], when something is 0 or it is more than can be addressed.
    pub fn new(shape: Shape, kind: Kind) -> Result<Self, Error> {
        let Shape { blocks, block, kv_heads, head_dim } = shape;
        let is_usable = block > 0 && kv_heads > 0 && head_dim > 0 && u32::try_from(blocks).is_ok();
        if !is_usable || shape.bytes(kind).is_none() {
            return Err(Error::Shape(shape));
        }
        let zeros =
            |dim: usize| Aligned::zeros((blocks * kv_heads * block * dim * kind.bytes()).div_ceil(size_of::<f32>()));
        Ok(Self { shape, kind, keys: zeros(head_dim), values: zeros(shape.value_stride()) })
    }

    /// How much it holds.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// How a number is stored.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The memory that it takes.
    pub fn bytes(&self) -> usize {
        self.shape.bytes(self.kind).expect("it was asked when the cache was made")
    }

    /// Stores keys and values of tokens that follow each other: the first at position `first` of the sequence whose blocks
    /// `block_table` names in order. Numbers beyond what a 16-bit type holds become infinite.
    ///
    /// # Shapes
    /// `keys`, `values`: `[tokens, kv_heads · head_dim]`, each with its stride, f32.
    ///
    /// # Errors
    /// [`Error`], when the table is too short or names a block that is not there, or the rows do not fit. Nothing has been written
    /// then.
    pub fn write(
        &mut self,
        block_table: &[u32],
        first: usize,
        keys: Rows<'_>,
        values: Rows<'_>,
        tokens: usize,
    ) -> Result<(), Error> {
        let length = first.checked_add(tokens).ok_or(Error::Length { length: usize::MAX, queries: tokens })?;
        self.check_table(block_table, length)?;
        let width = self.shape.kv_heads * self.shape.head_dim;
        super::check_rows("keys", keys, tokens, width)?;
        super::check_rows("values", values, tokens, width)?;
        match self.kind {
            Kind::F32 => self.write_as::<f32>(block_table, first, keys, values, tokens),
            Kind::F16 => self.write_as::<f16>(block_table, first, keys, values, tokens),
            Kind::Bf16 => self.write_as::<bf16>(block_table, first, keys, values, tokens),
        }
        Ok(())
    }

    fn write_as<E: Element>(&mut self, table: &[u32], first: usize, keys: Rows<'_>, values: Rows<'_>, tokens: usize) {
        let Shape { block, kv_heads, head_dim, .. } = self.shape;
        let mut at = 0;
        while at < tokens {
            let (number, offset) = (table[(first + at) / block], (first + at) % block);
            let there = (block - offset).min(tokens - at);
            for head in 0..kv_heads {
                let from = self.shape.keys_of(number, head);
                let lines = E::all_mut(&mut self.keys)[from..][..head_dim * block].chunks_exact_mut(block);
                for (element, line) in lines.enumerate() {
                    for (index, key) in line[offset..offset + there].iter_mut().enumerate() {
                        *key = E::of(keys.values[(at + index) * keys.stride + head * head_dim + element]);
                    }
                }
                let (from, stride) = (self.shape.values_of(number, head), self.shape.value_stride());
                let rows =
                    E::all_mut(&mut self.values)[from + offset * stride..][..there * stride].chunks_exact_mut(stride);
                for (index, row) in rows.enumerate() {
                    let value = &values.values[(at + index) * values.stride + head * head_dim..][..head_dim];
                    row.iter_mut().zip(value).for_each(|(to, x)| *to = E::of(*x));
                }
            }
            at += there;
        }
    }

    /// Makes block `to` hold what `from` holds, for a sequence that goes on alone in a block that it shared.
    ///
    /// # Panics
    /// When there is no such block.
    pub fn copy_block(&mut self, from: u32, to: u32) {
        let blocks = self.shape.blocks;
        assert!((from as usize) < blocks && (to as usize) < blocks, "block {from} to {to} of {blocks}");
        let of = |dim: usize| self.shape.kv_heads * self.shape.block * dim * self.kind.bytes();
        let (keys, values) = (of(self.shape.head_dim), of(self.shape.value_stride()));
        for (buffer, bytes) in [(&mut self.keys, keys), (&mut self.values, values)] {
            buffer.bytes_mut().copy_within(from as usize * bytes..(from as usize + 1) * bytes, to as usize * bytes);
        }
    }

    /// Whether a table has a block of this cache for each of `length` tokens.
    pub(super) fn check_table(&self, table: &[u32], length: usize) -> Result<(), Error> {
        let needed = length.div_ceil(self.shape.block);
        let Some(blocks) = table.get(..needed) else {
            return Err(Error::Table { blocks: table.len(), block: self.shape.block, length });
        };
        match blocks.iter().position(|number| *number as usize >= self.shape.blocks) {
            Some(index) => Err(Error::Block { index, number: blocks[index], blocks: self.shape.blocks }),
            None => Ok(()),
        }
    }

    pub(super) fn keys<E: Element>(&self) -> &[E] {
        E::all(&self.keys)
    }

    pub(super) fn values<E: Element>(&self) -> &[E] {
        E::all(&self.values)
    }
}

/// A number as it is stored.
pub(super) trait Element: Copy {
    /// Rounded to the nearest.
    fn of(x: f32) -> Self;
    /// As f32, exactly.
    fn to_f32(self) -> f32;
    /// A vector of them, widened.
    ///
    /// # Safety
    /// `L::WIDTH` of them can be read.
    unsafe fn load<L: Lanes>(l: L, from: *const Self) -> L::V;

    /// A buffer as numbers of this type.
    fn all(buffer: &Aligned) -> &[Self] {
        let bytes = buffer.bytes();
        // SAFETY: every type here takes any bits, has no padding and is aligned to no more than the buffer's line.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<Self>()) }
    }

    /// A buffer as numbers of this type.
    fn all_mut(buffer: &mut Aligned) -> &mut [Self] {
        let bytes = buffer.bytes_mut();
        // SAFETY: as above, and `buffer` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len() / size_of::<Self>()) }
    }
}

impl Element for f32 {
    fn of(x: f32) -> Self {
        x
    }

    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(l: L, from: *const Self) -> L::V {
        // SAFETY: the caller vouches for the elements.
        unsafe { l.load_at(from) }
    }
}

impl Element for f16 {
    fn of(x: f32) -> Self {
        f16::from_f32(x)
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(l: L, from: *const Self) -> L::V {
        // SAFETY: the caller vouches for the elements.
        l.load_f16(unsafe { std::slice::from_raw_parts(from, L::WIDTH) })
    }
}

impl Element for bf16 {
    fn of(x: f32) -> Self {
        bf16::from_f32(x)
    }

    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    unsafe fn load<L: Lanes>(l: L, from: *const Self) -> L::V {
        // SAFETY: the caller vouches for the elements.
        l.load_bf16(unsafe { std::slice::from_raw_parts(from, L::WIDTH) })
    }
}
