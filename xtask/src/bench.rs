//! What comes in: the benches of `benches/`. What goes out: their output, kept in a file that says on which machine, with
//! which compiler and at which commit it was measured. It compares nothing: Criterion does.

use crate::process;
use anyhow::{Context as _, Result};
use std::{
    env, fs,
    path::Path,
    process::Command,
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

/// Runs the benches and keeps their output, with machine and date, under benches/results/.
///
/// Numbers are worth something only when nothing else runs: close what you can. Examples: `cargo xtask bench`,
/// `cargo xtask bench layer_norm`, `cargo xtask bench -- --bench op`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// A filter for Criterion, or after `--` anything that `cargo bench` takes
    arguments: Vec<String>,
}

pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    let mut command = process::cargo(root);
    command.args(["bench", "--package", "benches"]).args(&options.arguments);
    let shown = format!("cargo bench --package benches {}", options.arguments.join(" "));
    let head = head(root, &shown);
    println!("{head}");
    let (passed, lines) = process::watched(&mut command, |_| true)?;
    let folder = root.join("benches/results");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join(format!("{}.txt", now().replace([':', ' '], "-")));
    let text = format!("{head}\n{}\n", lines.join("\n"));
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    println!("kept in {}", file.display());
    Ok(passed)
}

/// What a reader must know to judge the numbers.
fn head(root: &Path, command: &str) -> String {
    let said = |command: &mut Command| {
        process::output(command).map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
    };
    let commit = said(Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(root));
    let rustc = said(Command::new("rustc").arg("--version").current_dir(root));
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().filter(|load| !load.is_empty()).unwrap_or("unknown");
    let gpus = said(Command::new("nvidia-smi").args(["--query-gpu=name,driver_version", "--format=csv,noheader"]));
    let gpus = if gpus == "unknown" { "none that NVIDIA's driver shows" } else { &gpus };
    format!(
        "date      {} UTC\ncommit    {commit}\ncompiler  {rustc}\nmachine   {}, {cores} threads usable, {}\nGPUs      {gpus}\nload      {load} before the first bench\ncommand   {command}\n",
        now(),
        processor(),
        env::consts::OS,
    )
}

/// The processor's name as the kernel tells it.
fn processor() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = information.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// The time in UTC: `2026-11-21 01:05`.
pub(crate) fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    date(seconds)
}

/// Seconds since 1970 as a date of the Gregorian calendar.
fn date(seconds: u64) -> String {
    let (mut days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02} {:02}:{:02}", days + 1, minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_follow_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00"),
            (951_782_400, "2000-02-29 00:00"),
            (1_709_251_199, "2024-02-29 23:59"),
            (1_795_222_800, "2026-11-21 01:00"),
            (4_107_542_400, "2100-03-01 00:00"),
        ] {
            assert_eq!(date(seconds), expected);
        }
    }
}
