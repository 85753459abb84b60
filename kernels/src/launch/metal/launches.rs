//! How the ops' Metal code is launched: an op's sizes come in, with whatever stands for its buffers; everything that an encoder of
//! commands is told goes out, as the head of the op's source says it. Never a device: tests run the sources on a CPU by these same
//! descriptions.

use super::{MODULES, Module};
use crate::attention::Reach;
use crate::linear::Activation;
use crate::pool::{Kind, Norm};

/// Threadgroups in a grid's second dimension at most, where functions stride over rows: as many as CUDA has.
const ROWS_AT_ONCE: u32 = 65_535;
/// Columns of a threadgroup whose threads have one each.
const COLUMNS: u32 = 256;
/// Rows of a threadgroup whose SIMD-groups have one each, and its threads.
const ROWS_OF_SIMD_GROUPS: u32 = 4;
const THREADS_OF_SIMD_GROUPS: u32 = 128;
/// Queries of a threadgroup of attention, and its threads.
const QUERIES: u32 = 64;
const THREADS_OF_QUERIES: u32 = 128;
/// What attention is compiled for: heads of at most so many elements.
const WIDTHS: [usize; 4] = [32, 64, 128, 256];
/// Attention reads and writes so many elements at a time.
const ELEMENTS_AT_ONCE: usize = 4;

/// A type of elements that the Metal code is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE 754.
    F16,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Type::F32 => "f32",
            Type::F16 => "f16",
        }
    }
}

/// What cannot be launched.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A size does not fit the numbers that the sources count with.
    #[error("{op}: {count} {what} are more than the Metal code counts ({}); make the batch smaller", u32::MAX)]
    TooMany {
        /// The op.
        op: &'static str,
        /// What there is too much of.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// Attention's functions are for other heads.
    #[error(
        "attention: the Metal code takes heads of up to 256 elements, in steps of 4, in rows with strides in steps of 4, not heads of \
         {head_dim} in rows of {strides:?}; take the op's plain steps for them"
    )]
    Heads {
        /// Elements of a head.
        head_dim: usize,
        /// Strides of queries, keys and values.
        strides: [usize; 3],
    },
}

/// One launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch<B> {
    /// Where the function is.
    pub module: &'static Module,
    /// The function.
    pub function: &'static str,
    /// What stands for each of the module's buffers, from index 0 on.
    pub buffers: Vec<B>,
    /// The struct of parameters, at the index behind the buffers: whole numbers, and f32 by their bits.
    pub params: Vec<u32>,
    /// Threadgroups in each dimension. Where there are none in one, there is nothing to launch.
    pub groups: [u32; 3],
    /// Threads of a threadgroup, in its first dimension.
    pub threads: u32,
}

impl<B> Launch<B> {
    /// A launch of `op`'s function whose name ends so.
    fn new(
        op: &'static str,
        ending: &str,
        buffers: Vec<B>,
        params: Vec<u32>,
        (groups, threads): ([u32; 3], u32),
    ) -> Self {
        let module = MODULES.iter().find(|module| module.op == op).expect("the list has every op with Metal code");
        let is_it = |name: &&&str| name[op.len()..].strip_prefix('_') == Some(ending);
        let function = module.functions.iter().find(is_it).expect("there is a function for every type");
        Self { module, function, buffers, params, groups, threads }
    }
}

fn count(op: &'static str, what: &'static str, count: usize) -> Result<u32, Error> {
    u32::try_from(count).map_err(|_| Error::TooMany { op, what, count })
}

/// A grid in which each thread has a column and strides over rows.
fn by_columns(rows: u32, columns: u32) -> ([u32; 3], u32) {
    ([columns.div_ceil(COLUMNS), rows.min(ROWS_AT_ONCE), 1], COLUMNS)
}

/// A grid in which each SIMD-group has a row.
fn by_rows(rows: u32) -> ([u32; 3], u32) {
    ([rows.div_ceil(ROWS_OF_SIMD_GROUPS), 1, 1], THREADS_OF_SIMD_GROUPS)
}

/// `norm(x + residual)`, see [`crate::layer_norm`].
///
/// # Shapes
/// `x`, `residual`, `out`: `[rows, dim]`; `weight`, `bias`: `[dim]`. `out` may be `x` or `residual`.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<B> {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub dim: usize,
    /// Is added to the variance.
    pub eps: f32,
    /// The input.
    pub x: B,
    /// Is added to the input.
    pub residual: Option<B>,
    /// Factors of the columns.
    pub weight: B,
    /// Is added to the columns.
    pub bias: B,
    /// The result.
    pub out: B,
}

