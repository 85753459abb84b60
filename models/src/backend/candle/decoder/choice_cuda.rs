//! Chooses tokens on the device where their logits are: rows of logits and what each is asked come in, tokens go out.

use crate::backend::candle::ops_cuda::{count, function};
use crate::engine::{NoChoice, Rows};
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{LaunchConfig, PushKernelArg};
use candle_core::{CpuStorage, CudaStorage, InplaceOp1, Layout, Result, Tensor};
use kernels::sample::CELLS;
use std::cell::RefCell;

/// Tokens of all rows, in order. Logits of rows that are asked greedily and without a mask, a bias or a penalty stay as they are.
///
/// # Shapes
/// `logits`: `[rows, tokens]` in f32, contiguous.
pub(super) fn choose(logits: &Tensor, rows: &Rows) -> Result<Vec<std::result::Result<u32, NoChoice>>> {
    let tokens = rows.tokens();
    if logits.dims() != [rows.len(), tokens] {
        candle_core::bail!("sample: logits {:?} for {} rows of {tokens}", logits.dims(), rows.len());
    }
    let op = ChooseOp { rows, choices: RefCell::default() };
    logits.inplace_op1(&op)?;
    let choices = op.choices.into_inner();
    let row = |(row, choice): (usize, &[u32])| match choice {
        [token, 0] => Ok(Ok(*token)),
        [token, 1] => {
            let value = logits.narrow(0, row, 1)?.narrow(1, *token as usize, 1)?.flatten_all()?.to_vec1::<f32>()?;
            Ok(Err(NoChoice::Logit { token: *token, value: value.first().copied().unwrap_or(f32::NAN) }))
        }
        _ => Ok(Err(NoChoice::NoToken { tokens })),
    };
    choices.chunks_exact(2).enumerate().map(row).collect()
}

struct ChooseOp<'a> {
    rows: &'a Rows,
    /// Token and state of each row.
    choices: RefCell<Vec<u32>>,
}

impl InplaceOp1 for ChooseOp<'_> {
    fn name(&self) -> &'static str {
        "sample"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        candle_core::bail!("sample: on the CPU tokens are chosen from a row's slice")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> Result<()> {
        let device = storage.device.clone();
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("sample: the logits have gaps")
        };
        let mut logits = storage.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
        let (words, places) = self.rows.words();
        let words = device.clone_htod(&words)?;
        let (rows, tokens) = (self.rows.len(), self.rows.tokens());
        // SAFETY: the function writes of each before it reads.
        let mut cells = unsafe { device.alloc::<u16>(rows * tokens.next_multiple_of(64)) }?;
        // SAFETY: as above.
        let mut counts = unsafe { device.alloc::<u32>(rows * CELLS) }?;
        // SAFETY: the function writes every row's.
        let mut choices = unsafe { device.alloc::<u32>(2 * rows) }?;
        let function = function!(device, "sample", "sample_f32");
        let (token_count, null) = (count(tokens)?, 0_u64);
        let part = |place: &std::ops::Range<usize>| (!place.is_empty()).then(|| words.slice(place.clone()));
        let parts = [
            &places.requests,
            &places.allowed,
            &places.bias_tokens,
            &places.biases,
            &places.seen_tokens,
            &places.seen_counts,
        ];
        let parts = parts.map(part);
        let mut builder = function.builder();
        builder.arg(&mut logits);
        for part in &parts {
            match part {
                Some(part) => builder.arg(part),
                None => builder.arg(&null),
            };
        }
        builder.arg(&mut cells).arg(&mut counts).arg(&mut choices).arg(&token_count);
        let config = LaunchConfig { grid_dim: (count(rows)?, 1, 1), block_dim: (512, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the arguments are those of the function's head; requests were checked against the vocabulary when they were added.
        unsafe { builder.launch(config) }.w()?;
        *self.choices.borrow_mut() = device.clone_dtoh(&choices)?;
        Ok(())
    }
}
