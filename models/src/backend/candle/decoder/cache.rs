//! Where the keys and values of one layer lie. A number of blocks comes in, memory on the device comes out. Never a decision about which
//! block is whose, never a block that grows.

use crate::arch::encoder::Heads;
use candle_core::{DType, Device, Result, Tensor};
use kernels::attention_paged::{self, Kind, Shape};
use std::sync::Mutex;

/// Tokens of a block, as the CUDA code counts them.
pub(super) const BLOCK_TOKENS: usize = 16;

/// Slots are numbered in 32 bits.
pub(super) const BLOCKS_MAX: u64 = u32::MAX as u64 / BLOCK_TOKENS as u64;

/// The keys and values of one layer.
pub(super) enum Cache {
    /// In the processor's memory, as the ops of `kernels` keep it.
    Host(Mutex<attention_paged::Cache>),
    /// `[2, slots, keys · d]`: keys, then values. A block has [`BLOCK_TOKENS`] slots.
    Device(Tensor),
}

impl Cache {
    /// Whether the ops of `kernels` run there in this type.
    pub(super) fn is_host(device: &Device, dtype: DType) -> bool {
        device.is_cpu() && dtype == DType::F32
    }

    /// All zeros.
    pub(super) fn new(heads: &Heads, blocks: usize, device: &Device, dtype: DType) -> Result<Self> {
        if Self::is_host(device, dtype) {
            let cache = attention_paged::Cache::new(shape(heads, blocks), Kind::F32);
            return Ok(Self::Host(Mutex::new(cache.map_err(candle_core::Error::wrap)?)));
        }
        Self::on_device(heads, blocks, device, dtype)
    }

    /// As a tensor, wherever that is.
    pub(super) fn on_device(heads: &Heads, blocks: usize, device: &Device, dtype: DType) -> Result<Self> {
        Ok(Self::Device(Tensor::zeros((2, blocks * BLOCK_TOKENS, heads.keys * heads.dim), dtype, device)?))
    }
}

/// Bytes of a block of one layer; nothing where no memory holds it.
pub(super) fn block_bytes(heads: &Heads, is_host: bool, dtype: DType) -> Option<u64> {
    if is_host {
        return shape(heads, 1).bytes(Kind::F32).map(|bytes| bytes as u64);
    }
    let width = heads.keys.checked_mul(heads.dim)?;
    (2 * BLOCK_TOKENS * dtype.size_in_bytes()).checked_mul(width).map(|bytes| bytes as u64)
}

fn shape(heads: &Heads, blocks: usize) -> Shape {
    Shape { blocks, block: BLOCK_TOKENS, kv_heads: heads.keys, head_dim: heads.dim }
}
