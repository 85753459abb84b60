//! The child's half: in go questions on stdin, out go answers on stdout, each a line of JSON. It ends when its parent closes
//! stdin or stops reading, so that no probe outlives its worker.

use std::io::{self, BufRead, Write};

use super::{Answer, Question, Subject};
use crate::hardware::{adapters, cuda, nvidia};

/// Answers questions on stdin until it is closed, then ends the process. The executable calls this for the hidden
/// subcommand [`super::CHILD_ARGUMENT`], before it starts anything else.
pub fn run_probe_child() -> ! {
    let served = serve(io::stdin().lock(), &mut io::stdout().lock());
    std::process::exit(i32::from(served.is_err()))
}

/// Answers the questions that `questions` brings until it ends. Lines that are no question are passed over.
///
/// # Errors
/// When the parent can no longer be read from or written to.
pub fn serve(questions: impl BufRead, answers: &mut dyn Write) -> io::Result<()> {
    let mut session = nvidia::Session::default();
    let mut reporter = Reporter { answers, skip: Vec::new(), broken: None };
    reporter.say(Answer::Ready);
    for line in questions.lines() {
        let Ok(question) = serde_json::from_str::<Question>(&line?) else { continue };
        reporter.skip = question.skip;
        match question.subject {
            Subject::Nvidia => session.tell_all(question.library.as_deref(), &mut reporter),
            Subject::NvidiaLoad => session.tell_load(question.library.as_deref(), &mut reporter),
            Subject::Adapters => adapters::tell_all(&mut reporter),
            Subject::Cuda => cuda::tell_all(&mut reporter),
        }
        reporter.say(Answer::Done);
        if let Some(error) = reporter.broken {
            return Err(error);
        }
    }
    Ok(())
}

/// Tells the parent what the child does and finds.
pub(in crate::hardware) struct Reporter<'w> {
    answers: &'w mut dyn Write,
    skip: Vec<String>,
    /// Why the parent can no longer be told anything.
    broken: Option<io::Error>,
}

impl Reporter<'_> {
    /// Tells one part of the answer.
    pub(in crate::hardware) fn say(&mut self, answer: Answer) {
        // A driver may have printed and left its line unfinished.
        let mut line = vec![b'\n'];
        serde_json::to_writer(&mut line, &answer).expect("answers have no map with keys that are not text");
        line.push(b'\n');
        self.write(&line);
    }

    /// Does one thing that might not return, after telling its name; `None` when the parent wants it left out.
    pub(in crate::hardware) fn step<T>(&mut self, name: &str, act: impl FnOnce() -> T) -> Option<T> {
        if self.broken.is_some() || self.skip.iter().any(|skipped| skipped == name) {
            return None;
        }
        self.say(Answer::Step(name.to_owned()));
        Some(act())
    }

    fn write(&mut self, bytes: &[u8]) {
        if self.broken.is_none() {
            self.broken = self.answers.write_all(bytes).and_then(|()| self.answers.flush()).err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(questions: &str) -> Vec<Answer> {
        let mut out = Vec::new();
        serve(questions.as_bytes(), &mut out).unwrap();
        String::from_utf8(out)
            .unwrap()
            .lines()
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    #[test]
    fn a_child_greets_and_ends_with_its_input() {
        assert_eq!(told(""), [Answer::Ready]);
    }

    #[test]
    fn lines_that_are_no_question_are_passed_over() {
        assert_eq!(told("nonsense\n{}\n\n{\"subject\":\"everything\"}\n"), [Answer::Ready]);
    }

    #[test]
    fn a_library_that_is_not_there_is_a_finding_and_a_complete_answer() {
        let answers = told("{\"subject\":\"nvidia\",\"library\":\"/nonexistent/libnvidia-ml.so\"}\n");
        let Some(Answer::Finding(finding)) = answers.get(2) else { panic!("no finding in {answers:?}") };
        assert_eq!(finding.code, "nvidia.library_missing");
        assert_eq!(answers.last(), Some(&Answer::Done));
    }

    #[test]
    fn a_step_to_leave_out_is_not_taken() {
        let question =
            "{\"subject\":\"nvidia\",\"library\":\"/nonexistent\",\"skip\":[\"driver: load the library\"]}\n";
        assert_eq!(told(question), [Answer::Ready, Answer::Done]);
    }
}
