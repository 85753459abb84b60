//! The oracle: the dense layer over blocks as the formula says it, in f64. What `linear_quantized` takes comes in and goes out. Never
//! fast.

use super::{Epilogue, Error, Quantized, Rows, check, fitting};

/// What [`super::linear_quantized`] computes, one element after the other in f64, rounded to f32 before the residual is added and
/// at the end.
///
/// # Shapes
/// As [`super::linear_quantized`].
///
/// # Errors
/// As [`super::linear_quantized`].
pub fn linear_quantized(x: &Rows, weights: &Quantized, epilogue: &Epilogue<'_>, out: &mut [f32]) -> Result<(), Error> {
    let rows = fitting(x, weights)?;
    let (n, blocks) = (weights.outputs(), weights.blocks());
    check(rows, weights, 0..weights.panels(), epilogue, out.len(), rows)?;
    for j in 0..n {
        let mut sums = vec![0.0; rows];
        for index in 0..weights.blocks_a_row() {
            let block = weights.block(j, index);
            let w: Vec<f64> = (0..blocks.elements()).map(|p| block.weight(blocks, p)).collect();
            for (row, sum) in sums.iter_mut().enumerate() {
                let q = |p: usize| f64::from(x.get(row, index * blocks.elements() + p));
                let products: f64 = w.iter().enumerate().map(|(p, w)| q(p) * w).sum();
                *sum += f64::from(x.scale(row, index)) * products;
            }
        }
        for (row, sum) in sums.into_iter().enumerate() {
            let sum = sum + epilogue.bias.map_or(0.0, |bias| f64::from(bias[j]));
            let y = epilogue.activation.exact(sum) as f32;
            out[row * n + j] = y + epilogue.residual.map_or(0.0, |residual| residual[row * n + j]);
        }
    }
    Ok(())
}
