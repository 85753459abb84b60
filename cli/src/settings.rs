//! Settings: a TOML file, environment variables and flags become one set of arguments. The file's values are put in as the
//! defaults of the flags, so every option exists once, in `args`, and the order is file < environment < flag everywhere.
//!
//! The file has a table per command, its keys are the long flags with `_` for `-`:
//! ```toml
//! [worker]
//! coordinator = ["https://grid.example.org"]
//! max_concurrent_tasks = 64
//! ```

use clap::{ArgAction, Command};
use std::path::{Path, PathBuf};

/// A mistake in a settings file or in the environment.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Mistake {
    /// Table and key, or the variable.
    pub(crate) place: String,
    /// What is wrong, and what would be right.
    pub(crate) problem: String,
}

impl std::fmt::Display for Mistake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

/// The file that is read when none is named.
pub(crate) fn default_file() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".config"));
    let base = std::env::var_os("XDG_CONFIG_HOME").filter(|value| !value.is_empty()).map(PathBuf::from);
    Some(base.or_else(home)?.join("neurogrid").join("config.toml"))
}

/// Reads a settings file.
pub(crate) fn read(path: &Path) -> Result<toml::Table, Mistake> {
    let mistake = |problem: String| Mistake { place: path.display().to_string(), problem };
    let text = std::fs::read_to_string(path).map_err(|e| mistake(format!("cannot be read: {e}")))?;
    text.parse().map_err(|e: toml::de::Error| mistake(e.to_string()))
}

/// The command with the file's values as defaults, and every mistake in the file.
pub(crate) fn apply(mut command: Command, file: &toml::Table) -> (Command, Vec<Mistake>) {
    let mut mistakes = Vec::new();
    // What is built once must not be changed any more, and only what is built knows all its options.
    let mut built = command.clone();
    built.build();
    for (table, value) in file {
        let Some(sub) = built.find_subcommand(table).filter(|sub| takes_settings(sub)) else {
            let tables: Vec<&str> =
                built.get_subcommands().filter(|s| takes_settings(s)).map(Command::get_name).collect();
            mistakes.push(Mistake {
                place: format!("[{table}]"),
                problem: format!("no such table; there are {}", tables.join(", ")),
            });
            continue;
        };
        let Some(entries) = value.as_table() else {
            mistakes.push(Mistake {
                place: table.clone(),
                problem: "must stand in the table of its command, e.g. under [worker]".into(),
            });
            continue;
        };
        let known: Vec<String> = keys(sub);
        for (key, value) in entries {
            let place = format!("[{table}] {key}");
            if !known.contains(key) {
                mistakes.push(Mistake { place, problem: unknown(key, &known) });
                continue;
            }
            let values = match strings(value) {
                Ok(values) => values,
                Err(problem) => {
                    mistakes.push(Mistake { place, problem });
                    continue;
                }
            };
            let with = set(command.clone(), table, key, values);
            match with.clone().try_get_matches_from(["neurogrid", table.as_str()]) {
                Ok(_) => command = with,
                Err(error) => mistakes.push(Mistake { place, problem: first_line(&error) }),
            }
        }
    }
    (command, mistakes)
}

/// Variables of the environment that look like settings and are none.
pub(crate) fn unknown_variables(command: &Command, names: impl Iterator<Item = String>) -> Vec<Mistake> {
    let mut known: Vec<String> = Vec::new();
    collect_variables(command, &mut known);
    let ours = names.filter(|name| name.starts_with("NEUROGRID_") && !name.starts_with("NEUROGRID_TEST_"));
    ours.filter(|name| !known.contains(name))
        .map(|name| Mistake { problem: unknown(&name, &known), place: name })
        .collect()
}

fn collect_variables(command: &Command, into: &mut Vec<String>) {
    into.extend(command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_string_lossy().into_owned())));
    for sub in command.get_subcommands() {
        collect_variables(sub, into);
    }
}

