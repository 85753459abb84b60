//! Products of rows with packed weights, whatever these are in: by one thread, or by all of them together.

use super::together::each;
use super::weights::{Matrix, PackedDense, words};
use kernels::launch::columns::Columns;
use kernels::linear::{Activation, Epilogue, linear_columns};
use kernels::linear_int8::{self, linear_int8_columns};
use kernels::linear_quantized::{self, Blocks, linear_quantized_columns};
use std::ops::Range;

/// Tokens of a task at most: with so many, a layer's intermediate results (128 rows of 1,536: 786 KB) stay near their core, and
/// the weights are read often enough from the cache that reading them costs nothing.
pub(super) const TOKENS_PER_TASK: usize = 128;

/// The same where all threads wait for the tasks of one group: smaller, so that they end together, also on a machine where one core is
/// slower for a moment than another. Reading the weights more often costs less than waiting.
pub(super) const TOKENS_PER_SHARED_TASK: usize = 48;

/// Tokens of a batch, for each thread, up to which threads share the columns of every product instead of the rows: with so few
/// rows reading the weights takes the time, and so each thread reads its part of them once.
pub(super) const SHARED_TOKENS: usize = 48;

/// A product with what follows it.
pub(super) struct Call<'a> {
    pub(super) layer: &'a PackedDense,
    pub(super) x: &'a [f32],
    pub(super) activation: Activation,
    pub(super) residual: Option<&'a [f32]>,
    pub(super) out: &'a mut [f32],
}

/// How a product is computed: by the calling thread alone, or by all. The second argument is memory for the input in 8 bits.
pub(super) type Product<'p> = dyn Fn(Call<'_>, &mut RowsIn8Bits) -> Result<(), String> + Sync + 'p;

/// A product's input in 8 bits, in the ways in which weights take it.
#[derive(Default)]
pub(super) struct RowsIn8Bits {
    /// With a scale for a row.
    whole: linear_int8::Rows,
    /// With a scale for 32 inputs, and for 256.
    blocks: [linear_quantized::Rows; 2],
}

/// Which of the two.
fn size_class(blocks: Blocks) -> usize {
    usize::from(blocks.elements() != 32)
}

impl RowsIn8Bits {
    /// Puts an input into 8 bits in every way in which these weights take it.
    fn fill(&mut self, x: &[f32], weights: &Matrix) -> Result<(), String> {
        let mut is_filled = [false; 2];
        for piece in weights.pieces() {
            match piece {
                Matrix::Stored(_) | Matrix::Joined(_) => {}
                Matrix::Int8(weights) => self.whole.quantize(x, weights).map_err(words)?,
                Matrix::Blocks(weights) => {
                    let class = size_class(weights.blocks());
                    if !std::mem::replace(&mut is_filled[class], true) {
                        self.blocks[class].quantize(x, weights).map_err(words)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl<'a> Call<'a> {
    /// Only the bias follows.
    pub(super) fn new(layer: &'a PackedDense, x: &'a [f32], out: &'a mut [f32]) -> Self {
        Self { layer, x, activation: Activation::None, residual: None, out }
    }

    /// The same for a shorter time.
    fn reborrow(&mut self) -> Call<'_> {
        Call { out: &mut *self.out, ..*self }
    }

    /// What so many threads do, each its own columns of every piece of the weights.
    fn tasks(self, threads: usize) -> Vec<Vec<Task<'a>>> {
        let Call { layer, activation, out, .. } = self;
        let pieces = layer.weights.pieces();
        let mut tasks: Vec<Vec<Task<'a>>> = (0..threads).map(|_| Vec::with_capacity(pieces.len())).collect();
        let mut rest = Columns::whole(out, layer.weights.outputs());
        let mut first = 0;
        for piece in pieces {
            let outputs = piece.outputs();
            let bias = layer.bias.as_deref().map(|bias| &bias[first..first + outputs]);
            first += outputs;
            // What is added to the outputs of all pieces has rows of all of them.
            let residual = self.residual.filter(|_| pieces.len() == 1);
            let epilogue = Epilogue { bias, activation, residual };
            let panels = piece.shape().map_or(0, |shape| shape.panels());
            for (thread, tasks) in tasks.iter_mut().enumerate() {
                let panels = thread * panels / threads..(thread + 1) * panels / threads;
                let columns = piece.shape().map_or(0, |shape| shape.columns(panels.clone()).len());
                let (out, others) = rest.split_columns(columns);
                rest = others;
                if columns > 0 {
                    tasks.push(Task { piece, panels, epilogue, out });
                }
            }
        }
        tasks
    }
}

/// Some columns of a product.
struct Task<'a> {
    /// Never joined.
    piece: &'a Matrix,
    panels: Range<usize>,
    epilogue: Epilogue<'a>,
    out: Columns<'a>,
}

impl Task<'_> {
    fn run(self, x: &[f32], rows: &RowsIn8Bits) -> Result<(), String> {
        let Task { piece, panels, epilogue, out } = self;
        match piece {
            Matrix::Stored(weights) => linear_columns(x, weights, panels, &epilogue, out).map_err(words),
            Matrix::Int8(weights) => linear_int8_columns(&rows.whole, weights, panels, &epilogue, out).map_err(words),
            Matrix::Blocks(weights) => {
                let rows = &rows.blocks[size_class(weights.blocks())];
                linear_quantized_columns(rows, weights, panels, &epilogue, out).map_err(words)
            }
            Matrix::Joined(_) => Err("a piece of weights is itself joined".into()),
        }
    }
}

/// By the calling thread.
pub(super) fn alone(call: Call<'_>, rows: &mut RowsIn8Bits) -> Result<(), String> {
    run(call, rows, 1)
}

/// By so many threads of the pool that the caller installed, each of which computes some columns.
pub(super) fn shared(call: Call<'_>, rows: &mut RowsIn8Bits, threads: usize) -> Result<(), String> {
    run(call, rows, threads)
}

fn run(mut call: Call<'_>, rows: &mut RowsIn8Bits, threads: usize) -> Result<(), String> {
    let (x, weights) = (call.x, &call.layer.weights);
    rows.fill(x, weights)?;
    let rows = &*rows;
    let panels = weights.pieces().iter().filter_map(Matrix::shape).map(|shape| shape.panels()).max();
    let threads = threads.min(panels.unwrap_or(1)).max(1);
    let apart = call.residual.filter(|_| weights.pieces().len() > 1);
    let tasks = call.reborrow().tasks(threads);
    each(tasks, |tasks| tasks.into_iter().try_for_each(|task| task.run(x, rows)))?;
    if let Some(residual) = apart {
        call.out.iter_mut().zip(residual).for_each(|(out, residual)| *out += residual);
    }
    Ok(())
}
