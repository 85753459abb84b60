//! The oracle: the sum of rows as the formula says it, in f64. What `embed` takes comes in and goes out. Never fast.

use super::{Error, Term, check};
use crate::layer_norm;

/// What [`super::embed`] computes, one element after the other in f64; the sum is rounded to f32, and so is its
/// normalisation.
///
/// # Shapes
/// As [`super::embed`].
///
/// # Errors
/// As [`super::embed`].
pub fn embed(
    terms: &[Term<'_>],
    dim: usize,
    norm: Option<&layer_norm::Params<'_>>,
    out: &mut [f32],
) -> Result<(), Error> {
    check(terms, dim, norm, out)?;
    for (at, out) in out.iter_mut().enumerate() {
        let element = |term: &Term<'_>| term.table.get(term.indices[at / dim] as usize * dim + at % dim);
        *out = terms.iter().map(|term| f64::from(element(term))).sum::<f64>() as f32;
    }
    if let Some(norm) = norm {
        let sums = out.to_vec();
        layer_norm::cpu::layer_norm(&sums, None, norm, out)?;
    }
    Ok(())
}
