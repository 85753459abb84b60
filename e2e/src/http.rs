//! Requests to the programs under test: JSON in, status and JSON out.

use anyhow::Context;
use serde_json::Value;
use std::time::{Duration, Instant};

/// A client that waits as long as the slowest test needs.
///
/// # Panics
/// When there is no TLS to be had, which these tests do not need.
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build().expect("plain settings")
}

/// Gets JSON from an address.
///
/// # Errors
/// When nobody answers, or not with a success.
pub async fn get(client: &reqwest::Client, url: &str) -> anyhow::Result<Value> {
    let response = client.get(url).send().await?;
    let status = response.status();
    let body = response.text().await?;
    anyhow::ensure!(status.is_success(), "GET {url}: {status}: {body}");
    serde_json::from_str(&body).with_context(|| format!("GET {url}: {body}"))
}

/// Posts JSON and returns the status and the JSON that came back.
///
/// # Errors
/// When nobody answers with JSON.
pub async fn post(client: &reqwest::Client, url: &str, body: &Value) -> anyhow::Result<(u16, Value)> {
    let response = client.post(url).json(body).send().await?;
    let status = response.status().as_u16();
    let text = response.text().await?;
    Ok((status, serde_json::from_str(&text).with_context(|| format!("POST {url}: {status}: {text}"))?))
}

/// Asks again and again until the answer is there.
///
/// # Errors
/// When it is not there in time; with the last failure.
pub async fn until<T>(
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let end = Instant::now() + within;
    loop {
        let answer = ask().await;
        match answer {
            Ok(Some(found)) => return Ok(found),
            Ok(None) if Instant::now() < end => {}
            Err(_) if Instant::now() < end => {}
            Ok(None) => anyhow::bail!("{what}: not after {} s", within.as_secs()),
            Err(error) => return Err(error.context(format!("{what}: not after {} s", within.as_secs()))),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
