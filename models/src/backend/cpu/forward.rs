//! A batch through an encoder on the CPU: sequences come in side by side, without padding, one vector for each goes out. All
//! threads of the pool that the caller installed take part: with few tokens they share every product, else each has sequences of
//! its own. A sequence's vector is the same to the last bit in any company.
//!
//! A layer is two kinds of steps: attention, whose tasks are heads of sequences, and everything else, whose tasks are runs of
//! tokens, each from the context of one layer to the queries, keys and values of the next.

use super::product::{
    Call, Product, RowsIn8Bits, SHARED_TOKENS, TOKENS_PER_SHARED_TASK, TOKENS_PER_TASK, alone, shared,
};
use super::scratch::{lock, mine};
use super::together::each;
use super::weights::{LayerWeights, NormWeights, Weights, values, words};
use crate::arch::encoder::Encoder;
use crate::backend::packed::{Packed, Pooled};
use crate::engine::Tokens;
use crate::load::checkpoint::Checkpoint;
use kernels::attention::{self, Rows};
use kernels::embed::{self, Term};
use kernels::launch::aligned::Aligned;
use kernels::launch::columns::Columns;
use kernels::{glu, pool, rotary};
use rayon::prelude::*;
use std::sync::Mutex;

/// Memory that is kept between batches.
pub(super) struct Workspace {
    /// Of each group of sequences, of which there are as many as threads.
    groups: Vec<Mutex<Group>>,
    /// Of each thread.
    scratch: Vec<Mutex<Scratch>>,
}

/// What a group's tokens are turned into.
#[derive(Default)]
struct Group {
    /// `[t, h]`
    x: Aligned,
    /// `[t, queries + keys + values]`
    qkv: Aligned,
    /// `[t, queries]`
    context: Aligned,
}

/// Memory that a thread keeps.
#[derive(Default)]
struct Scratch {
    attention: attention::Scratch,
    /// `[rows, h]`
    rows: Aligned,
    /// `[rows, f]`, twice as wide before a gate.
    inner: Aligned,
    gated: Aligned,
    /// The input of a product in 8 bits.
    int8: RowsIn8Bits,
}

impl Workspace {
    /// For a pool of so many threads.
    pub(super) fn new(threads: usize) -> Self {
        Self {
            groups: (0..threads).map(|_| Mutex::default()).collect(),
            scratch: (0..threads).map(|_| Mutex::default()).collect(),
        }
    }
}

/// What a batch is run with.
pub(super) struct Forward<'a> {
    pub(super) encoder: &'a Encoder,
    pub(super) weights: &'a Weights,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) threads: usize,
}

type Result<T> = std::result::Result<T, String>;

