//! The parent's half: in goes a question, out come the answer and what went wrong with the child. It kills a child that is
//! silent or talks without end, and starts another one; it never waits without a limit and keeps no child longer than itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Answer, Question, Subject};
use crate::hardware::Finding;

/// A line longer than this is not ours: the longest answer, a card in full, takes under 2 kB.
const LINE_BYTES_MAX: usize = 64 << 10;
/// An answer of more lines is not ours: 16 cards with 30 steps each make 1,000, empty lines included.
const LINES_MAX: usize = 10_000;
/// How much of the child's complaints is kept for the finding.
const COMPLAINT_BYTES_MAX: usize = 4 << 10;
/// How often a question is asked: a driver with more broken queries than this is best left alone.
const ATTEMPTS_MAX: usize = 4;
/// A live child that failed is started again after this, doubled with each failure.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest pause between two attempts: a driver that is installed meanwhile is found within this time.
const BACKOFF_LONGEST: Duration = Duration::from_secs(300);

/// How the child is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Environment variables in addition to this process' own.
    pub environment: Vec<(OsString, OsString)>,
}

/// Why a question has no complete answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The executable could not be started.
    #[error("{program} could not be started as a probe: {reason}")]
    NotStarted {
        /// The executable.
        program: String,
        /// What the system said.
        reason: String,
    },
    /// The child ended before its answer was complete.
    #[error("the probe {ended}{}{}", during(.step), complaint(.stderr))]
    Ended {
        /// How, such as `was killed by signal 11 (SIGSEGV)`.
        ended: String,
        /// The last thing that it began.
        step: Option<String>,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
    /// The child said nothing for too long and was killed.
    #[error("the probe was silent for {waited:?} and was killed{}", during(.step))]
    Silent {
        /// How long it was waited for.
        waited: Duration,
        /// The last thing that it began.
        step: Option<String>,
    },
    /// The child wrote what is no answer, and was killed.
    #[error("the probe wrote what is no answer: {sample:?}{}", during(.step))]
    Garbled {
        /// The beginning of it.
        sample: String,
        /// The last thing that it began.
        step: Option<String>,
    },
}

fn during(step: &Option<String>) -> String {
    step.as_ref().map(|step| format!(" while it did: {step}")).unwrap_or_default()
}

fn complaint(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; it said: {stderr}") }
}

impl Failure {
    fn step(&self) -> Option<&String> {
        match self {
            Self::NotStarted { .. } => None,
            Self::Ended { step, .. } | Self::Silent { step, .. } | Self::Garbled { step, .. } => step.as_ref(),
        }
    }

    /// The finding that tells a person of it.
    pub fn finding(&self, subject: Subject) -> Finding {
        let kind = match self {
            Self::NotStarted { .. } => "probe_not_started",
            Self::Ended { .. } => "probe_crashed",
            Self::Silent { .. } => "probe_hung",
            Self::Garbled { .. } => "probe_garbled",
        };
        let finding = Finding::error(&format!("{}.{kind}", subject.name()), self.to_string());
        match self {
            Self::NotStarted { .. } => finding.with_remedy("restart the program if its file was replaced while it ran"),
            _ => finding.with_remedy("update or reinstall the graphics driver; what was not asked is missing here"),
        }
    }
}

/// Asks one question of a child of its own. Steps that end or stop a child are left out of the next attempt, so that one
/// broken query costs one figure; the findings name them all.
pub(in crate::hardware) async fn ask_once(
    command: &Command,
    subject: Subject,
    library: Option<&Path>,
    patience: Duration,
) -> Vec<Answer> {
    let mut question = Question { subject, library: library.map(Path::to_owned), skip: Vec::new() };
    let mut failures: Vec<Answer> = Vec::new();
    loop {
        let mut answers = Vec::new();
        let asked = match Running::start(command) {
            Ok(mut child) => {
                let asked = child.ask(&question, patience, &mut answers).await;
                child.end().await;
                asked
            }
            Err(failure) => Err(failure),
        };
        let step = match asked {
            Ok(()) => None,
            Err(failure) => {
                failures.push(Answer::Finding(failure.finding(subject)));
                failure.step().filter(|step| !question.skip.contains(step)).cloned()
            }
        };
        match step {
            Some(step) if failures.len() < ATTEMPTS_MAX => question.skip.push(step),
            // What the last attempt told before it failed is better than nothing.
            _ => {
                answers.extend(failures);
                return answers;
            }
        }
    }
}

