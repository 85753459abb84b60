//! `neurogrid profile`: what this machine has.

use crate::args::{Global, Profile};
use crate::output;
use std::process::ExitCode;
use worker::hardware;

/// Runs it.
pub(crate) async fn run(global: &Global, options: Profile) -> anyhow::Result<ExitCode> {
    let folder = worker::config::Cache::default().folder;
    let profile = hardware::profile(hardware::Options {
        nvml_library: options.nvml_library,
        measure: !options.no_measure,
        matmul: Some(super::serving::matmul_seconds),
        ..hardware::Options::new(folder)
    });
    let bar = super::serving::spinner(global.json, "asking the drivers and measuring");
    let profile = profile.await;
    bar.finish_and_clear();
    output::print(global.json, &profile, ToString::to_string)?;
    Ok(ExitCode::SUCCESS)
}
