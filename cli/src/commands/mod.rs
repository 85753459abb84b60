//! One file per command. Each turns its arguments into options of a library, calls it, and prints what came of it.

mod bench;
mod chat;
mod config;
mod coordinator;
mod doctor;
mod models;
mod places;
mod profile;
mod run;
mod serving;
mod up;
mod worker;

use crate::args::{Cli, Command};
use clap::CommandFactory;
use std::process::ExitCode;

/// Runs the command that was given.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let Cli { global, command } = cli;
    match command {
        Command::Up(options) => up::run(&global, options).await,
        Command::Worker(options) => worker::run(&global, options).await,
        Command::Coordinator(options) => coordinator::run(&global, options).await,
        Command::Profile(options) => profile::run(&global, options).await,
        Command::Doctor(options) => doctor::run(&global, options).await,
        Command::Models(command) => models::run(&global, command).await,
        Command::Run(command) => run::run(&global, command).await,
        Command::Bench(bench) => bench::run(&global, bench).await,
        Command::Config(command) => config::run(&global, &command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "neurogrid", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::ProbeGpu => unreachable!("the child ends before anything is started"),
    }
}
