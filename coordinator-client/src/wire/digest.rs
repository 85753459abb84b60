//! Digests and the bytes that are signed: values in, canonical bytes out. Nothing here knows a key.

use serde::Serialize;
use sha2::Digest;

/// The MessagePack encoding of a value, fields by name in the order of their declaration: what digests are taken of
/// and what a blob holds.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("wire types hold nothing that MessagePack cannot")
}

/// SHA-256 as 64 lower-case hex digits.
pub fn sha256_hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(bytes))
}

/// Whether a text is 64 lower-case hex digits.
pub fn is_sha256_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Bytes to sign: the domain's name, a zero byte, then every part preceded by its length as u32 little-endian. No two
/// lists of parts give the same bytes, and no signature of one domain is one of another.
#[derive(Debug, Clone)]
pub struct Transcript(Vec<u8>);

impl Transcript {
    /// Starts with a domain, e.g. `neurogrid-auth-v1`.
    pub fn new(domain: &str) -> Self {
        let mut bytes = domain.as_bytes().to_vec();
        bytes.push(0);
        Self(bytes)
    }

    /// Appends a part.
    #[must_use]
    pub fn part(mut self, part: &[u8]) -> Self {
        let length = u32::try_from(part.len()).expect("what is signed is short");
        self.0.extend(length.to_le_bytes());
        self.0.extend(part);
        self
    }

    /// The bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_flow_into_each_other() {
        let of = |parts: [&[u8]; 2]| Transcript::new("d").part(parts[0]).part(parts[1]).into_bytes();
        assert_ne!(of([b"ab", b"c"]), of([b"a", b"bc"]));
        assert_ne!(Transcript::new("d").part(b"x").into_bytes(), Transcript::new("e").part(b"x").into_bytes());
        assert_eq!(of([b"a", b""]), b"d\0\x01\0\0\0a\0\0\0\0");
    }

    #[test]
    fn a_digest_is_of_the_bytes() {
        assert_eq!(sha256_hex(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert!(is_sha256_hex(&sha256_hex(b"x")));
        assert!(!is_sha256_hex(&"G".repeat(64)));
        assert!(!is_sha256_hex("00"));
    }
}
