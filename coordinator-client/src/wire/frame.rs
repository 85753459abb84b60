//! Frames of the link: values in, one binary WebSocket message out, and back. A frame is a MessagePack map
//! `{"t": tag, "d": content}`, the tag first; tensors inside it are raw bytes. Never reads a message above
//! [`MESSAGE_BYTES_MAX`], never panics on damaged bytes, and takes an unknown tag for no frame at all.

use super::MESSAGE_BYTES_MAX;
use super::control::{Ack, Bye, Cancel, Drain, ModelRef, Ping, Settings};
use super::report::{Failed, Progress, TaskResult};
use super::state::{Heartbeat, Hello, Welcome};
use super::work::{Accept, Decline, Offer};
use serde::{Deserialize, Serialize, de};

/// The version of the protocol that this code speaks.
pub const PROTOCOL: u16 = 1;

/// Deeper than any frame of ours; what goes deeper is an attack on the stack.
const DEPTH_MAX: usize = 64;

/// Everything that crosses the link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "t", content = "d", rename_all = "snake_case")]
pub enum Frame {
    /// Worker, first: who it is, what it can, what it still holds.
    Hello(Box<Hello>),
    /// Coordinator, in answer: how the link behaves, which leases live on.
    Welcome(Welcome),
    /// Worker: how it is; renews the lease of every attempt that it names.
    Heartbeat(Heartbeat),
    /// Coordinator: a task to run.
    Offer(Box<Offer>),
    /// Worker: it runs.
    Accept(Accept),
    /// Worker: it does not take it.
    Decline(Decline),
    /// Worker: a part of a result, or how far it is.
    Progress(Progress),
    /// Worker: done.
    Result(Box<TaskResult>),
    /// Worker: not done, with who is at fault. Also how a worker gives work back.
    Failed(Failed),
    /// Coordinator: a `result` or `failed` is settled and may be forgotten.
    Ack(Ack),
    /// Coordinator: stop an attempt.
    Cancel(Cancel),
    /// Coordinator: finish what runs, take nothing more.
    Drain(Drain),
    /// Coordinator: have a model ready.
    LoadModel(ModelRef),
    /// Coordinator: free a model's memory.
    UnloadModel(ModelRef),
    /// Coordinator: other link settings from now on.
    Settings(Settings),
    /// Either: are you there?
    Ping(Ping),
    /// Either: yes; gives back the ping's content.
    Pong(Ping),
    /// Either, last: why the link closes.
    Bye(Bye),
}

/// Why bytes are no frame. The link is closed with this as its reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Too large to look at.
    #[error("a message of {bytes} bytes is above the limit of {MESSAGE_BYTES_MAX}; send large payloads as blobs")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// Not MessagePack, or not this frame's content.
    #[error("malformed frame: {0}")]
    Malformed(String),
    /// A frame, and then more bytes.
    #[error("{0} bytes follow the frame")]
    Trailing(usize),
}

/// Why a frame cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("frame {tag} takes {bytes} bytes, the limit is {MESSAGE_BYTES_MAX}; send its payload as a blob")]
pub struct EncodeError {
    /// Which frame.
    pub tag: &'static str,
    /// Its encoded size.
    pub bytes: usize,
}

impl Frame {
    /// The tag of every frame.
    pub const TAGS: &[&str] = &[
        "hello",
        "welcome",
        "heartbeat",
        "offer",
        "accept",
        "decline",
        "progress",
        "result",
        "failed",
        "ack",
        "cancel",
        "drain",
        "load_model",
        "unload_model",
        "settings",
        "ping",
        "pong",
        "bye",
    ];

    /// Its tag on the wire.
    pub fn tag(&self) -> &'static str {
        match self {
            Frame::Hello(_) => "hello",
            Frame::Welcome(_) => "welcome",
            Frame::Heartbeat(_) => "heartbeat",
            Frame::Offer(_) => "offer",
            Frame::Accept(_) => "accept",
            Frame::Decline(_) => "decline",
            Frame::Progress(_) => "progress",
            Frame::Result(_) => "result",
            Frame::Failed(_) => "failed",
            Frame::Ack(_) => "ack",
            Frame::Cancel(_) => "cancel",
            Frame::Drain(_) => "drain",
            Frame::LoadModel(_) => "load_model",
            Frame::UnloadModel(_) => "unload_model",
            Frame::Settings(_) => "settings",
            Frame::Ping(_) => "ping",
            Frame::Pong(_) => "pong",
            Frame::Bye(_) => "bye",
        }
    }

    /// The message.
    ///
    /// # Errors
    /// When it is larger than the link carries: the caller should have sent a payload as a blob.
    pub fn encode(&self) -> Result<Vec<u8>, EncodeError> {
        let bytes = rmp_serde::to_vec_named(self).expect("frames hold nothing that MessagePack cannot");
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(EncodeError { tag: self.tag(), bytes: bytes.len() });
        }
        Ok(bytes)
    }

    /// The frame of a message, or `None` when its tag is of a later protocol: count it and go on.
    ///
    /// # Errors
    /// When the bytes are no frame: close the link with the reason.
    pub fn decode(message: &[u8]) -> Result<Option<Self>, DecodeError> {
        if message.len() > MESSAGE_BYTES_MAX {
            return Err(DecodeError::TooLarge { bytes: message.len() });
        }
        let malformed = |e: rmp_serde::decode::Error| DecodeError::Malformed(e.to_string());
        let (tag, _): (Tag, _) = value(message).map_err(malformed)?;
        if !Self::TAGS.contains(&tag.0.as_str()) {
            return Ok(None);
        }
        match value(message).map_err(malformed)? {
            (frame, 0) => Ok(Some(frame)),
            (_, more) => Err(DecodeError::Trailing(more)),
        }
    }
}

/// The first value of a message, and how many bytes follow it.
fn value<T: de::DeserializeOwned>(mut message: &[u8]) -> Result<(T, usize), rmp_serde::decode::Error> {
    let mut decoder = rmp_serde::Deserializer::new(&mut message);
    decoder.set_max_depth(DEPTH_MAX);
    let value = T::deserialize(&mut decoder)?;
    Ok((value, message.len()))
}

/// The tag alone. That it comes first is part of the protocol: a decoder that meets the content first has to buffer
/// it, and a buffer forgets that the encoding is binary.
struct Tag(String);

impl<'de> Deserialize<'de> for Tag {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct First;

        impl<'de> de::Visitor<'de> for First {
            type Value = Tag;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a map whose first key is \"t\"")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Tag, A::Error> {
                let Some("t") = map.next_key::<String>()?.as_deref() else {
                    return Err(de::Error::custom("the first key must be \"t\""));
                };
                let tag = map.next_value().map(Tag)?;
                // The decoder refuses a map that is not read to its end.
                while map.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
                Ok(tag)
            }
        }

        deserializer.deserialize_map(First)
    }
}
