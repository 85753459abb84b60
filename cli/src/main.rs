//! The `neurogrid` executable: arguments and settings go in, one command runs, text or JSON comes out. No logic of the grid
//! stands here.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod commands;
mod http;
mod output;
mod settings;
mod shutdown;
mod sse;

use clap::{CommandFactory, FromArgMatches};
use std::io::IsTerminal;
use std::process::ExitCode;

/// The variable that keeps ONNX Runtime, as Microsoft builds it, from keeping a number of this machine and reporting its use over the network.
const NO_REPORTS: &str = "ORT_DISABLE_TELEMETRY";

fn main() -> ExitCode {
    without_reports();
    let cli = match parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    // The child asks drivers that may crash or hang: nothing else is started in it.
    if let args::Command::ProbeGpu = cli.command {
        ::worker::hardware::run_probe_child();
    }
    start_logging(&cli.global);
    let json = cli.global.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output::fail(json, &anyhow::Error::new(error).context("cannot start threads")),
    };
    let result = runtime.block_on(commands::run(cli));
    // A download or a measurement that still runs on a blocking thread must not hold up the exit.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => output::fail(json, &error),
    }
}

/// Becomes this program with that variable set, in the same process: the library reads it when it is loaded, and one's own environment cannot be
/// changed safely. Whoever has set it, to whatever, has decided.
fn without_reports() {
    #[cfg(unix)]
    if std::env::var_os(NO_REPORTS).is_none()
        && let Ok(program) = std::env::current_exe()
    {
        use std::os::unix::process::CommandExt;
        let mut arguments = std::env::args_os();
        let mut again = std::process::Command::new(program);
        again.arg0(arguments.next().unwrap_or_default()).args(arguments).env(NO_REPORTS, "1");
        // It comes back only where it cannot be done, such as when the executable has been replaced.
        drop(again.exec());
    }
}

/// Reads the settings file into the command's defaults, then the command line.
fn parse() -> Result<args::Cli, ExitCode> {
    let mut command = args::Cli::command();
    let first = command.clone().ignore_errors(true).get_matches();
    let named = first.get_one::<std::path::PathBuf>("config").cloned();
    let file = named.or_else(|| settings::default_file().filter(|path| path.exists()));
    // `config check` reports the mistakes itself.
    let is_check = first.subcommand_matches("config").is_some();
    if let Some(file) = file.filter(|_| !is_check) {
        let mistakes = match settings::read(&file) {
            Ok(table) => {
                let (with, mistakes) = settings::apply(command, &table);
                command = with;
                mistakes
            }
            Err(mistake) => vec![mistake],
        };
        if !mistakes.is_empty() {
            for mistake in &mistakes {
                eprintln!("error: {}: {mistake}", file.display());
            }
            return Err(ExitCode::from(2));
        }
    }
    let matches = command.get_matches();
    args::Cli::from_arg_matches(&matches).map_err(|error| error.exit())
}

fn start_logging(global: &args::Global) {
    use tracing_subscriber::{EnvFilter, fmt};
    let (filter, mistake) = match global.log.parse::<EnvFilter>() {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    // Quiet by default: what these say at `info` is of no use to whoever runs a worker.
    let quiet = ["wgpu_core=error", "wgpu_hal=error", "naga=error", "ort=warn", "hyper=warn", "tungstenite=warn"];
    let directive = |d: &&str| d.parse().expect("a valid directive");
    let filter = match global.log.as_str() {
        "info" => quiet.iter().map(directive).fold(filter, EnvFilter::add_directive),
        _ => filter,
    };
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match global.log_format {
        args::LogFormat::Text => builder.init(),
        args::LogFormat::Json => builder.json().init(),
    }
    if let Some(error) = mistake {
        tracing::warn!(filter = global.log, %error, "the log filter is not valid; logging at info");
    }
}
