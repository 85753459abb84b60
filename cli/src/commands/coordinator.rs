//! `neurogrid coordinator`: the grid's front.

use crate::args::{Coordinator, Global};
use crate::{output, shutdown};
use std::process::ExitCode;

/// Runs it.
pub(crate) async fn run(global: &Global, options: Coordinator) -> anyhow::Result<ExitCode> {
    let mut settings = ::coordinator::Options::default();
    settings.http.address = options.bind;
    settings.http.api_key = options.access.api_key;
    settings.http.insecure = options.access.insecure;
    settings.http.origins = options.origin;
    settings.store.folder = super::places::data(options.data_dir).join("coordinator");
    settings.store.retention = options.retention;
    settings.store.tasks_open_max = options.tasks_open_max;
    settings.nodes.enrolment_token = options.enrolment_token;
    let stop = shutdown::on_signal()?;
    let coordinator = ::coordinator::build(settings).await?;
    let url = format!("http://{}", coordinator.local_addr());
    let ready = serde_json::json!({ "event": "ready", "coordinator": url });
    output::announce(global.json, &ready, |_| {
        format!(
            "coordinator is ready at {url}\n\
             join it with: neurogrid worker --coordinator {url}"
        )
    })?;
    coordinator.run_until(stop.cancelled_owned()).await?;
    Ok(ExitCode::SUCCESS)
}