/// A child that is kept, and started again when it fails.
pub(in crate::hardware) struct Live {
    command: Command,
    question: Question,
    patience: Duration,
    child: Option<Running>,
    failures: u32,
    not_before: Option<Instant>,
    /// Why there is no answer at the moment.
    reason: Option<Finding>,
}

impl Live {
    pub(in crate::hardware) fn new(
        command: Command,
        subject: Subject,
        library: Option<PathBuf>,
        patience: Duration,
    ) -> Self {
        let question = Question { subject, library, skip: Vec::new() };
        Self { command, question, patience, child: None, failures: 0, not_before: None, reason: None }
    }

    /// One answer. While the child rests after a failure, only the finding that says why.
    pub(in crate::hardware) async fn ask(&mut self, now: Instant) -> Vec<Answer> {
        if self.not_before.is_some_and(|time| now < time) {
            return self.reason.iter().cloned().map(Answer::Finding).collect();
        }
        let mut answers = Vec::new();
        match self.ask_child(&mut answers).await {
            // An answer without a card is a driver that does not work: no need to keep its child.
            Ok(()) if !answers.iter().any(|answer| matches!(answer, Answer::GpuSample(_))) => {
                let found = answers.iter().find_map(|answer| match answer {
                    Answer::Finding(finding) => Some(finding.clone()),
                    _ => None,
                });
                self.reason = found.or(self.reason.take());
                // With everything left out that ever failed, nothing was left: try it all again next time.
                self.question.skip.clear();
                self.rest(now).await;
            }
            Ok(()) => {
                self.failures = 0;
                self.reason = None;
            }
            Err(failure) => {
                if let Some(step) = failure.step().filter(|step| !self.question.skip.contains(step)) {
                    self.question.skip.push(step.clone());
                }
                let finding = failure.finding(self.question.subject);
                tracing::warn!(%finding, "the GPU probe failed");
                answers.push(Answer::Finding(finding.clone()));
                self.reason = Some(finding);
                self.rest(now).await;
            }
        }
        answers
    }

    async fn ask_child(&mut self, answers: &mut Vec<Answer>) -> Result<(), Failure> {
        let child = match &mut self.child {
            Some(child) => child,
            none => none.insert(Running::start(&self.command)?),
        };
        child.ask(&self.question, self.patience, answers).await
    }

    async fn rest(&mut self, now: Instant) {
        if let Some(child) = self.child.take() {
            child.end().await;
        }
        self.not_before = Some(now + backoff(self.failures));
        self.failures = self.failures.saturating_add(1);
    }
}

/// The pause after `failures` failures before the one that just was.
fn backoff(failures: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(BACKOFF_LONGEST)
}

/// A child that runs. Dropping it kills it.
struct Running {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
    stderr: JoinHandle<String>,
    ready: bool,
}

impl Running {
    fn start(command: &Command) -> Result<Self, Failure> {
        let failed = |reason: String| Failure::NotStarted { program: command.program.display().to_string(), reason };
        let mut starting = tokio::process::Command::new(&command.program);
        // Ctrl-C at a terminal is for the parent: it ends the child when it has no more questions.
        #[cfg(unix)]
        starting.process_group(0);
        let mut process = starting
            .args(&command.args)
            .envs(command.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let pipes = (process.stdin.take(), process.stdout.take(), process.stderr.take());
        let (Some(questions), Some(answers), Some(stderr)) = pipes else {
            return Err(failed("its pipes are missing".to_owned()));
        };
        let answers = BufReader::new(answers);
        Ok(Self { process, questions, answers, stderr: tokio::spawn(tail(stderr)), ready: false })
    }

    async fn ask(&mut self, question: &Question, patience: Duration, answers: &mut Vec<Answer>) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(question)
            .map_err(|error| Failure::NotStarted { program: "the question".to_owned(), reason: error.to_string() })?;
        line.push(b'\n');
        // A child that has ended is found out when its answer is read.
        let _ = timeout(patience, self.questions.write_all(&line)).await;
        let mut step = None;
        let mut strays = Vec::new();
        for _ in 0..LINES_MAX {
            let line = match timeout(patience, read_line(&mut self.answers)).await {
                Err(_) => {
                    self.kill().await;
                    return Err(Failure::Silent { waited: patience, step });
                }
                Ok(None) => return Err(self.ended(step).await),
                Ok(Some(line)) => line,
            };
            match serde_json::from_slice(&line) {
                Ok(Answer::Ready) => self.ready = true,
                Ok(Answer::Step(name)) => step = Some(name),
                Ok(Answer::Done) => {
                    answers.extend(stray(question.subject, &strays).map(Answer::Finding));
                    return Ok(());
                }
                Ok(answer) => answers.push(answer),
                Err(_) if line.len() >= LINE_BYTES_MAX => {
                    self.kill().await;
                    return Err(Failure::Garbled { sample: sample(&line), step });
                }
                // A driver may print; some lines among ours do no harm. What comes before the greeting is not its doing.
                Err(_) if self.ready && !line.trim_ascii().is_empty() => strays.push(sample(line.trim_ascii())),
                Err(_) => {}
            }
        }
        self.kill().await;
        Err(Failure::Garbled { sample: format!("more than {LINES_MAX} lines"), step })
    }