impl<B: Clone> LayerNorm<B> {
    /// Its launch on elements of a type.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn launch(self, of: Type) -> Result<Launch<B>, Error> {
        let (rows, dim) = (count("layer_norm", "rows", self.rows)?, count("layer_norm", "columns", self.dim)?);
        let params = vec![rows, dim, u32::from(self.residual.is_some()), self.eps.to_bits()];
        let residual = self.residual.unwrap_or_else(|| self.x.clone());
        let buffers = vec![self.x, residual, self.weight, self.bias, self.out];
        Ok(Launch::new("layer_norm", of.name(), buffers, params, by_rows(rows)))
    }
}

/// `norm(x + residual)`, see [`crate::rms_norm`]. With a place for the sum, `x + residual` goes there, rounded to the type.
///
/// # Shapes
/// `x`, `residual`, `sum`, `out`: `[rows, dim]`; `weight`: `[dim]`. `out` may be `x` or `residual`, `sum` the other of the two.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<B> {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub dim: usize,
    /// Is added to the mean square.
    pub eps: f32,
    /// The input.
    pub x: B,
    /// Is added to the input.
    pub residual: Option<B>,
    /// Factors of the columns.
    pub weight: B,
    /// Where the sum of input and residual goes.
    pub sum: Option<B>,
    /// The result.
    pub out: B,
}

impl<B: Clone> RmsNorm<B> {
    /// Its launch on elements of a type.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn launch(self, of: Type) -> Result<Launch<B>, Error> {
        let (rows, dim) = (count("rms_norm", "rows", self.rows)?, count("rms_norm", "columns", self.dim)?);
        let has = |buffer: &Option<B>| u32::from(buffer.is_some());
        let params = vec![rows, dim, has(&self.residual), has(&self.sum), self.eps.to_bits()];
        let residual = self.residual.unwrap_or_else(|| self.x.clone());
        let sum = self.sum.unwrap_or_else(|| self.out.clone());
        let buffers = vec![self.x, residual, self.weight, sum, self.out];
        Ok(Launch::new("rms_norm", of.name(), buffers, params, by_rows(rows)))
    }
}

/// `gelu(x + bias)` where `x` was, see [`crate::gelu`].
///
/// # Shapes
/// `x`: `[rows, dim]`; `bias`: `[dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Gelu<B> {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub dim: usize,
    /// The input, and the result.
    pub x: B,
    /// Is added to the columns.
    pub bias: Option<B>,
}

impl<B: Clone> Gelu<B> {
    /// Its launch on elements of a type.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn launch(self, of: Type) -> Result<Launch<B>, Error> {
        let (rows, dim) = (count("gelu", "rows", self.rows)?, count("gelu", "columns", self.dim)?);
        let params = vec![rows, dim, u32::from(self.bias.is_some())];
        let bias = self.bias.unwrap_or_else(|| self.x.clone());
        Ok(Launch::new("gelu", of.name(), vec![self.x, bias], params, by_columns(rows, dim)))
    }
}

/// The activation of the first half of each row times its second half, see [`crate::glu`].
///
/// # Shapes
/// `x`: `[rows, 2 · dim]`; `out`: `[rows, dim]`, elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Glu<B> {
    /// Rows.
    pub rows: usize,
    /// Columns of the result.
    pub dim: usize,
    /// Of the gate.
    pub activation: Activation,
    /// The input.
    pub x: B,
    /// The result.
    pub out: B,
}

impl<B> Glu<B> {
    /// Its launch on elements of a type.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn launch(self, of: Type) -> Result<Launch<B>, Error> {
        let (rows, dim) = (count("glu", "rows", self.rows)?, count("glu", "columns", self.dim)?);
        let params = vec![rows, dim, self.activation as u32];
        Ok(Launch::new("glu", of.name(), vec![self.x, self.out], params, by_columns(rows, dim)))
    }
}

