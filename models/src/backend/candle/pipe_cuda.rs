//! Batches on their way through a CUDA device: while one is computed the next is put behind it, and what comes out is copied into memory that the
//! device writes by itself. Launches come in, vectors go out. Never an order of its own: whoever has the turn puts all of a batch on the
//! device's one stream.

use super::ops_cuda::with_view;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::result::memcpy_dtoh_async;
use candle_core::cuda_backend::cudarc::driver::{DevicePtr, PinnedHostSlice};
use candle_core::{Result, Tensor};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Batches that are on their way at once: one is computed, one waits behind it.
pub(super) const SIDES: usize = 2;

/// The way through a device.
#[derive(Default)]
pub(super) struct Pipe {
    /// Whoever launches has it, so that batches do not mix.
    turn: Mutex<()>,
    /// Memory for results that nobody uses.
    spare: Mutex<Vec<PinnedHostSlice<f32>>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pipe {
    /// Launches what makes `[rows, width]` in f32, and waits for it when the next may be launched.
    pub(super) fn run(&self, launch: &dyn Fn() -> Result<Tensor>) -> Result<Vec<Vec<f32>>> {
        let spare = lock(&self.spare).pop();
        let turn = lock(&self.turn);
        let vectors = launch()?.contiguous()?;
        let (rows, width) = vectors.dims2()?;
        let stream = vectors.device().as_cuda_device()?.cuda_stream();
        let mut memory = match spare.filter(|memory| memory.len() >= rows * width) {
            Some(memory) => memory,
            // SAFETY: of it only that is read which was copied there.
            None => unsafe { stream.context().alloc_pinned_with_flags((rows * width).next_power_of_two(), 0) }.w()?,
        };
        let copied = stream.context().new_event(None).w()?;
        with_view::<f32, _>(&vectors, |vectors| {
            let to = &mut memory.as_mut_slice().w()?[..rows * width];
            // Not the stream's own copy, which takes as much as there is room for.
            // SAFETY: the memory is neither read nor let go before `copied` has been waited for.
            unsafe { memcpy_dtoh_async(to, vectors.device_ptr(&stream).0, stream.cu_stream()) }.w()
        })?;
        copied.record(&stream).w()?;
        drop((vectors, turn));
        copied.synchronize().w()?;
        let values = &memory.as_slice().w()?[..rows * width];
        let vectors = values.chunks(width.max(1)).map(<[f32]>::to_vec).collect();
        lock(&self.spare).push(memory);
        Ok(vectors)
    }
}
