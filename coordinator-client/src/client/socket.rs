//! One connection of a link: an upgraded HTTP connection in, frames out of it and into it. Never keeps state beyond
//! the connection.

use super::access::{Access, Error, causes, refused};
use super::pieces::Queue;
use crate::wire::node::paths;
use crate::wire::{Frame, MESSAGE_BYTES_MAX, SUBPROTOCOL};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

/// Frames that wait to be written. More than every unacknowledged report at once; a link that holds back more is
/// given up rather than waited for.
const OUTGOING_MAX: usize = 1_024;

/// Pieces of texts that wait to be written, behind all other frames. Few: what waits before them is merged.
const PIECES_MAX: usize = 16;

type Stream = WebSocketStream<reqwest::Upgraded>;

/// An open connection.
#[derive(Debug)]
pub(super) struct Socket {
    incoming: SplitStream<Stream>,
    outgoing: mpsc::Sender<Vec<u8>>,
    pieces: mpsc::Sender<Vec<u8>>,
    writer: JoinHandle<()>,
}

/// What came.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A frame.
    Frame(Frame),
    /// A frame of a later protocol.
    Unknown,
    /// A message that is no frame.
    Malformed(String),
    /// Nothing more will come.
    End(String),
    /// Nothing came, but a piece of a text is there and may be sent.
    Piece,
}

impl Socket {
    /// Logs in if need be and opens the link.
    pub(super) async fn connect(access: &Access) -> Result<Self, Error> {
        let token = access.token().await?;
        let url = access.at(&paths::session(access.identity().node()));
        let key = generate_key();
        let request = access
            .http()
            .get(&url)
            .bearer_auth(token)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", SUBPROTOCOL)
            .header("sec-websocket-key", &key);
        let unreachable = |e: reqwest::Error| Error::Unreachable { url: url.clone(), detail: causes(&e) };
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status != http::StatusCode::SWITCHING_PROTOCOLS {
            if status == http::StatusCode::UNAUTHORIZED {
                access.forget_token().await;
            }
            let body = response.text().await.unwrap_or_default();
            return Err(refused(&url, status.as_u16(), body.as_bytes()));
        }
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
        let accepted = header("sec-websocket-accept") == Some(derive_accept_key(key.as_bytes()).as_str());
        if !accepted || header("sec-websocket-protocol") != Some(SUBPROTOCOL) {
            let detail = format!("it did not agree to a WebSocket of {SUBPROTOCOL}");
            return Err(Error::Answer { url, detail });
        }
        let upgraded = response.upgrade().await.map_err(unreachable)?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let stream = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
        let (sink, incoming) = stream.split();
        let (outgoing, queue) = mpsc::channel(OUTGOING_MAX);
        let (pieces, pieces_queue) = mpsc::channel(PIECES_MAX);
        Ok(Self { incoming, outgoing, pieces, writer: tokio::spawn(write(sink, queue, pieces_queue)) })
    }

    /// The next thing that comes, or that there is a piece which may be sent. Loses nothing when dropped.
    pub(super) async fn next(&mut self, pieces: Option<&Queue>) -> Incoming {
        let Self { incoming, pieces: room, .. } = self;
        let piece = async {
            let (Some(pieces), Ok(_)) = (pieces, room.reserve().await) else { return std::future::pending().await };
            pieces.ready().await;
        };
        tokio::select! {
            biased;
            came = Self::come(incoming) => came,
            () = piece => Incoming::Piece,
        }
    }

    async fn come(incoming: &mut SplitStream<Stream>) -> Incoming {
        loop {
            match incoming.next().await {
                Some(Ok(Message::Binary(bytes))) => {
                    return match Frame::decode(&bytes) {
                        Ok(Some(frame)) => Incoming::Frame(frame),
                        Ok(None) => Incoming::Unknown,
                        Err(e) => Incoming::Malformed(e.to_string()),
                    };
                }
                Some(Ok(Message::Text(_))) => return Incoming::Malformed("frames are binary messages".into()),
                Some(Ok(Message::Close(_))) | None => return Incoming::End("the coordinator closed the link".into()),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Incoming::End(e.to_string()),
            }
        }
    }

    /// Queues a frame. False when the link takes nothing more.
    pub(super) fn send(&self, frame: &Frame) -> bool {
        match frame.encode() {
            Ok(bytes) => match frame {
                Frame::Progress(_) => self.pieces.try_send(bytes).is_ok(),
                _ => self.outgoing.try_send(bytes).is_ok(),
            },
            Err(e) => {
                tracing::error!(error = %e, "a frame cannot be sent");
                false
            }
        }
    }

    /// Writes what is queued, for a short while, and closes.
    pub(super) async fn close(self) {
        let Self { incoming, outgoing, pieces, mut writer } = self;
        drop((outgoing, pieces));
        if tokio::time::timeout(Duration::from_secs(1), &mut writer).await.is_err() {
            writer.abort();
        }
        drop(incoming);
    }
}

async fn write(
    mut sink: SplitSink<Stream, Message>,
    mut queue: mpsc::Receiver<Vec<u8>>,
    mut pieces: mpsc::Receiver<Vec<u8>>,
) {
    loop {
        let bytes = tokio::select! {
            biased;
            Some(bytes) = queue.recv() => bytes,
            Some(bytes) = pieces.recv() => bytes,
            else => break,
        };
        if sink.feed(Message::Binary(bytes.into())).await.is_err() {
            return;
        }
        // Several frames that wait together leave together.
        if queue.is_empty() && pieces.is_empty() && sink.flush().await.is_err() {
            return;
        }
    }
    let _ = sink.close().await; // the other side may have gone first
}
