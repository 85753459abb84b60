//! The link's WebSocket: an upgraded request comes in, messages go to and from `nodes::session`. Knows nothing of frames.

use super::answer::{Answer, Path, refuse};
use super::auth::Caller;
use super::nodes::check_own;
use crate::grid::Grid;
use crate::nodes::session::{Incoming, serve};
use axum::Extension;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::response::Response;
use bytes::Bytes;
use coordinator_client::api::{Code, Problem};
use coordinator_client::wire::{MESSAGE_BYTES_MAX, SUBPROTOCOL};
use futures_util::{SinkExt, StreamExt, future};
use std::sync::Arc;

/// Messages buffered towards a node before writing waits: two of the largest.
const WRITE_BYTES_MAX: usize = 2 * MESSAGE_BYTES_MAX;

/// The link of a node: a WebSocket of sub-protocol `neurogrid.v1`.
#[utoipa::path(
    get, path = "/api/nodes/{id}/session", tag = "nodes", params(("id" = String, Path, description = "The node's id")),
    responses(
        (status = 101, description = "The link is open"),
        (status = 401, description = "No valid session token", body = Problem),
        (status = 400, description = "Not a WebSocket upgrade, or another sub-protocol", body = Problem),
    )
)]
pub(super) async fn session(
    State(grid): State<Arc<Grid>>,
    Extension(Caller(caller)): Extension<Caller>,
    Path(id): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    check_own(&caller, &id)?;
    let upgrade = upgrade.map_err(|rejection| refuse(Code::InvalidInput, rejection.body_text()))?;
    let upgrade = upgrade
        .protocols([SUBPROTOCOL])
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .max_write_buffer_size(WRITE_BYTES_MAX);
    if upgrade.selected_protocol().is_none() {
        return Err(refuse(Code::InvalidInput, format!("ask for the WebSocket sub-protocol `{SUBPROTOCOL}`")));
    }
    let node = grid
        .store
        .node(&caller)
        .await?
        .ok_or_else(|| refuse(Code::Unauthorized, "this node is not known any more; register again"))?;
    let tracker = grid.tracker.clone();
    Ok(upgrade.on_upgrade(move |socket| {
        tracker.track_future(async move {
            let (sink, stream) = socket.split();
            let incoming = stream.take_while(|message| future::ready(is_open(message))).map(|message| match message {
                Ok(Message::Binary(bytes)) => Incoming::Message(bytes),
                Ok(Message::Text(_)) => Incoming::Malformed("frames are binary messages, this one is text".into()),
                Ok(_) => Incoming::Alive,
                Err(error) => Incoming::Malformed(error.to_string()),
            });
            let outgoing = sink.with(|bytes: Bytes| future::ready(Ok::<_, axum::Error>(Message::Binary(bytes))));
            serve(grid, node, incoming, outgoing).await;
        })
    }))
}

/// Whether more may come. A broken connection ends the link; a message that breaks a rule is told to the node.
fn is_open(message: &Result<Message, axum::Error>) -> bool {
    match message {
        Ok(Message::Close(_)) => false,
        Ok(_) => true,
        Err(error) => {
            use std::error::Error;
            let broken = error.source().and_then(|source| source.source().or(Some(source)));
            !broken.is_some_and(|source| source.is::<std::io::Error>())
        }
    }
}
