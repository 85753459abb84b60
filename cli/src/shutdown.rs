//! Signals become a token: the first asks for an orderly end, a second ends at once.

use tokio_util::sync::CancellationToken;

/// A token that is cancelled by SIGTERM or Ctrl-C.
pub(crate) fn on_signal() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let stop = token.clone();
    #[cfg(unix)]
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::spawn(async move {
        #[cfg(unix)]
        let asked = async || {
            tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = tokio::signal::ctrl_c() => "Ctrl-C",
            }
        };
        #[cfg(not(unix))]
        let asked = async || {
            drop(tokio::signal::ctrl_c().await);
            "Ctrl-C"
        };
        let mut asked = asked;
        let signal = asked().await;
        tracing::info!(signal, "finishing what is under way; once more to end at once");
        stop.cancel();
        asked().await;
        std::process::exit(130);
    });
    Ok(token)
}
