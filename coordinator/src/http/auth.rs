//! Who may call what: people by API key, nodes by session token. Requests come in and go on, or are refused. On loopback
//! without a key everybody is let in, but only under a name that no web page can take.

use super::answer::{Refusal, refuse};
use crate::grid::Grid;
use crate::nodes::token;
use crate::store::NodeState;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use coordinator_client::api::Code;
use coordinator_client::wire::NodeId;
use http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// The node that a request's session token was given to.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) NodeId);

/// Lets people in.
pub(crate) async fn people(State(grid): State<Arc<Grid>>, request: Request, next: Next) -> Result<Response, Refusal> {
    check_person(&grid, request.headers())?;
    Ok(next.run(request).await)
}

/// Lets nodes in.
pub(crate) async fn nodes(
    State(grid): State<Arc<Grid>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let node = check_node(&grid, request.headers()).await?;
    request.extensions_mut().insert(Caller(node));
    Ok(next.run(request).await)
}

/// Lets both in.
pub(crate) async fn anybody_known(
    State(grid): State<Arc<Grid>>,
    mut request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    // A session token has two dots; an API key is looked at as such, so that a wrong one is called so.
    let is_token = bearer(request.headers()).is_some_and(|bearer| bearer.split('.').count() == 3);
    if is_token && let Ok(node) = check_node(&grid, request.headers()).await {
        request.extensions_mut().insert(Caller(node));
    } else {
        check_person(&grid, request.headers())?;
    }
    Ok(next.run(request).await)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| rest.trim())
}

fn check_person(grid: &Grid, headers: &HeaderMap) -> Result<(), Refusal> {
    let options = &grid.options.http;
    match (&options.api_key, bearer(headers)) {
        (None, _) if options.insecure => Ok(()),
        (None, _) => check_host(headers),
        (Some(_), None) => Err(refuse(Code::Unauthorized, "send the API key as `Authorization: Bearer KEY`")),
        (Some(want), Some(got)) if is_same(want, got) => Ok(()),
        (Some(_), Some(_)) => Err(refuse(Code::Unauthorized, "the API key is not valid")),
    }
}

/// Compares secrets in a time that tells nothing of where they differ.
fn is_same(want: &str, got: &str) -> bool {
    Sha256::digest(want).as_slice().ct_eq(Sha256::digest(got).as_slice()).into()
}

/// A web page can make a browser call loopback under the page's own name (DNS rebinding), never under `localhost` or an
/// address.
fn check_host(headers: &HeaderMap) -> Result<(), Refusal> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
    let name = host
        .rsplit_once(':')
        .filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()))
        .map_or(host, |(name, _)| name);
    let address = name.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    if host.is_empty() || name.eq_ignore_ascii_case("localhost") || address.is_ok() {
        return Ok(());
    }
    let detail = format!("the host {name:?} is not served without an API key; use `localhost`, or set a key");
    Err(refuse(Code::Forbidden, detail))
}

async fn check_node(grid: &Grid, headers: &HeaderMap) -> Result<NodeId, Refusal> {
    let token = bearer(headers)
        .ok_or_else(|| refuse(Code::Unauthorized, "send the session token as `Authorization: Bearer TOKEN`"))?;
    let node = grid
        .enrolment
        .tokens
        .check(token, grid.store.now_ms())
        .map_err(|error: token::Error| refuse(Code::Unauthorized, error.to_string()))?;
    match grid.store.node(&node).await? {
        None => Err(refuse(Code::Unauthorized, "this node is not known any more; register again")),
        Some(known) if known.state == NodeState::Banned => Err(refuse(Code::Forbidden, "this node is banned")),
        Some(_) => Ok(node),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_cannot_call_loopback_under_their_own_name() {
        let check = |host: &str, is_served: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            assert_eq!(check_host(&headers).is_ok(), is_served, "{host}");
        };
        check("localhost", true);
        check("LOCALHOST:3001", true);
        check("127.0.0.1:3001", true);
        check("[::1]:3001", true);
        check("[::1]", true);
        check("evil.example", false);
        check("evil.example:3001", false);
        check("localhost.evil.example:3001", false);
        check("127.0.0.1.evil.example", false);
    }

    #[test]
    fn only_the_bearer_scheme_is_read() {
        let check = |value: &str, want: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            assert_eq!(bearer(&headers), want, "{value}");
        };
        check("Bearer k", Some("k"));
        check("bearer  k ", Some("k"));
        check("Basic k", None);
        check("k", None);
        assert!(is_same("k", "k") && !is_same("k", "K") && !is_same("k", "kk"));
    }
}
