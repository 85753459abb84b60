//! How inputs and outputs lie in the store: the MessagePack of [`Payload`], so that a small one is inline and a large one
//! is a blob reference. Values or their encodings in, stored bytes out, and back.

use coordinator_client::wire::digest::{encode, sha256_hex};
use coordinator_client::wire::{BlobRef, Payload};
use serde::de::DeserializeOwned;

/// What stands before the encoding of an inline value: a map of one entry whose key is `inline`.
const INLINE_HEAD: &[u8] = b"\x81\xa6inline";

/// Stored bytes are not what was written.
#[derive(Debug, thiserror::Error)]
#[error("a stored payload cannot be read: {0}")]
pub(crate) struct Damaged(String);

/// Stored form of an inline value's encoding.
pub(crate) fn inline(encoded: &[u8]) -> Vec<u8> {
    [INLINE_HEAD, encoded].concat()
}

/// Stored form of a reference.
pub(crate) fn reference(blob: BlobRef) -> Vec<u8> {
    encode(&Payload::<()>::Blob(blob))
}

/// The payload of stored bytes, with the SHA-256 of the value's encoding.
pub(crate) fn read<T: DeserializeOwned>(stored: &[u8]) -> Result<(Payload<T>, String), Damaged> {
    let payload = rmp_serde::from_slice(stored).map_err(|e| Damaged(e.to_string()))?;
    let sha256 = match &payload {
        Payload::Blob(blob) => blob.sha256.clone(),
        Payload::Inline(_) => sha256_hex(stored.get(INLINE_HEAD.len()..).unwrap_or_default()),
    };
    Ok((payload, sha256))
}

/// A value from its encoding.
pub(crate) fn decode<T: DeserializeOwned>(encoded: &[u8]) -> Result<T, Damaged> {
    rmp_serde::from_slice(encoded).map_err(|e| Damaged(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator_client::wire::{TaskOutput, task::Score};

    #[test]
    fn payloads_lie_in_the_store_as_they_cross_the_link() {
        let value = TaskOutput::Rerank { results: vec![Score { index: 1, score: 0.5 }] };
        let encoded = encode(&value);
        let stored = inline(&encoded);
        assert_eq!(stored, encode(&Payload::Inline(value.clone())));
        let (payload, sha256) = read::<TaskOutput>(&stored).unwrap();
        assert_eq!((payload, sha256), (Payload::Inline(value.clone()), sha256_hex(&encoded)));
        let blob = BlobRef { sha256: "0".repeat(64), bytes: 7 };
        let stored = reference(blob.clone());
        assert_eq!(stored, encode(&Payload::<TaskOutput>::Blob(blob.clone())));
        assert_eq!(read::<TaskOutput>(&stored).unwrap(), (Payload::Blob(blob.clone()), blob.sha256));
        assert_eq!(decode::<TaskOutput>(&encoded).unwrap(), value);
        assert!(read::<TaskOutput>(b"\x81\xa6inline\xc1").is_err());
        assert!(read::<TaskOutput>(b"").is_err());
    }
}
