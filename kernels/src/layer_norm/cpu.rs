//! The oracle: layer normalisation as the formula says it, sums in f64. What `layer_norm` takes comes in and goes out.
//! Never fast.

use super::{Error, Params, check};

/// What [`super::layer_norm`] computes, one element after the other in f64, rounded to f32 at the end.
///
/// # Shapes
/// As [`super::layer_norm`].
///
/// # Errors
/// As [`super::layer_norm`].
pub fn layer_norm(x: &[f32], residual: Option<&[f32]>, params: &Params<'_>, out: &mut [f32]) -> Result<(), Error> {
    check(x, residual, params, out)?;
    let dim = params.weight.len();
    for (r, out) in out.chunks_exact_mut(dim).enumerate() {
        let range = r * dim..(r + 1) * dim;
        row(&x[range.clone()], residual.map(|residual| &residual[range]), params, out);
    }
    Ok(())
}

/// One row.
pub(super) fn row(x: &[f32], residual: Option<&[f32]>, params: &Params<'_>, out: &mut [f32]) {
    let s = |i: usize| f64::from(residual.map_or(x[i], |residual| x[i] + residual[i]));
    let d = x.len() as f64;
    let mean = (0..x.len()).map(s).sum::<f64>() / d;
    let var = (0..x.len()).map(|i| (s(i) - mean).powi(2)).sum::<f64>() / d;
    let deviation = (var + f64::from(params.eps)).sqrt();
    for (i, out) in out.iter_mut().enumerate() {
        *out = ((s(i) - mean) / deviation * f64::from(params.weight[i]) + f64::from(params.bias[i])) as f32;
    }
}
