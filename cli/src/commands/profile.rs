//! `neurogrid profile`: what this machine has.

use crate::args::{Global, Profile};
use crate::output;
use std::process::ExitCode;
use std::sync::Arc;
use worker::hardware;
use worker::hardware::capability::{self, Mode};

/// Runs it.
pub(crate) async fn run(global: &Global, options: Profile) -> anyhow::Result<ExitCode> {
    let folder = worker::config::Cache::default().folder;
    let bar = super::serving::spinner(global.json, "asking the drivers and measuring");
    let mode = match (options.no_measure, options.measure_again) {
        (true, _) => Mode::Kept,
        (_, true) => Mode::Again,
        _ => Mode::Missing,
    };
    let shown = bar.clone();
    let progress = Arc::new(move |what: &str| shown.set_message(what.to_owned()));
    let kept = capability::Options::kept(&super::places::data(options.data_dir));
    let profile = hardware::profile(hardware::Options {
        nvml_library: options.nvml_library,
        measure: !options.no_measure,
        matmul: Some(super::serving::matmul_seconds),
        capabilities: Some(capability::Options { mode, progress, ..kept }),
        ..hardware::Options::new(folder)
    });
    let profile = profile.await;
    bar.finish_and_clear();
    output::print(global.json, &profile, ToString::to_string)?;
    Ok(ExitCode::SUCCESS)
}