impl Forward<'_> {
    /// One vector per sequence, which have been checked against the encoder's bounds.
    pub(super) fn run(&self, sequences: &[&Tokens], workspace: &Workspace) -> Result<Vec<Vec<f32>>> {
        let Workspace { groups, scratch } = workspace;
        let tokens = count(sequences);
        // With few tokens all threads share the columns of every product, because reading the weights takes the time.
        if tokens <= SHARED_TOKENS * self.threads {
            return self.group(sequences, &mut lock(&groups[0]), scratch, tokens, &|call, int8| {
                shared(call, int8, self.threads)
            });
        }
        // Else every thread has sequences of its own, and waits for no other until the end. Who is done first takes over
        // tasks of the others, so that one long sequence is shared, too.
        let (members, all) = (divide(sequences, groups.len()), sequences.len());
        let results = members.par_iter().zip(groups).map(|(members, group)| {
            let sequences: Vec<&Tokens> = members.iter().map(|member| sequences[*member]).collect();
            let chunk = self.chunk(count(&sequences), members.len() == all);
            self.group(&sequences, &mut lock(group), scratch, chunk, &alone)
        });
        let results: Vec<Vec<Vec<f32>>> = results.collect::<Result<_>>()?;
        let mut vectors = vec![vec![]; sequences.len()];
        for (member, vector) in members.iter().flatten().zip(results.into_iter().flatten()) {
            vectors[*member] = vector;
        }
        Ok(vectors)
    }

    /// The same on the calling thread of the pool, beside others that do so. Threads without work help.
    pub(super) fn run_side(&self, sequences: &[&Tokens], workspace: &Workspace) -> Result<Vec<Vec<f32>>> {
        let chunk = self.chunk(count(sequences), false);
        self.group(sequences, &mut mine(&workspace.groups), &workspace.scratch, chunk, &alone)
    }

    /// The sequences of one group, in tasks of at most `chunk` tokens.
    fn group(
        &self,
        sequences: &[&Tokens],
        group: &mut Group,
        scratch: &[Mutex<Scratch>],
        chunk: usize,
        product: &Product<'_>,
    ) -> Result<Vec<Vec<f32>>> {
        if sequences.is_empty() {
            return Ok(vec![]);
        }
        let batch = Packed::new(sequences, self.encoder.bounds.types);
        let (t, h, heads) = (batch.ids.len(), self.encoder.hidden, &self.encoder.heads);
        let x = group.x.at_least(t * h);
        let qkv = group.qkv.at_least(t * heads.width());
        let context = group.context.at_least(t * heads.query_width());

        self.embed(&batch, chunk, x)?;
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let before = index.checked_sub(1).map(|before| &self.weights.layers[before]);
            let parts = x.chunks_mut(chunk * h).zip(qkv.chunks_mut(chunk * heads.width()));
            let parts = parts.zip(context.chunks(chunk * heads.query_width())).zip(batch.positions.chunks(chunk));
            each(parts.collect(), |(((x, qkv), context), positions)| {
                let scratch = &mut *mine(scratch);
                if let Some(before) = before {
                    self.after_attention(before, context, x, scratch, product)?;
                }
                self.before_attention(layer, x, positions, qkv, scratch, product)
            })?;
            self.attention(layer, &batch.cu_seqlens, qkv, context, scratch)?;
        }
        if let Some(last) = self.weights.layers.last() {
            let parts = x.chunks_mut(chunk * h).zip(context.chunks(chunk * heads.query_width()));
            each(parts.collect(), |(x, context)| self.after_attention(last, context, x, &mut mine(scratch), product))?;
        }
        self.pool(&batch, x)
    }

    /// Tokens of a task of a group: none too large, all alike, and where there is but one group a task or more for every
    /// thread.
    fn chunk(&self, tokens: usize, is_only: bool) -> usize {
        let (threads, most) = if is_only { (self.threads, TOKENS_PER_SHARED_TASK) } else { (1, TOKENS_PER_TASK) };
        let tasks = threads * tokens.div_ceil(threads * most).max(1);
        tokens.div_ceil(tasks).max(1)
    }

    fn embed(&self, batch: &Packed, chunk: usize, x: &mut [f32]) -> Result<()> {
        let embeddings = &self.encoder.embeddings;
        let table = |slice| values(slice, self.checkpoint).map_err(words);
        let words_table = table(&embeddings.words)?;
        let positions = match (&embeddings.positions, batch.rows(embeddings)) {
            (Some(positions), Some(rows)) => Some((table(&positions.table)?, rows)),
            _ => None,
        };
        let types = embeddings.types.as_ref().map(table).transpose()?;
        let h = self.encoder.hidden;
        each(x.chunks_mut(chunk * h).enumerate().collect(), |(index, x)| {
            let tokens = index * chunk..index * chunk + x.len() / h;
            let mut terms = vec![Term { table: words_table, indices: &batch.ids[tokens.clone()] }];
            terms
                .extend(positions.as_ref().map(|(table, rows)| Term { table: *table, indices: &rows[tokens.clone()] }));
            terms.extend(types.map(|table| Term { table, indices: &batch.types[tokens] }));
            embed::embed(&terms, h, None, x).map_err(words)?;
            normalise(self.weights.embedding_norm.as_ref(), x)
        })
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
        let heads = &self.encoder.heads;
        let input = normalised(layer.attention_norm.as_ref(), x, &mut scratch.rows)?;
        product(Call::new(&layer.qkv, input, qkv), &mut scratch.int8)?;
        let (q, k) = (heads.query_width(), heads.keys * heads.dim);
        if let Some((of_queries, of_keys)) = &layer.head_norms {
            for row in qkv.chunks_exact_mut(heads.width()) {
                of_queries.apply(&mut row[..q])?;
                of_keys.apply(&mut row[q..q + k])?;
            }
        }
        match layer.description.rotary {
            Some(index) => {
                rotary::rotary(qkv, heads.width(), q + k, positions, &self.weights.rotaries[index]).map_err(words)
            }
            None => Ok(()),
        }
    }

    /// Every head of every sequence looks at its keys.
    fn attention(
        &self,
        layer: &LayerWeights,
        cu_seqlens: &[u32],
        qkv: &[f32],
        context: &mut [f32],
        scratch: &[Mutex<Scratch>],
    ) -> Result<()> {
        let heads = &self.encoder.heads;
        let params = attention::Params {
            cu_seqlens,
            heads: heads.queries,
            kv_heads: heads.keys,
            head_dim: heads.dim,
            scale: heads.scale,
            reach: layer.description.reach,
            bias: self.weights.bias.as_ref(),
        };
        let rows = |first: usize| Rows { values: &qkv[first..], stride: heads.width() };
        let (q, k) = (heads.query_width(), heads.keys * heads.dim);
        let tasks = self.attention_tasks(cu_seqlens, context);
        each(tasks, |(sequence, of_heads, out)| {
            let scratch = &mut mine(scratch).attention;
            attention::attention_part(rows(0), rows(q), rows(q + k), &params, sequence, of_heads, scratch, out)
                .map_err(words)
        })
    }

    /// A task is all heads of a sequence where there are many sequences, else some of them; the longest sequences come first, so
    /// that threads finish together. Heads that share keys stay together.
    fn attention_tasks<'c>(
        &self,
        cu_seqlens: &[u32],
        context: &'c mut [f32],
    ) -> Vec<(usize, std::ops::Range<usize>, Columns<'c>)> {
        let heads = &self.encoder.heads;
        let sequences = cu_seqlens.len() - 1;
        let group = heads.queries / heads.keys;
        let parts = (4 * self.threads).div_ceil(sequences.max(1)).min(heads.keys);
        let mut tasks = Vec::with_capacity(sequences * parts);
        let mut rest = Columns::whole(context, heads.query_width());
        for sequence in 0..sequences {
            let length = cu_seqlens[sequence + 1] - cu_seqlens[sequence];
            let (mut mine, others) = rest.split_rows(length as usize);
            rest = others;
            let mut first = 0;
            for part in 0..parts {
                let end = (part + 1) * heads.keys / parts * group;
                let (columns, others) = mine.split_columns((end - first) * heads.dim);
                mine = others;
                tasks.push((sequence, first..end, columns));
                first = end;
            }
        }
        tasks.sort_by_key(|(_, _, columns)| std::cmp::Reverse(columns.rows()));
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
        let rows = x.len() / self.encoder.hidden;
        let Scratch { rows: sums, inner, gated, int8, .. } = scratch;
        let sums = sums.at_least(x.len());
        product(Call { residual: Some(x), ..Call::new(&layer.attention_out, context, sums) }, int8)?;
        normalise(layer.attention_norm_after.as_ref(), sums)?;
        x.copy_from_slice(sums);

        let input = match &layer.feed_forward_norm {
            Some(norm) => {
                norm.apply(sums)?;
                &*sums
            }
            None => &*x,
        };
        let description = &layer.description;
        let up = inner.at_least(rows * description.up.outputs);
        let width = description.down.inputs;
        let inner = if description.gated {
            product(Call::new(&layer.up, input, up), int8)?;
            let gated = gated.at_least(rows * width);
            glu::glu(up, width, description.activation, gated).map_err(words)?;
            &*gated
        } else {
            product(Call { activation: description.activation, ..Call::new(&layer.up, input, up) }, int8)?;
            &*up
        };
        product(Call { residual: Some(x), ..Call::new(&layer.down, inner, sums) }, int8)?;
        normalise(layer.feed_forward_norm_after.as_ref(), sums)?;
        x.copy_from_slice(sums);
        Ok(())
    }

    /// One vector per sequence, through the head's steps.
    fn pool(&self, batch: &Packed, x: &mut [f32]) -> Result<Vec<Vec<f32>>> {
        let h = self.encoder.hidden;
        normalise(self.weights.norm.as_ref(), x)?;
        let cu_seqlens = batch.cu_seqlens.as_slice();
        let sequences = cu_seqlens.len() - 1;
        let mut vectors = vec![0.0; sequences * h];
        match batch.pooled(&self.encoder.head) {
            Pooled::Kind(kind) => {
                let params = pool::Params { cu_seqlens, dim: h, kind, norm: pool::Norm::None };
                pool::pool(x, &params, &mut vectors).map_err(words)?;
            }
            Pooled::Tokens(tokens) => {
                for (token, vector) in tokens.into_iter().zip(vectors.chunks_exact_mut(h)) {
                    vector.copy_from_slice(&x[token as usize * h..][..h]);
                }
            }
        }
        for step in &self.weights.steps {
            let mut next = vec![0.0; sequences * step.dense.weights.outputs()];
            let call = Call { activation: step.activation, ..Call::new(&step.dense, &vectors, &mut next) };
            shared(call, &mut RowsIn8Bits::default(), self.threads)?;
            normalise(step.norm.as_ref(), &mut next)?;
            vectors = next;
        }
        Ok(vectors.chunks_exact(self.encoder.bounds.vector).map(<[f32]>::to_vec).collect())
    }
}