/// Heads turned to their rows' positions, where they were, see [`crate::rotary`].
///
/// # Shapes
/// `x`: `[rows, stride]`, of which the first `width` columns are heads of `head_dim`; `positions`: `[rows]`, u32, below the tables'
/// length; `cos`, `sin`: `[positions, head_dim / 2]`, f32.
#[derive(Clone, Copy, Debug)]
pub struct Rotary<B> {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub stride: usize,
    /// Columns that are turned.
    pub width: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The input, and the result.
    pub x: B,
    /// The rows' positions.
    pub positions: B,
    /// Of the positions' angles.
    pub cos: B,
    /// Of the positions' angles.
    pub sin: B,
}

impl<B> Rotary<B> {
    /// Its launch on elements of a type.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn launch(self, of: Type) -> Result<Launch<B>, Error> {
        let columns = |number: usize| count("rotary", "columns", number);
        let rows = count("rotary", "rows", self.rows)?;
        let (stride, width, head_dim) = (columns(self.stride)?, columns(self.width)?, columns(self.head_dim)?);
        let params = vec![rows, stride, width, head_dim / 2];
        let buffers = vec![self.x, self.positions, self.cos, self.sin];
        Ok(Launch::new("rotary", of.name(), buffers, params, by_columns(rows, width / 2)))
    }
}

/// Some columns of a matrix, by its first row's.
#[derive(Clone, Copy, Debug)]
pub struct Rows<B> {
    /// Where the first row begins: at a multiple of four elements.
    pub first: B,
    /// Elements from a row to the next.
    pub stride: usize,
}

/// Attention over packed sequences, see [`crate::attention`].
///
/// # Shapes
/// `q`: `[tokens, heads · head_dim]`; `k`, `v`: `[tokens, kv_heads · head_dim]`; `cu_seqlens`: `[sequences + 1]`, u32, of which the longest
/// has `longest` tokens; `bias`: `[heads, 2 · span + 1]`, f32, with its span, as [`crate::attention::Relative`] has it; `out`:
/// `[tokens, heads · head_dim]`, elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Attention<B> {
    /// Sequences.
    pub sequences: usize,
    /// Tokens of the longest.
    pub longest: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, of which as many queries share one.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Of the products.
    pub scale: f32,
    /// Which keys a query sees.
    pub reach: Reach,
    /// Queries.
    pub q: Rows<B>,
    /// Keys.
    pub k: Rows<B>,
    /// Values.
    pub v: Rows<B>,
    /// Where the sequences begin, and the end.
    pub cu_seqlens: B,
    /// Of the distances, with its span.
    pub bias: Option<(B, usize)>,
    /// The result.
    pub out: B,
}

/// Whether there are functions of attention for heads of so many elements.
pub fn attention_takes_heads_of(head_dim: usize) -> bool {
    WIDTHS.iter().any(|width| head_dim <= *width) && head_dim.is_multiple_of(ELEMENTS_AT_ONCE)
}

impl<B: Clone> Attention<B> {
    /// Its launch on elements of a type.
    ///
    /// # Errors
    /// [`Error::TooMany`]; [`Error::Heads`].
    pub fn launch(self, of: Type) -> Result<Launch<B>, Error> {
        let number = |what, of: usize| count("attention", what, of);
        let strides = [self.q.stride, self.k.stride, self.v.stride];
        let heads_error = Error::Heads { head_dim: self.head_dim, strides };
        let is_aligned = strides.iter().all(|stride| stride.is_multiple_of(ELEMENTS_AT_ONCE));
        if !is_aligned || !attention_takes_heads_of(self.head_dim) {
            return Err(heads_error);
        }
        let width = WIDTHS.into_iter().find(|width| self.head_dim <= *width).ok_or(heads_error)?;
        let [q_stride, k_stride, v_stride] = strides;
        // No bound is the largest number.
        let bound = |distance: usize| u32::try_from(distance).unwrap_or(u32::MAX);
        let heads = number("heads", self.heads)?;
        let (bias, span) = match self.bias {
            Some((bias, span)) => (Some(bias), span),
            None => (None, 0),
        };
        let params = vec![
            heads,
            number("heads", self.kv_heads)?,
            number("elements of a head", self.head_dim)?,
            number("columns", q_stride)?,
            number("columns", k_stride)?,
            number("columns", v_stride)?,
            bound(self.reach.behind),
            bound(self.reach.ahead),
            number("distances", span)?,
            u32::from(bias.is_some()),
            self.scale.to_bits(),
        ];
        let groups = [
            number("tokens of a sequence", self.longest)?.div_ceil(QUERIES),
            heads,
            number("sequences", self.sequences)?,
        ];
        let bias = bias.unwrap_or_else(|| self.cu_seqlens.clone());
        let buffers = vec![self.q.first, self.k.first, self.v.first, self.cu_seqlens, bias, self.out];
        let ending = format!("{}_{width}", of.name());
        Ok(Launch::new("attention", &ending, buffers, params, (groups, THREADS_OF_QUERIES)))
    }
}

