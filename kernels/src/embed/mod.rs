//! The first step of an encoder: rows of some tables added up, one sum a token, normalised where a model does so. Indices come
//! in, one row per token goes out. Never a search for a token: an index is a row's number.
//!
//! For each token `t`:
//!
//! ```text
//! s_t = Σ_tables table[index_t]        y_t = s_t, or its layer normalisation (see layer_norm)
//! ```
//!
//! Tables are read where they lie, in the type that they are stored in, so that only the rows that occur are touched.
//!
//! # Source
//! Devlin et al.: BERT, 2018, arXiv:1810.04805, figure 2.

use crate::launch::{self, Isa};
use crate::layer_norm;
use crate::stored::Values;

pub mod cpu;
mod simd;
#[cfg(test)]
mod tests;

/// One table, and which of its rows each token takes.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// `table: [rows, d]`, row-major.
    pub table: Values<'a>,
    /// `indices: [tokens]`.
    pub indices: &'a [u32],
}

/// Why a call was refused. Nothing has been written then.
#[derive(Clone, Debug, thiserror::Error, PartialEq)]
pub enum Error {
    /// There is nothing to add up.
    #[error("embed: {terms} tables of rows of {dim}; at least one of each is needed")]
    Nothing {
        /// How many tables.
        terms: usize,
        /// Elements of a row.
        dim: usize,
    },
    /// Indices and output do not fit.
    #[error("embed: table {term} has {indices} indices; the output is {elements} elements in rows of {dim}")]
    Indices {
        /// Which table.
        term: usize,
        /// How many indices.
        indices: usize,
        /// Elements of the output.
        elements: usize,
        /// Elements of a row.
        dim: usize,
    },
    /// A row is not there.
    #[error("embed: row {index} of table {term} is asked for, which has {rows}")]
    Index {
        /// Which table.
        term: usize,
        /// Which row.
        index: u32,
        /// How many there are.
        rows: usize,
    },
    /// The normalisation refuses.
    #[error("embed: {0}")]
    Norm(#[from] layer_norm::Error),
}

/// Writes each token's sum into `out`, normalised where `norm` is given.
///
/// # Shapes
/// `terms`: as [`Term`]; `out`: `[tokens, d]`, row-major, f32. `tokens` may be 0.
///
/// # Errors
/// [`Error`], when the lengths do not fit each other or a row is not there.
pub fn embed(
    terms: &[Term<'_>],
    dim: usize,
    norm: Option<&layer_norm::Params<'_>>,
    out: &mut [f32],
) -> Result<(), Error> {
    embed_on(launch::isa(), terms, dim, norm, out)
}

/// [`embed`] on an instruction set of the caller's choice.
pub(crate) fn embed_on(
    isa: Isa,
    terms: &[Term<'_>],
    dim: usize,
    norm: Option<&layer_norm::Params<'_>>,
    out: &mut [f32],
) -> Result<(), Error> {
    check(terms, dim, norm, out)?;
    launch::lanes::run(isa, simd::Embed { terms, dim, out });
    match norm {
        Some(norm) => Ok(layer_norm::layer_norm_in_place_on(isa, out, norm)?),
        None => Ok(()),
    }
}

fn check(terms: &[Term<'_>], dim: usize, norm: Option<&layer_norm::Params<'_>>, out: &[f32]) -> Result<(), Error> {
    if terms.is_empty() || dim == 0 {
        return Err(Error::Nothing { terms: terms.len(), dim });
    }
    for (number, term) in terms.iter().enumerate() {
        if term.indices.len().checked_mul(dim) != Some(out.len()) {
            return Err(Error::Indices { term: number, indices: term.indices.len(), elements: out.len(), dim });
        }
        let rows = term.table.len() / dim;
        if let Some(&index) = term.indices.iter().find(|index| **index as usize >= rows) {
            return Err(Error::Index { term: number, index, rows });
        }
    }
    if let Some(norm) = norm {
        layer_norm::check_in_place(out, norm)?;
    }
    Ok(())
}
