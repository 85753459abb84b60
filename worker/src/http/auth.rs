//! Who may come in: requests go in, those without the right key are refused. With a key set, all routes but the probes
//! need it. Without one, only this machine is served, and web pages of other origins are not.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use coordinator_client::api::Code;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::error::{Refusal, dress};
use super::{Shared, config};
use crate::StartError;

/// Refuses to serve others without a key, unless that is said explicitly.
pub(super) fn check(options: &config::Http) -> Result<(), StartError> {
    if options.api_key.as_ref().is_some_and(|key| key.trim().is_empty()) {
        return Err(StartError::Setting("the API key is empty: set one that is not, or none".into()));
    }
    if options.address.ip().is_loopback() || options.api_key.is_some() || options.insecure {
        return Ok(());
    }
    Err(StartError::Insecure(options.address))
}

/// What a request must show.
pub(super) enum Door {
    /// The key of this digest. Digests are compared, so that neither the content nor the length of a guess shows in
    /// the time.
    Key([u8; 32]),
    /// Nothing but that it was meant for this machine, at this port.
    Local(u16),
    /// Nothing.
    Open,
}

impl Door {
    pub(super) fn new(options: &config::Http, bound: SocketAddr) -> Self {
        match &options.api_key {
            Some(key) => Door::Key(Sha256::digest(key).into()),
            None if bound.ip().is_loopback() => Door::Local(bound.port()),
            None => Door::Open,
        }
    }

    fn check(&self, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
        match self {
            Door::Open => Ok(()),
            Door::Key(_) if is_probe(path) => Ok(()),
            Door::Key(digest) => {
                let text = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
                let key = text.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
                let is_right = key.is_some_and(|key| bool::from(Sha256::digest(key).as_slice().ct_eq(digest)));
                if is_right {
                    return Ok(());
                }
                let detail = match key {
                    Some(_) => "the API key is not the one that this worker expects",
                    None => "this worker needs an API key: send `Authorization: Bearer KEY`",
                };
                Err(Refusal::new(Code::Unauthorized, detail))
            }
            Door::Local(port) => check_local(*port, headers),
        }
    }
}

/// A page in the owner's browser may send requests here, and a name that its site controls may lead here. Neither shows
/// a local host and no foreign origin, as a program does.
fn check_local(port: u16, headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let foreign = |what: &str, value: &str| {
        let detail = format!("{what} {value:?} is not this machine; set an API key to serve others");
        Err(Refusal::new(Code::Forbidden, detail))
    };
    if let Some(host) = text(header::HOST)
        && !is_local(host)
    {
        return foreign("host", host);
    }
    if let Some(origin) = text(header::ORIGIN) {
        let authority = origin.strip_prefix("http://").unwrap_or(origin);
        let port_there = authority.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(80u16);
        if !is_local(authority) || port_there != port {
            return foreign("origin", origin);
        }
    }
    Ok(())
}

/// Whether `host` or `host:port` names this machine.
fn is_local(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Routes that those ask who watch whether the process lives; they tell nothing else.
fn is_probe(path: &str) -> bool {
    matches!(path, "/health/live" | "/health/ready" | "/health/startup" | "/v2/health/live" | "/v2/health/ready")
}

/// Lets a request in or refuses it, and dresses whatever refusal comes back.
pub(super) async fn guard(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = match app.door.check(&path, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    };
    dress(response, &path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(door: &Door, path: &str, headers: &[(&str, &str)], want: Option<Code>) {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(header::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
        }
        let got = door.check(path, &map).err().map(|refusal| refusal.0.code);
        assert_eq!(got, want, "{path} {headers:?}");
    }

    #[test]
    fn with_a_key_all_but_the_probes_need_it() {
        let options = config::Http { api_key: Some("secret".into()), ..config::Http::default() };
        let door = Door::new(&options, options.address);
        check(&door, "/status", &[], Some(Code::Unauthorized));
        check(&door, "/status", &[("authorization", "Bearer secret")], None);
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer ", "Basic secret", "secret"] {
            check(&door, "/status", &[("authorization", wrong)], Some(Code::Unauthorized));
        }
        check(&door, "/health/ready", &[], None);
        check(&door, "/health", &[], Some(Code::Unauthorized));
    }

    #[test]
    fn without_a_key_other_hosts_and_origins_are_refused() {
        let options = config::Http::default();
        let door = Door::new(&options, options.address);
        for host in ["127.0.0.1:8080", "localhost:8080", "localhost", "[::1]:8080", "127.0.0.1"] {
            check(&door, "/status", &[("host", host)], None);
        }
        for host in ["evil.example", "evil.example:8080", "10.0.0.1:8080", "localhost.evil.example"] {
            check(&door, "/status", &[("host", host)], Some(Code::Forbidden));
        }
        let origin = |origin| [("host", "localhost:8080"), ("origin", origin)];
        check(&door, "/status", &origin("http://localhost:8080"), None);
        for foreign in ["http://evil.example", "http://localhost:3000", "null", "https://localhost:8080.evil.example"] {
            check(&door, "/status", &origin(foreign), Some(Code::Forbidden));
        }
    }

    #[test]
    fn other_addresses_need_a_key_or_a_word() {
        let public = || config::Http { address: ([0, 0, 0, 0], 0).into(), ..config::Http::default() };
        assert!(matches!(super::check(&public()), Err(StartError::Insecure(_))));
        assert!(super::check(&config::Http { api_key: Some("k".into()), ..public() }).is_ok());
        assert!(super::check(&config::Http { insecure: true, ..public() }).is_ok());
        assert!(super::check(&config::Http::default()).is_ok());
    }
}
