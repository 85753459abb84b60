//! One step of a decoder on the CPU: runs of tokens of several sequences come in side by side, their keys and values go into the
//! cache, a row of logits comes out for each run that asks. All threads of the pool that the caller installed take part: with few
//! tokens they share every product, else each has tokens of its own. A sequence's logits are the same to the last bit in any company.

use super::super::product::{Call, Product, RowsIn8Bits, SHARED_TOKENS, TOKENS_PER_TASK, alone, shared};
use super::super::scratch::mine;
use super::super::together::each;
use super::super::weights::{NormWeights, PackedDense, words};
use super::weights::{LayerWeights, Weights, Words};
use crate::arch::decoder::Decoder;
use crate::load::checkpoint::Checkpoint;
use kernels::attention::Rows;
use kernels::attention_paged::{self, Cache, Params, Sequence};
use kernels::launch::aligned::Aligned;
use kernels::launch::columns::Columns;
use kernels::{glu, rotary};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;

/// Some tokens of one sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run<'a> {
    /// At least one.
    pub(super) tokens: &'a [u32],
    /// Position of the first of them; the sequence's earlier tokens are in the cache.
    pub(super) first: usize,
    /// The sequence's blocks, in order.
    pub(super) table: &'a [u32],
    /// Whether logits are asked for, those behind the last token.
    pub(super) is_asked: bool,
}

/// Memory that is kept between steps.
pub(super) struct Workspace {
    /// `[t, h]`
    x: Aligned,
    /// `[t, queries + keys + values]`
    qkv: Aligned,
    /// `[t, queries]`
    context: Aligned,
    /// `[asked, h]`
    last: Aligned,
    /// `[asked, vocabulary]`
    logits: Aligned,
    scratch: Vec<Mutex<Scratch>>,
}

/// Memory that a thread keeps.
#[derive(Default)]
struct Scratch {
    attention: attention_paged::Scratch,
    /// `[rows, h]`
    rows: Aligned,
    /// `[rows, 2 f]`
    inner: Aligned,
    /// `[rows, f]`
    gated: Aligned,
    int8: RowsIn8Bits,
}

impl Workspace {
    /// For a pool of so many threads.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            x: Aligned::default(),
            qkv: Aligned::default(),
            context: Aligned::default(),
            last: Aligned::default(),
            logits: Aligned::default(),
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }
}

/// What a step is run with.
pub(super) struct Forward<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) weights: &'a Weights,
    pub(super) checkpoint: &'a Checkpoint,
    /// One for each layer.
    pub(super) caches: &'a mut [Cache],
    pub(super) threads: usize,
}

type Result<T> = std::result::Result<T, String>;

