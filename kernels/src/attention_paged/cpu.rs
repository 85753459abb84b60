//! The oracle: keys and values gathered by table, attention as the formula says it, in f64, every score at once. What
//! `attention_paged` takes comes in and goes out. Never fast.

use half::{bf16, f16};

use super::cache::Element;
use super::{Cache, Error, Kind, Params, Rows, Sequence, Task, check_all};

/// What [`super::attention_paged`] computes, one element after the other in f64, rounded to f32 at the end.
///
/// # Shapes
/// As [`super::attention_paged`].
///
/// # Errors
/// As [`super::attention_paged`].
pub fn attention_paged(
    q: Rows<'_>,
    cache: &Cache,
    sequences: &[Sequence<'_>],
    params: &Params,
    out: &mut [f32],
) -> Result<(), Error> {
    let width = check_all(q, cache, sequences, params, out)?;
    let &Params { heads, head_dim: d, scale, softcap, .. } = params;
    for sequence in sequences {
        let task = Task { q, cache, sequence, params, heads: 0..heads };
        for h in 0..heads {
            let (keys, values) = gathered(cache, sequence, h * cache.shape().kv_heads / heads);
            for (i, row) in sequence.queries.clone().enumerate() {
                let query = &q.values[row * q.stride + h * d..][..d];
                let seen = task.keys(i);
                let score = |j: usize| {
                    let product: f64 = query.iter().zip(&keys[j]).map(|(q, k)| f64::from(*q) * k).sum();
                    let score = product * f64::from(scale);
                    softcap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
                };
                let scores: Vec<f64> = seen.clone().map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let sum: f64 = weights.iter().sum();
                for (c, out) in out[row * width + h * d..][..d].iter_mut().enumerate() {
                    let y: f64 = weights.iter().zip(&values[seen.clone()]).map(|(w, v)| w * v[c]).sum();
                    *out = (y / sum) as f32;
                }
            }
        }
    }
    Ok(())
}

/// All keys and values of a sequence's head.
fn gathered(cache: &Cache, sequence: &Sequence<'_>, head: usize) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    match cache.kind() {
        Kind::F32 => gathered_as::<f32>(cache, sequence, head),
        Kind::F16 => gathered_as::<f16>(cache, sequence, head),
        Kind::Bf16 => gathered_as::<bf16>(cache, sequence, head),
    }
}

fn gathered_as<E: Element>(cache: &Cache, sequence: &Sequence<'_>, head: usize) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let shape = cache.shape();
    let number = |x: &E| f64::from(x.to_f32());
    let one = |position: usize| {
        let (block, offset) = (sequence.table[position / shape.block], position % shape.block);
        let keys = &cache.keys::<E>()[shape.keys_of(block, head)..];
        let values = &cache.values::<E>()[shape.values_of(block, head) + offset * shape.value_stride()..];
        let key = (0..shape.head_dim).map(|c| number(&keys[c * shape.block + offset])).collect();
        (key, values[..shape.head_dim].iter().map(number).collect())
    };
    (0..sequence.length).map(one).unzip()
}