/// Only commands that run for long have a table; the others are given their arguments when they are called.
fn takes_settings(command: &Command) -> bool {
    ["up", "worker", "coordinator"].contains(&command.get_name())
}

fn keys(command: &Command) -> Vec<String> {
    let options = command.get_arguments().filter(|arg| arg.get_long().is_some() && !arg.is_global_set());
    let named = options.filter(|arg| !matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpLong));
    named.map(|arg| arg.get_id().as_str().to_owned()).collect()
}

fn set(command: Command, table: &str, key: &str, values: Vec<String>) -> Command {
    command.mut_subcommand(table, |sub| sub.mut_arg(key, |arg| arg.default_values(values)))
}

fn strings(value: &toml::Value) -> Result<Vec<String>, String> {
    match value {
        toml::Value::String(text) => Ok(vec![text.clone()]),
        toml::Value::Integer(_) | toml::Value::Float(_) | toml::Value::Boolean(_) => Ok(vec![value.to_string()]),
        toml::Value::Array(values) => values.iter().map(strings).collect::<Result<Vec<_>, _>>().map(|v| v.concat()),
        toml::Value::Table(_) | toml::Value::Datetime(_) => {
            Err("must be a text, a number, true, false or a list of them".into())
        }
    }
}

fn unknown(name: &str, known: &[String]) -> String {
    match nearest(name, known) {
        Some(nearest) => format!("unknown; did you mean {nearest}?"),
        None => "unknown; see --help for what there is".into(),
    }
}

/// The name that was probably meant, if any is near.
pub(crate) fn nearest<'a>(name: &str, known: &'a [String]) -> Option<&'a String> {
    let nearest = known.iter().min_by_key(|candidate| distance(name, candidate));
    nearest.filter(|candidate| distance(name, candidate) <= name.len() / 3)
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Reads a file's text; returns the places of the mistakes.
    fn check(text: &str, want: &[&str]) {
        let (_, mistakes) = apply(crate::args::Cli::command(), &text.parse().unwrap());
        assert_eq!(mistakes.iter().map(|m| m.place.as_str()).collect::<Vec<_>>(), want, "{mistakes:#?}");
    }

    #[test]
    fn every_mistake_is_found_at_once() {
        check("[worker]\nbind = '127.0.0.1:9'\nthreads = 2\ninsecure = true", &[]);
        check(
            "[worker]\nbindd = 'x'\nthreads = 'two'\n[nonsense]",
            &["[nonsense]", "[worker] bindd", "[worker] threads"],
        );
        check("bind = 'x'", &["[bind]"]);
        check("worker = 3", &["worker"]);
    }

    #[test]
    fn a_misspelt_key_is_answered_with_the_right_one() {
        let (_, mistakes) = apply(crate::args::Cli::command(), &"[worker]\nthread = 2".parse().unwrap());
        assert_eq!(mistakes[0].problem, "unknown; did you mean threads?");
    }

    #[test]
    fn the_file_gives_way_to_flags() {
        let file = "[worker]\nthreads = 2\nname = 'from-file'".parse().unwrap();
        let (command, mistakes) = apply(crate::args::Cli::command(), &file);
        assert_eq!(mistakes, []);
        let matches = command.try_get_matches_from(["neurogrid", "worker", "--threads", "3"]).unwrap();
        let (_, worker) = matches.subcommand().unwrap();
        assert_eq!(worker.get_one::<usize>("threads"), Some(&3));
        assert_eq!(worker.get_one::<String>("name").map(String::as_str), Some("from-file"));
    }

    #[test]
    fn variables_that_are_no_settings_are_named() {
        let names = ["NEUROGRID_THREDS", "NEUROGRID_THREADS", "PATH"].map(String::from);
        let mistakes = unknown_variables(&crate::args::Cli::command(), names.into_iter());
        assert_eq!(mistakes.len(), 1);
        assert_eq!(mistakes[0].problem, "unknown; did you mean NEUROGRID_THREADS?");
    }

    #[test]
    fn edit_distance_counts_changes() {
        assert_eq!(distance("thread", "threads"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
