//! The oracle: attention as the formula says it, in f64, every score at once. What `attention` takes comes in and goes out.
//! Never fast.

use super::{Error, Params, Rows, check, tokens_of};

/// What [`super::attention`] computes, one element after the other in f64, rounded to f32 at the end.
///
/// # Shapes
/// As [`super::attention`].
///
/// # Errors
/// As [`super::attention`].
pub fn attention(q: Rows<'_>, k: Rows<'_>, v: Rows<'_>, params: &Params<'_>, out: &mut [f32]) -> Result<(), Error> {
    let tokens = check(q, k, v, params)?;
    let &Params { heads, kv_heads, head_dim: d, scale, reach, bias, .. } = params;
    let width = heads * d;
    if out.len() != tokens * width {
        return Err(Error::Output { rows: out.len() / width, width, wanted_rows: tokens, wanted_width: width });
    }
    let head = |rows: Rows<'_>, token: usize, head: usize| -> Vec<f64> {
        rows.values[token * rows.stride + head * d..][..d].iter().map(|x| f64::from(*x)).collect()
    };
    for sequence in 0..params.cu_seqlens.len() - 1 {
        let tokens = tokens_of(params, sequence);
        for (i, h) in (0..tokens.len()).flat_map(|i| (0..heads).map(move |h| (i, h))) {
            let keys = reach.keys(i, tokens.len());
            let query = head(q, tokens.start + i, h);
            let score = |j: usize| {
                let key = head(k, tokens.start + j, h * kv_heads / heads);
                let product: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                product * f64::from(scale) + bias.map_or(0.0, |bias| f64::from(bias.from(h, i, j)[0]))
            };
            let scores: Vec<f64> = keys.clone().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let values: Vec<Vec<f64>> = keys.map(|j| head(v, tokens.start + j, h * kv_heads / heads)).collect();
            for c in 0..d {
                let y: f64 = weights.iter().zip(&values).map(|(w, v)| w * v[c]).sum();
                out[(tokens.start + i) * width + h * d + c] = (y / sum) as f32;
            }
        }
    }
    Ok(())
}