impl Forward<'_> {
    /// `[asked, vocabulary]`, in the order of the runs that ask. The runs have been checked against the model's bounds.
    pub(super) fn run<'w>(&mut self, runs: &[Run<'_>], workspace: &'w mut Workspace) -> Result<&'w mut [f32]> {
        let Workspace { x, qkv, context, last, logits, scratch } = workspace;
        let ids: Vec<u32> = runs.iter().flat_map(|run| run.tokens).copied().collect();
        let positions: Vec<u32> =
            runs.iter().flat_map(|run| run.first as u32..(run.first + run.tokens.len()) as u32).collect();
        let (t, h, heads) = (ids.len(), self.decoder.hidden, self.decoder.heads);
        let (x, qkv) = (x.at_least(t * h), qkv.at_least(t * heads.width()));
        let context = context.at_least(t * heads.query_width());
        let are_few = t <= SHARED_TOKENS * self.threads;
        let chunk = if are_few { t } else { t.div_ceil(self.threads).min(TOKENS_PER_TASK) };
        let threads = self.threads;
        let by_all = |call: Call<'_>, int8: &mut RowsIn8Bits| shared(call, int8, threads);
        let product: &Product<'_> = if are_few { &by_all } else { &alone };

        self.embed(&ids, x)?;
        for index in 0..self.weights.layers.len() {
            let layer = &self.weights.layers[index];
            let before = index.checked_sub(1).map(|before| &self.weights.layers[before]);
            let parts = x.chunks_mut(chunk * h).zip(qkv.chunks_mut(chunk * heads.width()));
            let parts = parts.zip(context.chunks(chunk * heads.query_width())).zip(positions.chunks(chunk));
            each(parts.collect(), |(((x, qkv), context), positions)| {
                let scratch = &mut *mine(scratch);
                if let Some(before) = before {
                    self.after_attention(before, context, x, scratch, product)?;
                }
                self.before_attention(layer, x, positions, qkv, scratch, product)
            })?;
            self.keep(index, runs, qkv)?;
            self.attention(index, runs, qkv, context, scratch)?;
        }
        if let Some(layer) = self.weights.layers.last() {
            let parts = x.chunks_mut(chunk * h).zip(context.chunks(chunk * heads.query_width()));
            each(parts.collect(), |(x, context)| self.after_attention(layer, context, x, &mut mine(scratch), product))?;
        }
        self.logits(runs, x, last, logits)
    }

    fn embed(&self, ids: &[u32], x: &mut [f32]) -> Result<()> {
        let table = Words::of(&self.decoder.words, self.checkpoint).map_err(words)?;
        table.vectors(ids, self.decoder.hidden, x)?;
        if self.decoder.words_scale != 1.0 {
            x.iter_mut().for_each(|value| *value *= self.decoder.words_scale);
        }
        Ok(())
    }

    /// Queries, keys and values of some tokens.
    fn before_attention(
        &self,
        layer: &LayerWeights,
        x: &[f32],
        positions: &[u32],
        qkv: &mut [f32],
        scratch: &mut Scratch,
        product: &Product<'_>,
    ) -> Result<()> {
        let heads = self.decoder.heads;
        let input = normalised(&layer.attention_norm, x, &mut scratch.rows)?;
        product(Call::new(&layer.qkv, input, qkv), &mut scratch.int8)?;
        let (q, k) = (heads.query_width(), heads.keys * heads.dim);
        if let Some((of_queries, of_keys)) = &layer.head_norms {
            for row in qkv.chunks_exact_mut(heads.width()) {
                of_queries.apply(&mut row[..q])?;
                of_keys.apply(&mut row[q..q + k])?;
            }
        }
        let table = &self.weights.rotaries[layer.description.rotary];
        rotary::rotary(qkv, heads.width(), q + k, positions, table).map_err(words)
    }

    /// Puts keys and values into the cache.
    fn keep(&mut self, layer: usize, runs: &[Run<'_>], qkv: &[f32]) -> Result<()> {
        let heads = self.decoder.heads;
        let (q, k, width) = (heads.query_width(), heads.keys * heads.dim, heads.width());
        let mut first = 0;
        for run in runs {
            let rows = |column: usize| Rows { values: &qkv[first * width + column..], stride: width };
            let tokens = run.tokens.len();
            self.caches[layer].write(run.table, run.first, rows(q), rows(q + k), tokens).map_err(words)?;
            first += tokens;
        }
        Ok(())
    }

    /// Every head of every run looks at its sequence's keys.
    fn attention(
        &self,
        layer: usize,
        runs: &[Run<'_>],
        qkv: &[f32],
        context: &mut [f32],
        scratch: &[Mutex<Scratch>],
    ) -> Result<()> {
        let heads = self.decoder.heads;
        let params = Params {
            heads: heads.queries,
            head_dim: heads.dim,
            scale: heads.scale,
            softcap: self.decoder.attention_softcap,
            window: self.weights.layers[layer].description.window,
        };
        let q = Rows { values: qkv, stride: heads.width() };
        let cache = &self.caches[layer];
        let tasks = self.attention_tasks(runs, context);
        each(tasks, |(sequence, of_heads, out)| {
            let scratch = &mut mine(scratch).attention;
            attention_paged::attention_paged_part(q, cache, &sequence, &params, of_heads, scratch, out).map_err(words)
        })
    }

    /// A task is the heads of a run that share keys, or several such groups where there are many runs; the longest come first, so
    /// that threads finish together.
    fn attention_tasks<'r, 'c>(
        &self,
        runs: &[Run<'r>],
        context: &'c mut [f32],
    ) -> Vec<(Sequence<'r>, Range<usize>, Columns<'c>)> {
        let heads = self.decoder.heads;
        let group = heads.queries / heads.keys;
        let parts = (4 * self.threads).div_ceil(runs.len().max(1)).min(heads.keys);
        let mut tasks = Vec::with_capacity(runs.len() * parts);
        let mut rest = Columns::whole(context, heads.query_width());
        let mut row = 0;
        for run in runs {
            let (mut mine, others) = rest.split_rows(run.tokens.len());
            rest = others;
            let queries = row..row + run.tokens.len();
            row = queries.end;
            let mut first = 0;
            for part in 0..parts {
                let end = (part + 1) * heads.keys / parts * group;
                let (columns, others) = mine.split_columns((end - first) * heads.dim);
                mine = others;
                let length = run.first + run.tokens.len();
                let sequence = Sequence { queries: queries.clone(), table: run.table, length };
                tasks.push((sequence, first..end, columns));
                first = end;
            }
        }
        tasks.sort_by_key(|(sequence, ..)| std::cmp::Reverse(sequence.queries.len() * sequence.length));
        tasks
    }

    /// From the context of some tokens to the end of their layer.
    fn after_attention(
        &self,
        layer: &LayerWeights,
        context: &[f32],
        x: &mut [f32],
        scratch: &mut Scratch,
        product: &Product<'_>,
    ) -> Result<()> {
        let Scratch { rows, inner, gated, int8, .. } = scratch;
        let count = x.len() / self.decoder.hidden;
        let sums = rows.at_least(x.len());
        add(&layer.attention_out, context, layer.attention_norm_after.as_ref(), x, sums, int8, product)?;

        sums.copy_from_slice(x);
        layer.feed_forward_norm.apply(sums)?;
        let description = &layer.description;
        let up = inner.at_least(count * description.up.outputs);
        product(Call::new(&layer.up, sums, up), int8)?;
        let gated = gated.at_least(count * description.down.inputs);
        glu::glu(up, description.down.inputs, description.activation, gated).map_err(words)?;
        add(&layer.down, gated, layer.feed_forward_norm_after.as_ref(), x, sums, int8, product)
    }

    /// Logits of the runs that ask.
    fn logits<'w>(
        &self,
        runs: &[Run<'_>],
        x: &[f32],
        last: &mut Aligned,
        logits: &'w mut Aligned,
    ) -> Result<&'w mut [f32]> {
        let (h, vocabulary) = (self.decoder.hidden, self.decoder.vocabulary());
        let asked = runs.iter().filter(|run| run.is_asked).count();
        let (last, logits) = (last.at_least(asked * h), logits.at_least(asked * vocabulary));
        let (mut end, mut rows) = (0, last.chunks_exact_mut(h));
        for run in runs {
            end += run.tokens.len();
            if run.is_asked
                && let Some(row) = rows.next()
            {
                row.copy_from_slice(&x[(end - 1) * h..end * h]);
            }
        }
        if asked == 0 {
            return Ok(logits);
        }
        self.weights.norm.apply(last)?;
        shared(Call::new(&self.weights.output, last, logits), &mut RowsIn8Bits::default(), self.threads)?;
        if let Some(cap) = self.decoder.output_softcap {
            logits.par_iter_mut().with_min_len(4096).for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        Ok(logits)
    }
}

/// `x += norm(y Wᵀ)`; `sums` is as long as `x`.
fn add(
    layer: &PackedDense,
    y: &[f32],
    norm: Option<&NormWeights>,
    x: &mut [f32],
    sums: &mut [f32],
    int8: &mut RowsIn8Bits,
    product: &Product<'_>,
) -> Result<()> {
    let Some(norm) = norm else {
        product(Call { residual: Some(x), ..Call::new(layer, y, sums) }, int8)?;
        x.copy_from_slice(sums);
        return Ok(());
    };
    product(Call::new(layer, y, sums), int8)?;
    norm.apply(sums)?;
    x.iter_mut().zip(sums).for_each(|(x, sum)| *x += *sum);
    Ok(())
}

/// A normalised copy of rows.
fn normalised<'a>(norm: &NormWeights, rows: &[f32], copy: &'a mut Aligned) -> Result<&'a [f32]> {
    let copy = copy.at_least(rows.len());
    copy.copy_from_slice(rows);
    norm.apply(copy)?;
    Ok(copy)
}
