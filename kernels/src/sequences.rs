//! How packed sequences are told apart: `cu_seqlens` comes in, the number of tokens goes out, or why it is none. Never the
//! tokens themselves.

/// What is wrong with a `cu_seqlens`.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// It is empty or does not begin with 0.
    #[error("cu_seqlens begins with {0:?}; it must begin with 0, also when there is no sequence")]
    Start(Option<u32>),
    /// A sequence has no token.
    #[error("sequence {index} runs from token {start} to {end}; every sequence needs at least one token")]
    Sequence {
        /// Which.
        index: usize,
        /// Its first token.
        start: u32,
        /// The token behind its last.
        end: u32,
    },
}

/// The number of tokens of `cu_seqlens: [sequences + 1]`, which begins with 0 and rises.
///
/// # Errors
/// [`Error`], when it does not.
pub fn check(cu_seqlens: &[u32]) -> Result<usize, Error> {
    let (Some(0), Some(&tokens)) = (cu_seqlens.first(), cu_seqlens.last()) else {
        return Err(Error::Start(cu_seqlens.first().copied()));
    };
    for (index, pair) in cu_seqlens.windows(2).enumerate() {
        if pair[0] >= pair[1] {
            return Err(Error::Sequence { index, start: pair[0], end: pair[1] });
        }
    }
    Ok(tokens as usize)
}
