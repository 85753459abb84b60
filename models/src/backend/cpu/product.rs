//! Products of rows with packed weights, whatever these are in: by one thread, or by all of them together.

use super::weights::{Matrix, PackedDense, words};
use kernels::launch::columns::Columns;
use kernels::linear::{Activation, Epilogue, linear, linear_columns};
use kernels::linear_int8::{Rows as RowsInt8, linear_int8, linear_int8_columns};
use rayon::prelude::*;

/// Tokens of a task at most: with so many, a layer's intermediate results (128 rows of 1,536: 786 KB) stay near their core, and
/// the weights are read often enough from the cache that reading them costs nothing.
pub(super) const TOKENS_PER_TASK: usize = 128;

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
pub(super) type Product<'p> = dyn Fn(Call<'_>, &mut RowsInt8) -> Result<(), String> + Sync + 'p;

impl<'a> Call<'a> {
    /// Only the bias follows.
    pub(super) fn new(layer: &'a PackedDense, x: &'a [f32], out: &'a mut [f32]) -> Self {
        Self { layer, x, activation: Activation::None, residual: None, out }
    }

    fn epilogue(&self) -> Epilogue<'a> {
        Epilogue { bias: self.layer.bias.as_deref(), activation: self.activation, residual: self.residual }
    }
}

/// By the calling thread.
pub(super) fn alone(call: Call<'_>, int8: &mut RowsInt8) -> Result<(), String> {
    let epilogue = call.epilogue();
    match &call.layer.weights {
        Matrix::Stored(weights) => linear(call.x, weights, &epilogue, call.out),
        Matrix::Int8(weights) => {
            int8.quantize(call.x, weights).and_then(|()| linear_int8(int8, weights, &epilogue, call.out))
        }
    }
    .map_err(words)
}

/// By so many threads of the pool that the caller installed, each of which computes some columns.
pub(super) fn shared(call: Call<'_>, int8: &mut RowsInt8, threads: usize) -> Result<(), String> {
    let (weights, epilogue) = (&call.layer.weights, call.epilogue());
    if let Matrix::Int8(weights) = weights {
        int8.quantize(call.x, weights).map_err(words)?;
    }
    let (shape, int8) = (weights.shape(), &*int8);
    let threads = threads.min(shape.panels());
    let mut tasks = Vec::with_capacity(threads);
    let mut rest = Columns::whole(call.out, shape.outputs());
    for thread in 0..threads {
        let panels = thread * shape.panels() / threads..(thread + 1) * shape.panels() / threads;
        let (mine, others) = rest.split_columns(shape.columns(panels.clone()).len());
        rest = others;
        tasks.push((panels, mine));
    }
    let run = |(panels, out)| match weights {
        Matrix::Stored(weights) => linear_columns(call.x, weights, panels, &epilogue, out),
        Matrix::Int8(weights) => linear_int8_columns(int8, weights, panels, &epilogue, out),
    };
    tasks.into_par_iter().try_for_each(|task| run(task).map_err(words))
}
