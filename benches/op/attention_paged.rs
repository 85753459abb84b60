//! Times attention over keys and values in blocks: one new token over a context, alone and for 16 sequences, and a chunk of a prompt.
//! Shapes come in, a table goes out. For single tokens its column GB/s is that of keys and values; for chunks "of the peak" counts
//! the two products alone.

#![forbid(unsafe_code)]

use std::ops::Range;

use benches::op::{Bench, Ends, Work};
use kernels::attention_paged::{Cache, Kind, Params, Rows, Sequence, Shape, attention_paged, cpu};
use kernels::testing::{Tolerance, normal};

/// Weights sum to 1, so that a result is as exact as the values: one or so.
const TOLERANCE: Tolerance = Tolerance { absolute: 1e-5, relative: 1e-5 };

/// Models whose attention is measured: name, heads of queries, heads of keys. All heads have [`HEAD_DIM`] elements.
const MODELS: &[(&str, usize, usize)] = &[("SmolLM2-135M", 9, 3), ("Qwen2.5-0.5B", 14, 2), ("Llama-3.2-1B", 32, 8)];

const HEAD_DIM: usize = 64;

/// Tokens of a block.
const BLOCK: usize = 16;

/// Sequences, queries of each, and tokens before them.
const STEPS: &[(usize, usize, usize)] =
    &[(1, 1, 127), (1, 1, 1023), (1, 1, 8191), (16, 1, 127), (16, 1, 1023), (16, 1, 8191), (1, 256, 0), (1, 256, 2048)];

fn main() {
    let mut bench = Bench::start("attention_paged");
    for &model in MODELS {
        for kind in [Kind::F32, Kind::F16] {
            for &step in STEPS {
                shape(&mut bench, model, kind, step);
            }
        }
    }
    bench.finish();
}

/// One step of some sequences that are equally long.
fn shape(
    bench: &mut Bench,
    (model, heads, kv_heads): (&str, usize, usize),
    kind: Kind,
    (sequences, queries, before): (usize, usize, usize),
) {
    let (length, width, kv_width) = (before + queries, heads * HEAD_DIM, kv_heads * HEAD_DIM);
    let blocks_each = length.div_ceil(BLOCK);
    let blocks = sequences * blocks_each;
    // Neighbours of a sequence lie far from each other, as in a cache that has been in use for a while.
    let tables: Vec<Vec<u32>> = (0..sequences)
        .map(|sequence| (0..blocks_each).rev().map(|index| (index * sequences + sequence) as u32).collect())
        .collect();
    let mut cache =
        Cache::new(Shape { blocks, block: BLOCK, kv_heads, head_dim: HEAD_DIM }, kind).expect("there is room");
    let numbers = normal(1, 2 * length * kv_width);
    let (keys, values) = numbers.split_at(length * kv_width);
    let rows = |values| Rows { values, stride: kv_width };
    for table in &tables {
        cache.write(table, 0, rows(keys), rows(values), length).expect("the table is long enough");
    }
    let q = normal(2, sequences * queries * width);
    let q = Rows { values: &q, stride: width };
    let step: Vec<Sequence<'_>> = (0..sequences)
        .map(|index| Sequence { queries: index * queries..(index + 1) * queries, table: &tables[index], length })
        .collect();
    let params =
        Params { heads, head_dim: HEAD_DIM, scale: 1.0 / (HEAD_DIM as f32).sqrt(), softcap: None, window: None };

    let seen: usize = (0..queries).map(|query| before + query + 1).sum();
    let bytes = sequences * 2 * length * kv_width * kind.bytes();
    let work = Work {
        shape: format!("{model} {heads}/{kv_heads}x{HEAD_DIM} {kind:?}, {sequences} of {queries} after {before}"),
        // Products of queries and keys, and of weights and values. The exponentials are not counted.
        flops: (4 * sequences * seen * width) as u64,
        // Keys and values read; queries and results are nothing beside them, but in a chunk.
        bytes: bytes as u64,
        working_set: bytes,
    };
    // The first and the last query, each as a step of its own.
    let ends = Ends::new(sequences * queries, width, 1, |rows: Range<usize>| {
        let (sequence, query) = (rows.start / queries, rows.start % queries);
        let one = Sequence { queries: 0..1, table: &tables[sequence], length: before + query + 1 };
        let q = Rows { values: &q.values[rows.start * width..], ..q };
        let mut expected = vec![0.0; width];
        cpu::attention_paged(q, &cache, &[one], &params, &mut expected).expect("the lengths fit");
        expected
    });
    bench.time_ours(
        &work,
        || vec![0.0; sequences * queries * width],
        |y| attention_paged(q, &cache, &step, &params, y).expect("the lengths fit"),
        |who, y| ends.check(who, y, TOLERANCE),
    );
}
