//! The oracle: the norm as the formula says it, sums in f64. What `rms_norm` takes comes in and goes out. Never fast.

use super::{Error, Params, check};

/// What [`super::rms_norm`] computes, one element after the other in f64, rounded to f32 at the end.
///
/// # Shapes
/// As [`super::rms_norm`].
///
/// # Errors
/// As [`super::rms_norm`].
pub fn rms_norm(x: &mut [f32], params: &Params<'_>) -> Result<(), Error> {
    check(x, params)?;
    x.chunks_exact_mut(params.weight.len()).for_each(|row| self::row(row, params));
    Ok(())
}

/// One row.
pub(super) fn row(row: &mut [f32], params: &Params<'_>) {
    let squares: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let root = (squares / row.len() as f64 + f64::from(params.eps)).sqrt();
    for (x, weight) in row.iter_mut().zip(params.weight) {
        *x = (f64::from(*x) / root * f64::from(*weight)) as f32;
    }
}
