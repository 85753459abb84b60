//! Candle as a rival. Slices become its tensors, its results are checked and its calls are timed. Never here: an op of ours.

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Result, Shape, Tensor};
use kernels::linear_quantized::Blocks;

use crate::op::{Bench, Work};

/// A tensor on the CPU.
///
/// # Panics
/// When there are not so many numbers.
pub fn tensor(numbers: &[f32], shape: impl Into<Shape>) -> Tensor {
    Tensor::from_slice(numbers, shape, &Device::Cpu).expect("the lengths fit")
}

/// Candle's name for the blocks, where it has them.
pub fn dtype(blocks: Blocks) -> Option<GgmlDType> {
    Some(match blocks {
        Blocks::Q4_0 => GgmlDType::Q4_0,
        Blocks::Q4_1 => GgmlDType::Q4_1,
        Blocks::Q5_0 => GgmlDType::Q5_0,
        Blocks::Q5_1 => GgmlDType::Q5_1,
        Blocks::Q8_0 => GgmlDType::Q8_0,
        Blocks::IQ4_NL => return None,
        Blocks::Q4_K => GgmlDType::Q4K,
        Blocks::Q5_K => GgmlDType::Q5K,
        Blocks::Q6_K => GgmlDType::Q6K,
    })
}

/// Times `call`, which is named by the ops that it does, after `check` has seen its result.
///
/// # Panics
/// When the call fails: its shapes are ours to give.
pub fn time(
    bench: &mut Bench,
    work: &Work,
    ops: &str,
    mut call: impl FnMut() -> Result<Tensor>,
    check: impl FnOnce(&str, &[f32]),
) {
    let found = call().and_then(|result| result.flatten_all()?.to_vec1::<f32>()).expect("the shapes fit");
    check("candle", &found);
    bench.time_rival(work, &format!("candle: {ops}"), || call().expect("it went well before"));
}
