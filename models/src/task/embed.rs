//! Texts become token items; pooled vectors become embeddings: cut to the wanted dimensions, then scaled to length 1.

use super::pipeline::{Kind, Pipeline, Prepared, prepared};
use super::{Error, Reply, Text};

pub(super) fn prepare(
    pipeline: &Pipeline,
    inputs: Vec<Text>,
    dimensions: Option<usize>,
    normalize: Option<bool>,
    truncate: bool,
) -> Result<Prepared, Error> {
    let all = pipeline.vector_len;
    let dimensions = dimensions.unwrap_or(all);
    if !(1..=all).contains(&dimensions) {
        return Err(Error::Range { what: "dimensions", have: dimensions, want: format!("1 to {all}") });
    }
    let items = pipeline.tokenize_all(inputs, truncate)?;
    let normalize = normalize.unwrap_or(pipeline.normalize);
    let pending = Kind::Embed { count: items.len(), dimensions, normalize };
    Ok(prepared(items, pending))
}

/// `vectors` have been checked: all as long as the model says, all finite.
pub(super) fn finish(vectors: &[Vec<f32>], dimensions: usize, normalize: bool) -> Result<Reply, Error> {
    let mut values = Vec::with_capacity(vectors.len() * dimensions);
    for vector in vectors {
        let kept = &vector[..dimensions];
        let scale = if normalize { inverse_length(kept) } else { 1.0 };
        values.extend(kept.iter().map(|v| (f64::from(*v) * scale) as f32));
    }
    Ok(Reply::Embeddings { dimensions, values })
}

/// `1 / |v|`, summed in f64; 1 for a vector of zeros, which has no direction and stays as it is.
fn inverse_length(vector: &[f32]) -> f64 {
    let squares: f64 = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum();
    if squares > 0.0 { 1.0 / squares.sqrt() } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(vector: &[f32], dimensions: usize, normalize: bool, want: &[f32]) {
        let reply = finish(&[vector.to_vec()], dimensions, normalize);
        assert_eq!(reply, Ok(Reply::Embeddings { dimensions, values: want.to_vec() }));
    }

    #[test]
    fn dimensions_are_cut_before_the_length_is_made_one() {
        check(&[3.0, 4.0, 12.0], 3, false, &[3.0, 4.0, 12.0]);
        check(&[3.0, 4.0, 12.0], 2, true, &[0.6, 0.8]);
        check(&[3.0, 4.0, 12.0], 2, false, &[3.0, 4.0]);
        check(&[0.0, 0.0], 2, true, &[0.0, 0.0]);
        check(&[f32::MAX, 0.0], 2, true, &[1.0, 0.0]);
    }
}