/// Divides sequences into groups of nearly the same work, the longest first and each to the group that has the least.
fn divide(sequences: &[&Tokens], groups: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sequences.len()).collect();
    order.sort_by_key(|member| std::cmp::Reverse(sequences[*member].ids.len()));
    let mut divided = vec![(0, vec![]); groups];
    for member in order {
        let (work, members) = divided.iter_mut().min_by_key(|(work, _)| *work).expect("a pool has a thread");
        *work += sequences[member].ids.len();
        members.push(member);
    }
    divided.into_iter().map(|(_, members)| members).collect()
}

fn count(sequences: &[&Tokens]) -> usize {
    sequences.iter().map(|tokens| tokens.ids.len()).sum()
}

fn normalise(norm: Option<&NormWeights>, rows: &mut [f32]) -> Result<()> {
    norm.map_or(Ok(()), |norm| norm.apply(rows))
}

/// The rows, or a normalised copy of them.
fn normalised<'a>(norm: Option<&NormWeights>, rows: &'a [f32], copy: &'a mut Aligned) -> Result<&'a [f32]> {
    let Some(norm) = norm else { return Ok(rows) };
    let copy = copy.at_least(rows.len());
    copy.copy_from_slice(rows);
    norm.apply(copy)?;
    Ok(copy)
}
