//! Bounds on what one request may ask. Nothing comes in or goes out; each number has its reason beside it.

/// Texts of one embedding or classification: what OpenAI's API accepts, so that its clients fit.
pub const INPUTS_MAX: usize = 2_048;

/// Documents of one reranking. Every one is a sequence of its own with the query in it; what Cohere's API accepts.
pub const DOCUMENTS_MAX: usize = 1_000;

/// Bytes of one text. A model takes some thousand tokens, a token is some bytes: what is longer by a thousand times
/// only costs time to tokenise, and is refused before that.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// Rows of one tensor request. They run as one item that no batch can split, so this bounds how long one caller
/// keeps a device from the others.
pub const ROWS_MAX: usize = 8_192;
