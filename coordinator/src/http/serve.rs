//! The socket: connections come in with the delay algorithm off, so that small frames leave at once, and with both ends'
//! addresses, which say under which origins this coordinator is reached.

use crate::grid::Grid;
use axum::ServiceExt;
use axum::extract::Request;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::{TcpListener, TcpStream};

/// Serves requests until `stopping`, and those under way to their end.
pub(crate) async fn serve(
    grid: Arc<Grid>,
    listener: TcpListener,
    stopping: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let service = ServiceExt::<Request>::into_make_service_with_connect_info::<Connection>(super::router(grid));
    axum::serve(Door(listener), service).with_graceful_shutdown(stopping).await
}

/// A listener whose connections do not delay small writes.
#[derive(Debug)]
struct Door(TcpListener);

impl Listener for Door {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        let (stream, peer) = Listener::accept(&mut self.0).await;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "small writes to this peer may be delayed");
        }
        (stream, peer)
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// This end's address of a request's connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connection {
    local: Option<SocketAddr>,
}

impl Connected<IncomingStream<'_, Door>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        Self { local: stream.io().local_addr().ok() }
    }
}

impl Connection {
    /// Whether an origin is one of this coordinator's: among those that were set, or the very address that was dialled.
    /// What a request's headers say does not count, because whoever relays a challenge writes them.
    pub(crate) fn is_origin(&self, origin: &str, set: &[String]) -> bool {
        let Ok(url) = url::Url::parse(origin) else { return false };
        let is_set = |set: &String| url::Url::parse(set).is_ok_and(|set| set.origin() == url.origin());
        if !url.origin().is_tuple() || url.origin().ascii_serialization() != origin.trim_end_matches('/') {
            return false;
        }
        set.iter().any(is_set) || self.local.is_some_and(|local| is_address(&url, local))
    }
}

fn is_address(url: &url::Url, local: SocketAddr) -> bool {
    let ip = local.ip().to_canonical();
    let is_host = match url.host() {
        Some(url::Host::Ipv4(host)) => ip == host,
        Some(url::Host::Ipv6(host)) => ip == host,
        Some(url::Host::Domain(name)) => name == "localhost" && ip.is_loopback(),
        None => false,
    };
    is_host && url.scheme() == "http" && url.port_or_known_default() == Some(local.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_set_and_what_was_dialled_are_origins() {
        let check = |local: &str, origin: &str, is_ours: bool| {
            let connection = Connection { local: Some(local.parse().unwrap()) };
            let set = ["https://grid.example.org".to_owned(), "http://10.0.0.1:8080/".to_owned()];
            assert_eq!(connection.is_origin(origin, &set), is_ours, "{origin} at {local}");
        };
        check("127.0.0.1:3001", "http://127.0.0.1:3001", true);
        check("127.0.0.1:3001", "http://localhost:3001", true);
        check("[::1]:3001", "http://[::1]:3001", true);
        check("[::ffff:127.0.0.1]:3001", "http://127.0.0.1:3001", true);
        check("127.0.0.1:80", "http://127.0.0.1", true);
        check("127.0.0.1:3001", "https://127.0.0.1:3001", false);
        check("127.0.0.1:3001", "http://127.0.0.1:3002", false);
        check("127.0.0.1:3001", "http://127.0.0.2:3001", false);
        check("127.0.0.1:3001", "http://evil.example:3001", false);
        check("10.9.9.9:3001", "http://localhost:3001", false);
        check("127.0.0.1:3001", "https://grid.example.org", true);
        check("127.0.0.1:3001", "https://grid.example.org:444", false);
        check("127.0.0.1:3001", "http://10.0.0.1:8080", true);
        check("127.0.0.1:3001", "https://grid.example.org/path", false);
        check("127.0.0.1:3001", "nonsense", false);
    }
}
