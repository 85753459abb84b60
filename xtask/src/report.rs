//! What comes in: the steps of a run with their times, and what was skipped with its reason. What goes out: the closing
//! table. It never decides whether a run passed: the steps do.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

/// How a step ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    Skipped,
}

struct Step {
    name: String,
    outcome: Outcome,
    took: Duration,
}

/// What a run did, in order.
#[derive(Default)]
pub(crate) struct Report {
    steps: Vec<Step>,
    /// Reason to what it kept from running.
    skipped: BTreeMap<String, Vec<String>>,
    /// The test runner's own closing lines.
    pub(crate) summary: Vec<String>,
}

impl Report {
    /// Runs one step and notes how it ended. An error is shown here and counts as a failure, so that the steps after it
    /// still run: one run should show every fault.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce(&mut Self) -> anyhow::Result<bool>) -> bool {
        println!("\n== {name}");
        let start = Instant::now();
        let passed = work(self).unwrap_or_else(|error| {
            eprintln!("error: {name}: {error:#}");
            false
        });
        let outcome = if passed { Outcome::Passed } else { Outcome::Failed };
        self.steps.push(Step { name: name.to_owned(), outcome, took: start.elapsed() });
        passed
    }

    /// Notes a step that was left out.
    pub(crate) fn leave_out(&mut self, name: &str, why: &str) {
        self.steps.push(Step { name: name.to_owned(), outcome: Outcome::Skipped, took: Duration::ZERO });
        self.skip(name, why);
    }

    /// Notes one thing that was not run or not installed.
    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        self.skipped.entry(why.to_owned()).or_default().push(what.to_owned());
    }

    /// True when no step failed.
    pub(crate) fn passed(&self) -> bool {
        self.steps.iter().all(|step| step.outcome != Outcome::Failed)
    }
}

/// More names than this behind one reason are counted, not listed.
const NAMES_MAX: usize = 4;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
        for Step { name, outcome, took } in &self.steps {
            let outcome = match outcome {
                Outcome::Passed => "ok",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            writeln!(f, "{name:width$}  {outcome:<7}  {:>7.1} s", took.as_secs_f64())?;
        }
        if self.skipped.is_empty() {
            writeln!(f, "nothing was skipped")?;
        } else {
            writeln!(f, "skipped:")?;
        }
        for (why, what) in &self.skipped {
            let listed = what.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join(", ");
            let more = what.len().saturating_sub(NAMES_MAX);
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            writeln!(f, "  {listed}{more}: {why}")?;
        }
        for line in &self.summary {
            writeln!(f, "{line}")?;
        }
        write!(f, "{}", if self.passed() { "everything that ran passed" } else { "FAILED" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_fails_the_report_and_the_next_step_still_runs() {
        let mut report = Report::default();
        assert!(!report.step("one", |_| anyhow::bail!("broken")));
        assert!(report.step("two", |_| Ok(true)));
        assert!(!report.passed());
        assert!(report.to_string().contains("FAILED"));
    }

    #[test]
    fn a_skipped_step_is_no_failure_and_is_shown_with_its_reason() {
        let mut report = Report::default();
        report.leave_out("clippy", "--fast");
        assert!(report.passed());
        assert!(report.to_string().contains("clippy: --fast"));
    }

    #[test]
    fn many_things_behind_one_reason_are_counted() {
        let mut report = Report::default();
        for name in ["a", "b", "c", "d", "e", "f"] {
            report.skip(name, "no GPU");
        }
        assert!(report.to_string().contains("a, b, c, d and 2 more: no GPU"));
    }
}
