//! `neurogrid config`: are the settings right, and what could be set.

use crate::args::{Cli, Config, Global};
use crate::{output, settings};
use clap::{ArgAction, CommandFactory};
use std::process::ExitCode;

/// Runs it.
pub(crate) fn run(global: &Global, config: &Config) -> anyhow::Result<ExitCode> {
    match config {
        Config::Check => check(global),
        Config::Template => {
            output::line(template().trim_end());
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[derive(serde::Serialize)]
struct Report {
    file: Option<String>,
    mistakes: Vec<settings::Mistake>,
}

fn check(global: &Global) -> anyhow::Result<ExitCode> {
    let file = global.config.clone().or_else(|| settings::default_file().filter(|path| path.exists()));
    let mut mistakes = match &file {
        None => vec![],
        Some(path) => match settings::read(path) {
            Ok(table) => settings::apply(Cli::command(), &table).1,
            Err(mistake) => vec![mistake],
        },
    };
    mistakes.extend(settings::unknown_variables(&Cli::command(), std::env::vars().map(|(name, _)| name)));
    let report = Report { file: file.map(|path| path.display().to_string()), mistakes };
    output::print(global.json, &report, |report| {
        let file = report.file.as_deref().unwrap_or("no settings file");
        match report.mistakes.len() {
            0 => format!("{file}: no mistakes"),
            count => {
                let lines: Vec<String> = report.mistakes.iter().map(|m| format!("  {m}")).collect();
                format!("{file}: {count} mistakes\n{}", lines.join("\n"))
            }
        }
    })?;
    Ok(if report.mistakes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A settings file with everything commented out.
fn template() -> String {
    let mut command = Cli::command();
    command.build();
    let mut text =
        String::from("# Settings of neurogrid. Everything here is commented out; the values are the defaults.\n");
    for name in ["up", "worker", "coordinator"] {
        let sub = command.find_subcommand(name).expect("the command exists");
        text.push_str(&format!("\n[{name}]\n"));
        let options = sub.get_arguments().filter(|arg| arg.get_long().is_some() && !arg.is_global_set());
        for arg in options.filter(|arg| !matches!(arg.get_action(), ArgAction::Help)) {
            for line in arg.get_help().map(ToString::to_string).unwrap_or_default().lines() {
                text.push_str(&format!("# {line}\n"));
            }
            let default = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
            let value = match (arg.get_action(), default) {
                (ArgAction::SetTrue, _) => "false".into(),
                (_, Some(value)) if value.parse::<f64>().is_ok() => value,
                (_, Some(value)) => format!("{value:?}"),
                (ArgAction::Append, None) => "[]".into(),
                (_, None) => "\"\"".into(),
            };
            text.push_str(&format!("# {} = {value}\n", arg.get_id()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_without_its_comments_is_a_settings_file() {
        let (_, mistakes) = settings::apply(Cli::command(), &template().parse().expect("TOML"));
        assert_eq!(mistakes, []);
        assert!(template().contains("# bind = \"127.0.0.1:8080\""));
    }
}
