//! What commands say: JSON or text on standard output, errors on standard error.

use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;

/// Prints a line; a closed pipe (`| head`) ends the program quietly.
pub(crate) fn line(text: impl std::fmt::Display) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Prints the value as JSON, or as what `text` makes of it.
pub(crate) fn print<T: Serialize>(json: bool, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    if json {
        line(serde_json::to_string_pretty(value)?);
    } else {
        line(text(value).trim_end());
    }
    Ok(())
}

/// Prints that something happened in a program that goes on: one line of JSON, or what `text` makes of it.
pub(crate) fn announce<T: Serialize>(json: bool, event: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    line(if json { serde_json::to_string(event)? } else { text(event) });
    Ok(())
}

/// Prints why a command failed.
pub(crate) fn fail(json: bool, error: &anyhow::Error) -> ExitCode {
    if json {
        line(serde_json::json!({ "error": format!("{error:#}") }));
    } else {
        eprintln!("error: {error:#}");
    }
    ExitCode::FAILURE
}

/// Columns that stand under each other; the first row is the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A number of bytes for people.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: &[(u64, &str)] = &[(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match UNITS.iter().find(|(size, _)| bytes >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other() {
        let row = |cells: &[&str]| cells.iter().map(ToString::to_string).collect();
        assert_eq!(table(&[row(&["a", "b"]), row(&["long", "x"])]), "a     b\nlong  x\n");
    }

    #[test]
    fn bytes_are_told_in_the_largest_unit_that_fits() {
        let told = [0, 999, 1_000, 91_000_000, 2_500_000_000].map(bytes);
        assert_eq!(told, ["0 B", "999 B", "1.0 kB", "91.0 MB", "2.5 GB"]);
    }
}
