//! What comes in: a command line, `cargo xtask <task>`. What goes out: steps run aloud, a summary, an exit code that is
//! not zero when anything failed. It never changes source files and nothing in the workspace depends on it.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a command-line program speaks on stdout")]

mod bench;
mod cuda;
mod golden;
mod gpu;
mod process;
mod python;
mod report;
mod test;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Project tasks. `cargo xtask test` is the one to know: it installs what the tests need and runs everything.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

/// What each does, its options say: a line here would take the place of all that they tell.
#[derive(Subcommand)]
enum Task {
    Test(test::Options),
    /// What continuous integration runs: the same as `test`, without options
    Ci,
    Tidy(tidy::Options),
    Golden(golden::Options),
    Bench(bench::Options),
    Gpu(gpu::Options),
    Cuda(cuda::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one task. `Ok(false)` means that it did its work and found faults, which it has already shown.
fn run(task: Task) -> Result<bool> {
    let root = process::repository()?;
    match task {
        Task::Test(options) => test::run(&root, &options),
        Task::Ci => test::run(&root, &test::Options::default()),
        Task::Tidy(options) => tidy::run(&root, &options),
        Task::Golden(options) => golden::run(&root, &options),
        Task::Bench(options) => bench::run(&root, &options),
        Task::Gpu(options) => gpu::run(&root, &options),
        Task::Cuda(options) => cuda::run(&root, &options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }
}