/// One f32 vector per sequence, see [`crate::pool`].
///
/// # Shapes
/// `x`: `[tokens, dim]`; `cu_seqlens`: `[sequences + 1]`, u32; `out`: `[sequences, dim]`, f32.
#[derive(Clone, Copy, Debug)]
pub struct Pool<B> {
    /// Sequences.
    pub sequences: usize,
    /// Columns.
    pub dim: usize,
    /// Which tokens.
    pub kind: Kind,
    /// What happens to their mean.
    pub norm: Norm,
    /// The input.
    pub x: B,
    /// Where the sequences begin, and the end.
    pub cu_seqlens: B,
    /// The result.
    pub out: B,
}

impl<B> Pool<B> {
    /// Its launch on elements of a type.
    ///
    /// # Errors
    /// [`Error::TooMany`].
    pub fn launch(self, of: Type) -> Result<Launch<B>, Error> {
        let (sequences, dim) = (count("pool", "sequences", self.sequences)?, count("pool", "columns", self.dim)?);
        let params = vec![dim, self.kind as u32, u32::from(self.norm == Norm::L2)];
        let buffers = vec![self.x, self.cu_seqlens, self.out];
        Ok(Launch::new("pool", of.name(), buffers, params, ([sequences, 1, 1], COLUMNS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GELU: Gelu<u8> = Gelu { rows: 70_000, dim: 257, x: 1, bias: None };

    /// One token of one head.
    const ATTENTION: Attention<u8> = Attention {
        sequences: 1,
        longest: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 4,
        scale: 0.5,
        reach: Reach::ALL,
        q: Rows { first: 1, stride: 12 },
        k: Rows { first: 2, stride: 12 },
        v: Rows { first: 3, stride: 12 },
        cu_seqlens: 4,
        bias: None,
        out: 5,
    };

    #[test]
    fn a_grid_has_all_columns_and_not_more_rows_than_there_may_be() {
        let launch = GELU.launch(Type::F16).unwrap();
        assert_eq!((launch.groups, launch.threads), ([2, ROWS_AT_ONCE, 1], 256));
        assert_eq!((launch.function, launch.params), ("gelu_f16", vec![70_000, 257, 0]));
        let launch = Gelu { rows: 3, bias: Some(2), ..GELU }.launch(Type::F32).unwrap();
        assert_eq!((launch.groups, launch.buffers, launch.params[2]), ([2, 3, 1], vec![1, 2], 1));
    }

    #[test]
    fn there_is_a_function_for_heads_of_every_width_up_to_256_in_steps_of_4() {
        for (head_dim, function) in [
            (4, Some("attention_f32_32")),
            (32, Some("attention_f32_32")),
            (36, Some("attention_f32_64")),
            (128, Some("attention_f32_128")),
            (256, Some("attention_f32_256")),
            (6, None),
            (260, None),
        ] {
            assert_eq!(attention_takes_heads_of(head_dim), function.is_some(), "{head_dim}");
            let launch = Attention { head_dim, ..ATTENTION }.launch(Type::F32);
            let expected = function.ok_or(Error::Heads { head_dim, strides: [12; 3] });
            assert_eq!(launch.map(|launch| launch.function), expected);
        }
        let odd = Attention { k: Rows { first: 2, stride: 13 }, ..ATTENTION }.launch(Type::F32).unwrap_err();
        assert!(odd.to_string().contains("plain steps"), "{odd}");
    }

    #[test]
    fn what_does_not_fit_the_sources_numbers_is_refused_in_words() {
        let refused = Gelu { rows: 1 << 32, ..GELU }.launch(Type::F32).unwrap_err();
        let said = "gelu: 4294967296 rows are more than the Metal code counts (4294967295); make the batch smaller";
        assert_eq!(refused.to_string(), said);
        // Only a reach has no bound.
        let unbounded = ATTENTION.launch(Type::F32).unwrap();
        assert_eq!(unbounded.params[6..8], [u32::MAX, u32::MAX]);
        assert!(Attention { longest: 1 << 33, ..ATTENTION }.launch(Type::F32).is_err());
    }
}
