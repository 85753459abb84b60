//! Rotary position embedding, in place. Rows with some heads side by side come in and are turned. Never pairs of neighbours:
//! element `i` is paired with element `i + d/2`, as every model here has it.
//!
//! For each head of `d` elements of a token at position `p`, with `angle_i = p · frequency_i` and `i < d/2`:
//!
//! ```text
//! y_i = x_i · cos angle_i − x_(i + d/2) · sin angle_i        y_(i + d/2) = x_(i + d/2) · cos angle_i + x_i · sin angle_i
//! ```
//!
//! Sines and cosines are computed once in f64 and kept as f32.
//!
//! # Source
//! Su et al.: RoFormer, 2021, arXiv:2104.09864, equation 34, with the pairs of GPT-NeoX.

use crate::launch::{self, Isa};

pub mod cpu;
mod simd;
#[cfg(test)]
mod tests;

/// Sines and cosines of every position.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    positions: usize,
    half: usize,
    /// `[positions, d/2]`
    cos: Vec<f32>,
    /// `[positions, d/2]`
    sin: Vec<f32>,
}

impl Table {
    /// For heads of twice as many elements as there are frequencies, in radians per position.
    pub fn new(positions: usize, frequencies: &[f64]) -> Self {
        Self::scaled(positions, frequencies, 1.0)
    }

    /// The same, with what is turned multiplied by `amplitude`. Pairs of frequency 0 stay as they are.
    pub fn scaled(positions: usize, frequencies: &[f64], amplitude: f64) -> Self {
        let pair = |position: usize| {
            frequencies.iter().map(move |frequency| {
                let amplitude = if *frequency == 0.0 { 1.0 } else { amplitude };
                (position as f64 * frequency, amplitude)
            })
        };
        let cos = (0..positions).flat_map(pair).map(|(angle, amplitude)| (angle.cos() * amplitude) as f32).collect();
        let sin = (0..positions).flat_map(pair).map(|(angle, amplitude)| (angle.sin() * amplitude) as f32).collect();
        Self { positions, half: frequencies.len(), cos, sin }
    }

    /// The paper's: `frequency_i = theta^(−2i/d)` for heads of `d` elements.
    pub fn plain(positions: usize, head_dim: usize, theta: f64) -> Self {
        Self::new(positions, &frequencies(head_dim, theta))
    }

    /// Positions are below this.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Elements of a head, `d`.
    pub fn head_dim(&self) -> usize {
        2 * self.half
    }

    /// `[positions, d/2]`
    pub fn cos(&self) -> &[f32] {
        &self.cos
    }

    /// `[positions, d/2]`
    pub fn sin(&self) -> &[f32] {
        &self.sin
    }

    fn at(&self, position: u32) -> (&[f32], &[f32]) {
        let range = position as usize * self.half..(position as usize + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

/// `theta^(−2i/d)` for `i` below `d/2`.
pub fn frequencies(head_dim: usize, theta: f64) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

/// Why a call was refused. Nothing has been written then.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// The heads are not whole.
    #[error("rotary: {width} elements of a row of {stride} are not whole heads of {head_dim}")]
    Heads {
        /// Elements that are to be turned.
        width: usize,
        /// From row to row.
        stride: usize,
        /// Elements of a head.
        head_dim: usize,
    },
    /// Rows and positions differ.
    #[error("rotary: {elements} elements are not {rows} rows at a stride of {stride}, one for each position")]
    Rows {
        /// Elements of the input.
        elements: usize,
        /// Positions.
        rows: usize,
        /// From row to row.
        stride: usize,
    },
    /// A position is not in the table.
    #[error("rotary: position {position} is not below {positions}")]
    Position {
        /// Which.
        position: u32,
        /// How many there are.
        positions: usize,
    },
}

/// Turns the first `width` elements of each row of `x`, which are whole heads, to the row's position.
///
/// # Shapes
/// `x`: `[rows, stride]`, row-major, f32; `positions`: `[rows]`. `rows` may be 0.
///
/// # Errors
/// [`Error`], when the lengths do not fit each other or a position is not in the table.
pub fn rotary(x: &mut [f32], stride: usize, width: usize, positions: &[u32], table: &Table) -> Result<(), Error> {
    rotary_on(launch::isa(), x, stride, width, positions, table)
}

/// [`rotary`] on an instruction set of the caller's choice.
pub(crate) fn rotary_on(
    isa: Isa,
    x: &mut [f32],
    stride: usize,
    width: usize,
    positions: &[u32],
    table: &Table,
) -> Result<(), Error> {
    check(x, stride, width, positions, table)?;
    launch::lanes::run(isa, simd::Rotary { x, stride, width, positions, table });
    Ok(())
}

fn check(x: &[f32], stride: usize, width: usize, positions: &[u32], table: &Table) -> Result<(), Error> {
    let head_dim = table.head_dim();
    // A number is a multiple of zero only if it is zero.
    if width == 0 || width > stride || !width.is_multiple_of(head_dim) {
        return Err(Error::Heads { width, stride, head_dim });
    }
    if positions.len().checked_mul(stride) != Some(x.len()) {
        return Err(Error::Rows { elements: x.len(), rows: positions.len(), stride });
    }
    match positions.iter().find(|position| **position as usize >= table.positions) {
        Some(&position) => Err(Error::Position { position, positions: table.positions }),
        None => Ok(()),
    }
}
