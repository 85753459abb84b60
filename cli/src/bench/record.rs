//! What became of one request: when it was due, when its pieces came, or why they did not. Pure. All times are since the start
//! of the stage.

use super::api::Usage;
use std::time::Duration;

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// When it was to be sent. Its times are counted from here, however late it left.
    pub(crate) due: Duration,
    /// When it was sent, if it was.
    pub(crate) sent: Option<Duration>,
    pub(crate) outcome: Outcome,
}

/// How a request ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// With an answer.
    Answered(Answer),
    /// Without.
    Failed(Failure),
    /// It was not sent, because as many as may be were under way.
    Dropped,
    /// The run ended before it did.
    Unfinished,
}

/// An answer that came whole.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// When each piece of the text came. Empty where the answer is no text.
    pub(crate) arrivals: Vec<Duration>,
    /// When all of it was there.
    pub(crate) ended: Duration,
    pub(crate) usage: Usage,
}

impl Answer {
    /// Tokens of the text: what the server says, or else a token for each piece.
    pub(crate) fn tokens(&self) -> u64 {
        self.usage.output.unwrap_or(self.arrivals.len() as u64)
    }

    /// Time until the first piece.
    pub(crate) fn ttft(&self, due: Duration) -> Option<Duration> {
        Some(self.arrivals.first()?.saturating_sub(due))
    }

    /// Time until the end.
    pub(crate) fn e2e(&self, due: Duration) -> Duration {
        self.ended.saturating_sub(due)
    }

    /// Time between two pieces, in order.
    pub(crate) fn gaps(&self) -> impl Iterator<Item = Duration> + '_ {
        self.arrivals.windows(2).map(|pair| pair[1].saturating_sub(pair[0]))
    }

    /// The longest time between two pieces.
    pub(crate) fn longest_gap(&self) -> Option<Duration> {
        self.gaps().max()
    }

    /// How many tokens a piece behind the first holds on average: events do not say how many are in them, so what the server
    /// counts is spread evenly over the pieces. 1 where every piece is a token.
    pub(crate) fn tokens_per_gap(&self) -> f64 {
        let gaps = self.arrivals.len().saturating_sub(1) as f64;
        let tokens = self.tokens().saturating_sub(1) as f64;
        if gaps > 0.0 && tokens > 0.0 { tokens / gaps } else { 1.0 }
    }

    /// Time that a token behind the first took on average.
    pub(crate) fn mean_gap(&self) -> Option<Duration> {
        let (first, last) = (self.arrivals.first()?, self.arrivals.last()?);
        let tokens = self.tokens_per_gap() * self.arrivals.len().saturating_sub(1) as f64;
        (tokens > 0.0).then(|| last.saturating_sub(*first).div_f64(tokens))
    }

    /// Tokens that had come by a piece's place, spread evenly over all pieces.
    pub(crate) fn tokens_per_piece(&self) -> f64 {
        if self.arrivals.is_empty() { 0.0 } else { self.tokens() as f64 / self.arrivals.len() as f64 }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection.
    Unreachable(String),
    /// It took longer than a request may.
    Timeout,
    /// Another status than 200, and what was said.
    Status(u16, String),
    /// The connection broke off.
    Broken(String),
    /// What came is not what was asked for.
    Malformed(String),
    /// The stream carried an error.
    InStream(String),
    /// The stream ended well-formed, without the word that it is complete.
    CutOff(String),
    /// A text without a single token.
    Empty,
}

impl Failure {
    /// What it is counted under.
    pub(crate) fn kind(&self) -> String {
        match self {
            Self::Unreachable(_) => "unreachable".into(),
            Self::Timeout => "timeout".into(),
            Self::Status(status, _) => format!("http_{status}"),
            Self::Broken(_) => "broken_connection".into(),
            Self::Malformed(_) => "malformed".into(),
            Self::InStream(_) => "error_in_stream".into(),
            Self::CutOff(_) => "cut_off".into(),
            Self::Empty => "no_text".into(),
        }
    }

    /// What was said about it.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::Unreachable(message)
            | Self::Status(_, message)
            | Self::Broken(message)
            | Self::Malformed(message)
            | Self::InStream(message)
            | Self::CutOff(message) => message,
            Self::Timeout => "no whole answer within --timeout",
            Self::Empty => "an answer without text; --ignore-eos keeps a model from ending at once",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(arrivals_ms: &[u64], tokens: Option<u64>) -> Answer {
        let arrivals: Vec<Duration> = arrivals_ms.iter().map(|at| Duration::from_millis(*at)).collect();
        let ended = arrivals.last().copied().unwrap_or(Duration::from_millis(900));
        Answer { arrivals, ended, usage: Usage { output: tokens, ..Usage::default() } }
    }

    #[test]
    fn times_are_counted_from_when_a_request_was_due() {
        let answer = answer(&[1_500, 1_600], None);
        let due = Duration::from_millis(400);
        assert_eq!(answer.ttft(due), Some(Duration::from_millis(1_100)));
        assert_eq!(answer.e2e(due), Duration::from_millis(1_200));
    }

    /// `want` is the mean time of a token in milliseconds.
    fn check(arrivals_ms: &[u64], tokens: Option<u64>, want: Option<u64>) {
        let answer = answer(arrivals_ms, tokens);
        assert_eq!(answer.mean_gap(), want.map(Duration::from_millis), "{arrivals_ms:?} {tokens:?}");
        // However pieces are cut, what stands for the tokens behind the first adds up to the time that they took.
        let pieces: Duration = answer.gaps().sum();
        let tokens: f64 = answer.gaps().map(|_| answer.tokens_per_gap()).sum();
        if let Some(mean) = answer.mean_gap() {
            assert!((mean.as_secs_f64() * tokens - pieces.as_secs_f64()).abs() < 1e-6);
        }
    }

    #[test]
    fn the_time_of_a_token_does_not_depend_on_how_pieces_are_cut() {
        check(&[100, 200, 300, 400], Some(4), Some(100));
        check(&[100, 400], Some(4), Some(100));
        check(&[100, 200, 300, 400], None, Some(100));
        check(&[100], Some(4), None);
        check(&[], Some(4), None);
        // Fewer tokens than pieces: a token's bytes came apart.
        check(&[100, 200, 300], Some(2), Some(200));
        // A count that cannot be: the pieces are taken.
        check(&[100, 200], Some(0), Some(100));
    }
}