    /// Why the child closed its output.
    async fn ended(&mut self, step: Option<String>) -> Failure {
        // A child that closes its output and lives on would hold us up.
        let ended = match timeout(Duration::from_secs(1), self.process.wait()).await {
            Ok(Ok(status)) => describe(status),
            Ok(Err(error)) => format!("ended, and the system does not say how: {error}"),
            Err(_) => {
                self.kill().await;
                "closed its output".to_owned()
            }
        };
        let stderr = timeout(Duration::from_secs(1), &mut self.stderr).await;
        Failure::Ended { ended, step, stderr: stderr.ok().and_then(Result::ok).unwrap_or_default() }
    }

    async fn kill(&mut self) {
        // A process in an uninterruptible call of its driver dies when that call returns, perhaps never.
        let _ = timeout(Duration::from_secs(1), self.process.kill()).await;
    }

    /// Closes its input, and kills it if it does not end by itself.
    async fn end(self) {
        let Self { mut process, questions, stderr, .. } = self;
        drop(questions);
        if timeout(Duration::from_millis(200), process.wait()).await.is_err() {
            let _ = timeout(Duration::from_secs(1), process.kill()).await;
        }
        stderr.abort();
    }
}

/// What a driver printed between the answers.
fn stray(subject: Subject, lines: &[String]) -> Option<Finding> {
    let first = lines.first()?;
    let message = format!("the driver printed {} lines of its own, the first: {first:?}", lines.len());
    Some(Finding::info(&format!("{}.probe_chatter", subject.name()), message))
}

/// The next line, cut at [`LINE_BYTES_MAX`]; `None` at the end of the output.
async fn read_line(source: &mut BufReader<ChildStdout>) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let read = source.take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await;
    match read {
        Ok(count) if count > 0 => Some(line),
        _ => None,
    }
}

/// Reads to the end and keeps the last few lines.
async fn tail(mut source: impl AsyncRead + Unpin) -> String {
    let mut kept = Vec::new();
    let mut part = [0; 1024];
    while let Ok(count @ 1..) = source.read(&mut part).await {
        kept.extend_from_slice(&part[..count]);
        let surplus = kept.len().saturating_sub(COMPLAINT_BYTES_MAX);
        kept.drain(..surplus);
    }
    let text = String::from_utf8_lossy(&kept);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

fn sample(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned()
}

fn describe(status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let name = match signal {
            4 => " (SIGILL)",
            6 => " (SIGABRT)",
            7 => " (SIGBUS)",
            8 => " (SIGFPE)",
            9 => " (SIGKILL)",
            11 => " (SIGSEGV)",
            _ => "",
        };
        return format!("was killed by signal {signal}{name}");
    }
    match status.code() {
        Some(101) => "panicked".to_owned(),
        Some(code) => format!("ended with exit code {code}"),
        None => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_driver_among_the_answers_are_one_finding() {
        assert_eq!(stray(Subject::Adapters, &[]), None);
        let finding = stray(Subject::Adapters, &["MESA: warning".to_owned(), "x".to_owned()]).unwrap();
        assert_eq!(finding.code, "adapters.probe_chatter");
        assert!(finding.message.contains("2 lines") && finding.message.contains("MESA"), "{finding}");
    }

    #[test]
    fn the_pause_after_failures_doubles_up_to_five_minutes() {
        let check = |failures: u32, seconds: u64| assert_eq!(backoff(failures), Duration::from_secs(seconds));
        check(0, 1);
        check(1, 2);
        check(5, 32);
        check(9, 300);
        check(40, 300);
    }
}
