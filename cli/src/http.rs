//! The client for what commands ask over HTTP.

use std::time::Duration;

/// A client that gives up on a silent server, and goes past proxies for this machine's own addresses.
pub(crate) fn client() -> anyhow::Result<reqwest::Client> {
    let builder = reqwest::Client::builder()
        .user_agent(concat!("neurogrid/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(330));
    Ok(builder.build()?)
}
