//! The oracle: the gated unit as the formula says it, in f64. What `glu` takes comes in and goes out. Never fast.

use super::{Activation, Error, check};

/// What [`super::glu`] computes, one element after the other in f64, rounded to f32 at the end.
///
/// # Shapes
/// As [`super::glu`].
///
/// # Errors
/// As [`super::glu`].
pub fn glu(x: &[f32], dim: usize, activation: Activation, out: &mut [f32]) -> Result<(), Error> {
    check(x, dim, out)?;
    for (x, out) in x.chunks_exact(2 * dim).zip(out.chunks_exact_mut(dim)) {
        for (j, out) in out.iter_mut().enumerate() {
            *out = (activation.exact(f64::from(x[j])) * f64::from(x[dim + j])) as f32;
        }
    }
    Ok(())
}
