//! One text on its way from nodes to callers: pieces come in from whichever attempt is the task's, what a reader has not seen
//! goes out, and where an attempt is lost the next one goes on behind what came. Pure: never a clock, a link or a store.
//!
//! A piece's text, calls and log-probabilities are functions of its tokens and those before them. So what was told up to the
//! end of any piece is exactly what another node holds to be told when it is given these tokens. What was held back to the
//! end is no such function: it comes with the result, and pieces without tokens are passed over.

use coordinator_client::api::text::LOGPROBS_MAX;
use coordinator_client::wire::Usage;
use coordinator_client::wire::text::{Piece, TokenLogprob, Written};

/// Bytes of text that one token may stand for: far above the longest token of any vocabulary. What a node tells is bounded by it.
const TOKEN_BYTES_MAX: usize = 1_024;

/// What is kept of one text. Above it nothing more is relayed; the result, which has its own bound, tells the rest.
const BYTES_MAX: usize = 32 << 20;

/// A text as far as it was told.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    told: Piece,
    bytes: usize,
    tokens_max: Option<usize>,
    attempt: Option<Current>,
}

/// The attempt that writes it.
#[derive(Debug)]
struct Current {
    epoch: u64,
    /// The connection that tells: the last one that began to.
    session: u64,
    /// Where it began.
    start: Mark,
    /// How far it has told, from there.
    at: Mark,
    /// Of its next frame.
    sequence: u64,
    /// A frame was lost: nothing is heard until it begins again.
    is_deaf: bool,
}

/// A place in a text: how much of each part lies before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    tokens: usize,
    text: usize,
    calls: usize,
    logprobs: usize,
}

/// What a node tells of a text cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Nonsense {
    #[error("{got} tokens were written, at most {max} were asked for")]
    Tokens { got: usize, max: usize },
    #[error("{bytes} bytes of text are more than {tokens} tokens can stand for")]
    Bytes { bytes: usize, tokens: usize },
    #[error("there are more log-probabilities, or calls, than {tokens} tokens can have")]
    Beside { tokens: usize },
    #[error("a token has the log-probabilities of more than {max} others")]
    Width { max: u32 },
    #[error("the {part} are others than those that were told before")]
    Changed { part: &'static str },
    #[error("the result has {tokens} tokens and says that it took {said}")]
    Usage { tokens: usize, said: u64 },
}

impl Relay {
    /// A node is given the text. Returns the tokens behind which it goes on.
    pub(crate) fn begin(&mut self, epoch: u64, tokens_max: Option<u32>) -> Vec<u32> {
        let start = self.end();
        self.tokens_max = tokens_max.map(|max| max as usize);
        self.attempt = Some(Current { epoch, session: 0, start, at: start, sequence: 0, is_deaf: false });
        self.told.tokens.clone()
    }

    fn end(&self) -> Mark {
        let Piece { tokens, text, tool_calls, logprobs } = &self.told;
        Mark { tokens: tokens.len(), text: text.len(), calls: tool_calls.len(), logprobs: logprobs.len() }
    }

    /// Takes in what an attempt tells over a connection. Returns whether there is anything new; an attempt that is not the
    /// task's, or a connection that was replaced, tells nothing. A frame of sequence 0 begins the attempt's tale again, and
    /// what is known of it is passed over. Of what cannot be, nothing is kept, and the attempt is not heard any more.
    pub(crate) fn hear(&mut self, epoch: u64, session: u64, sequence: u64, piece: Piece) -> Result<bool, Nonsense> {
        let before = self.end();
        let is_its = |current: &&mut Current| current.epoch == epoch && current.session <= session;
        let Some(current) = self.attempt.as_mut().filter(is_its) else { return Ok(false) };
        if sequence == 0 {
            (current.session, current.at, current.sequence, current.is_deaf) = (session, current.start, 0, false);
        }
        current.is_deaf |= session != current.session || sequence != current.sequence || self.bytes > BYTES_MAX;
        if current.is_deaf {
            return Ok(false);
        }
        current.sequence += 1;
        if piece.tokens.is_empty() {
            return Ok(false);
        }
        let bytes = size(&piece);
        let heard = check_width(&piece.logprobs).and_then(|()| take(&mut self.told, &mut current.at, piece));
        let heard = heard.and_then(|is_new| check_size(&self.told, self.tokens_max).map(|()| is_new));
        self.bytes += if heard == Ok(true) { bytes } else { 0 };
        if heard.is_err() {
            self.attempt = None;
            self.told.tokens.truncate(before.tokens);
            self.told.text.truncate(before.text);
            self.told.tool_calls.truncate(before.calls);
            self.told.logprobs.truncate(before.logprobs);
        }
        heard
    }

    /// Whether nothing was told, and nobody is to tell anything.
    pub(crate) fn is_idle(&self) -> bool {
        self.told.is_empty() && self.attempt.is_none()
    }

    /// What was told behind a mark, which moves to the end.
    pub(crate) fn since(&self, mark: &mut Mark) -> Piece {
        cut(&self.told, mark)
    }

    /// Refuses a result that is not what was told and more, or that cannot be.
    pub(crate) fn check(&self, written: &Written, usage: Usage, tokens_max: Option<u32>) -> Result<(), Nonsense> {
        let Written { text, tokens, tool_calls, logprobs, finish: _ } = written;
        let changed = |part| Err(Nonsense::Changed { part });
        if !tokens.starts_with(&self.told.tokens) {
            return changed("tokens");
        }
        if !text.starts_with(&self.told.text) {
            return changed("words");
        }
        if !tool_calls.starts_with(&self.told.tool_calls) {
            return changed("calls of tools");
        }
        if usage.output_tokens != tokens.len() as u64 {
            return Err(Nonsense::Usage { tokens: tokens.len(), said: usage.output_tokens });
        }
        let whole = Piece {
            tokens: tokens.clone(),
            text: text.clone(),
            tool_calls: tool_calls.clone(),
            logprobs: logprobs.clone(),
        };
        check_width(&whole.logprobs)?;
        check_size(&whole, tokens_max.map(|max| max as usize))
    }

    /// The log-probabilities of a whole text: a result has those of its own node only.
    pub(crate) fn all_logprobs(&self, own: Vec<TokenLogprob>) -> Vec<TokenLogprob> {
        let before = self.attempt.as_ref().map_or(0, |current| current.start.logprobs);
        self.told.logprobs[..before].iter().cloned().chain(own).collect()
    }
}

/// What a result has behind a mark, which moves to the end.
pub(crate) fn rest(written: &Written, mark: &mut Mark) -> Piece {
    let Written { text, tokens, tool_calls, logprobs, finish: _ } = written.clone();
    // A result that was read from the store has only those of its last node.
    let missing = tokens.len().saturating_sub(logprobs.len());
    mark.logprobs = mark.logprobs.saturating_sub(missing);
    let piece = cut(&Piece { tokens, text, tool_calls, logprobs }, mark);
    mark.logprobs = mark.logprobs.max(written.tokens.len());
    piece
}

/// What lies behind a mark, which moves to the end; nothing where it lies behind the end already.
fn cut(whole: &Piece, mark: &mut Mark) -> Piece {
    let Piece { tokens, text, tool_calls, logprobs } = whole;
    let from = *mark;
    *mark = Mark {
        tokens: from.tokens.max(tokens.len()),
        text: from.text.max(text.len()),
        calls: from.calls.max(tool_calls.len()),
        logprobs: from.logprobs.max(logprobs.len()),
    };
    Piece {
        tokens: tokens.get(from.tokens..).unwrap_or_default().to_vec(),
        text: text.get(from.text..).unwrap_or_default().to_owned(),
        tool_calls: tool_calls.get(from.calls..).unwrap_or_default().to_vec(),
        logprobs: logprobs.get(from.logprobs..).unwrap_or_default().to_vec(),
    }
}

/// Adds a piece to what was told, from a mark on: what lies there already must be the same.
fn take(told: &mut Piece, at: &mut Mark, piece: Piece) -> Result<bool, Nonsense> {
    let Piece { tokens, text, tool_calls, logprobs } = piece;
    let before = told.tokens.len() + told.text.len() + told.tool_calls.len() + told.logprobs.len();
    let changed = |part| Nonsense::Changed { part };
    extend(&mut told.tokens, &mut at.tokens, tokens).ok_or(changed("tokens"))?;
    let known = text.len().min(told.text.len() - at.text);
    if told.text.as_bytes()[at.text..at.text + known] != text.as_bytes()[..known] {
        return Err(changed("words"));
    }
    at.text += text.len();
    told.text.push_str(text.get(known..).ok_or(changed("words"))?);
    extend(&mut told.tool_calls, &mut at.calls, tool_calls).ok_or(changed("calls of tools"))?;
    // Not compared: the same log-probability may be told as different bits of NaN.
    let known = logprobs.len().min(told.logprobs.len() - at.logprobs);
    at.logprobs += logprobs.len();
    told.logprobs.extend(logprobs.into_iter().skip(known));
    Ok(told.tokens.len() + told.text.len() + told.tool_calls.len() + told.logprobs.len() > before)
}

fn extend<T: PartialEq>(told: &mut Vec<T>, at: &mut usize, new: Vec<T>) -> Option<()> {
    let known = new.len().min(told.len() - *at);
    if told[*at..*at + known] != new[..known] {
        return None;
    }
    *at += new.len();
    told.extend(new.into_iter().skip(known));
    Some(())
}

fn check_size(whole: &Piece, tokens_max: Option<usize>) -> Result<(), Nonsense> {
    let Piece { tokens, text, tool_calls, logprobs } = whole;
    let tokens = tokens.len();
    if let Some(max) = tokens_max.filter(|max| tokens > *max) {
        return Err(Nonsense::Tokens { got: tokens, max });
    }
    let called: usize = tool_calls.iter().map(|call| call.name.len() + call.arguments.len()).sum();
    let bytes = text.len().saturating_add(called);
    if bytes > tokens.saturating_mul(TOKEN_BYTES_MAX) {
        return Err(Nonsense::Bytes { bytes, tokens });
    }
    let is_too_many = tool_calls.len() > tokens || logprobs.len() > tokens;
    if is_too_many { Err(Nonsense::Beside { tokens }) } else { Ok(()) }
}

fn check_width(logprobs: &[TokenLogprob]) -> Result<(), Nonsense> {
    let is_too_wide = |token: &TokenLogprob| token.top.len() > LOGPROBS_MAX as usize;
    if logprobs.iter().any(is_too_wide) { Err(Nonsense::Width { max: LOGPROBS_MAX }) } else { Ok(()) }
}

/// About how many bytes a piece takes in memory.
fn size(Piece { tokens, text, tool_calls, logprobs }: &Piece) -> usize {
    let calls: usize = tool_calls.iter().map(|call| 48 + call.name.len() + call.arguments.len()).sum();
    let likelihoods = logprobs.iter().flat_map(|token| std::iter::once(token).chain(&token.top));
    let likelihoods: usize = likelihoods.map(|token| 56 + token.text.len()).sum();
    4 * tokens.len() + text.len() + calls + likelihoods
}

#[cfg(test)]
mod tests {
    use super::*;
    use coordinator_client::wire::text::{Finish, ToolCall};
    use proptest::prelude::*;

    /// Tokens of the text that nodes write here.
    const LENGTH: usize = 20;

    /// Each token's word; every third character is held back until it is sure that no stop string begins with it.
    fn word(token: usize) -> String {
        format!("é{token} ")
    }

    fn shown(tokens: usize) -> String {
        (0..tokens - tokens % 3).map(word).collect()
    }

    fn logprob(token: usize) -> TokenLogprob {
        TokenLogprob { token: token as u32, text: word(token), logprob: -(token as f32), top: vec![] }
    }

    /// What is told when a text of so many tokens has become one of so many.
    fn piece(from: usize, to: usize) -> Piece {
        Piece {
            tokens: (from as u32..to as u32).collect(),
            text: shown(to)[shown(from).len()..].to_owned(),
            tool_calls: vec![],
            logprobs: (from..to).map(logprob).collect(),
        }
    }

    /// The result of a node that began behind so many tokens.
    fn written(from: usize) -> Written {
        Written {
            text: (0..LENGTH).map(word).collect(),
            tokens: (0..LENGTH as u32).collect(),
            tool_calls: vec![],
            logprobs: (from..LENGTH).map(logprob).collect(),
            finish: Finish::Stop,
        }
    }

    fn usage() -> Usage {
        Usage { input_tokens: 3, cached_tokens: 0, output_tokens: LENGTH as u64 }
    }

    /// What happens to a text on its way.
    #[derive(Debug, Clone)]
    enum Step {
        /// The node writes so many tokens and tells them in one frame.
        Write(usize),
        /// The same, and the frame is lost.
        Lose(usize),
        /// The link breaks and comes back: all is told again, in frames of so many tokens.
        Reconnect(usize),
        /// The node is gone, another one begins.
        Die,
        /// A frame of an attempt that is over comes late.
        Late,
        /// The caller reads.
        Read,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1usize..4).prop_map(Step::Write),
            1 => (1usize..4).prop_map(Step::Lose),
            2 => (1usize..5).prop_map(Step::Reconnect),
            2 => Just(Step::Die),
            1 => Just(Step::Late),
            4 => Just(Step::Read),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_told_twice_and_nothing_is_missing(steps in proptest::collection::vec(step(), 0..40)) {
            let mut relay = Relay::default();
            let (mut epoch, mut session, mut sequence) = (1, 1, 0);
            let (mut start, mut at) = (relay.begin(1, Some(LENGTH as u32)).len(), 0);
            let mut has_begun = false;
            let (mut mark, mut read) = (Mark::default(), Piece::default());
            for step in steps {
                match step {
                    Step::Write(count) | Step::Lose(count) => {
                        let to = (at + count).min(LENGTH);
                        if to > at {
                            if matches!(step, Step::Write(_)) {
                                has_begun |= sequence == 0;
                                relay.hear(epoch, session, sequence, piece(at, to)).unwrap();
                            }
                            (at, sequence) = (to, sequence + 1);
                        }
                    }
                    Step::Reconnect(width) => {
                        (session, sequence) = (session + 1, 0);
                        for from in (start..at).step_by(width) {
                            relay.hear(epoch, session, sequence, piece(from, (from + width).min(at))).unwrap();
                            sequence += 1;
                        }
                        has_begun = sequence > 0;
                    }
                    Step::Die => {
                        (epoch, sequence, has_begun) = (epoch + 1, 0, false);
                        let told = relay.begin(epoch, Some(LENGTH as u32));
                        prop_assert!(told.iter().copied().eq(0..told.len() as u32));
                        prop_assert!(told.len() <= at);
                        (start, at) = (told.len(), told.len());
                    }
                    Step::Late => {
                        let nonsense = Piece { tokens: vec![999], text: "late".into(), ..Piece::default() };
                        prop_assert_eq!(relay.hear(epoch - 1, session, 0, nonsense.clone()), Ok(false));
                        prop_assert_eq!(relay.hear(epoch + 1, session, 0, nonsense.clone()), Ok(false));
                        if has_begun {
                            prop_assert_eq!(relay.hear(epoch, session - 1, 0, nonsense.clone()), Ok(false));
                            prop_assert_eq!(relay.hear(epoch, session - 1, sequence, nonsense), Ok(false));
                        }
                    }
                    Step::Read => {
                        read.append(relay.since(&mut mark));
                        prop_assert_eq!(&read.text, &shown(read.tokens.len()), "a reader could go on from here");
                    }
                }
            }
            let mut whole = written(start);
            prop_assert_eq!(relay.check(&whole, usage(), Some(LENGTH as u32)), Ok(()));
            whole.logprobs = relay.all_logprobs(whole.logprobs);
            prop_assert_eq!(&whole, &written(0));
            read.append(rest(&whole, &mut mark));
            let Written { text, tokens, logprobs, .. } = whole;
            prop_assert_eq!(read, Piece { tokens, text, tool_calls: vec![], logprobs });
            prop_assert!(rest(&written(0), &mut mark).is_empty());
            prop_assert!(relay.since(&mut mark).is_empty());
        }
    }

    #[test]
    fn what_is_heard_behind_a_gap_waits_for_the_result_or_a_new_beginning() {
        let mut relay = Relay::default();
        relay.begin(1, None);
        assert_eq!(relay.hear(1, 1, 0, piece(0, 2)), Ok(true));
        assert_eq!(relay.hear(1, 1, 2, piece(4, 6)), Ok(false));
        assert_eq!(relay.hear(1, 1, 3, piece(6, 8)), Ok(false));
        assert_eq!(relay.begin(2, None), [0, 1]);
        assert_eq!(relay.hear(2, 1, 0, piece(2, 4)), Ok(true));
        assert_eq!(relay.hear(2, 1, 0, piece(2, 3)), Ok(false), "it is known");
        assert_eq!(relay.hear(2, 1, 1, piece(3, 6)), Ok(true));
        let rest = Piece { text: "held back to the end".into(), ..Piece::default() };
        assert_eq!(relay.hear(2, 1, 2, rest), Ok(false), "no token leads to it");
        assert_eq!(relay.hear(2, 1, 3, piece(6, 7)), Ok(true));
        assert_eq!(relay.since(&mut Mark::default()), piece(0, 7));
    }

    #[test]
    fn what_cannot_be_is_refused_and_ends_the_attempt() {
        let call = || ToolCall { name: "f".into(), arguments: "{}".into() };
        let check = |piece: Piece, want: Nonsense| {
            let mut relay = Relay::default();
            relay.begin(1, Some(3));
            relay.hear(1, 1, 0, super::tests::piece(0, 2)).unwrap();
            assert_eq!(relay.hear(1, 1, 1, piece.clone()), Err(want), "{piece:?}");
            assert_eq!(relay.hear(1, 1, 2, super::tests::piece(2, 3)), Ok(false), "it is not heard any more");
            assert_eq!(relay.since(&mut Mark::default()), super::tests::piece(0, 2), "nothing of it is kept");
        };
        let one = |text: &str| Piece { tokens: vec![2], text: text.into(), ..Piece::default() };
        check(Piece { tokens: vec![2, 3], ..Piece::default() }, Nonsense::Tokens { got: 4, max: 3 });
        check(one(&"x".repeat(4_000)), Nonsense::Bytes { bytes: 4_000, tokens: 3 });
        check(Piece { tool_calls: vec![call(); 4], ..one("") }, Nonsense::Beside { tokens: 3 });
        check(Piece { logprobs: vec![logprob(2); 2], ..one("") }, Nonsense::Beside { tokens: 3 });
        let wide = TokenLogprob { top: vec![logprob(0); 21], ..logprob(2) };
        check(Piece { logprobs: vec![wide], ..one("") }, Nonsense::Width { max: 20 });
        let mut relay = Relay::default();
        relay.begin(1, None);
        relay.hear(1, 1, 0, piece(0, 6)).unwrap();
        let other = Piece { text: "other".into(), ..piece(0, 3) };
        assert_eq!(relay.hear(1, 1, 0, other), Err(Nonsense::Changed { part: "words" }));
        relay.begin(2, None);
        relay.hear(2, 1, 0, piece(6, 9)).unwrap();
        let other = Piece { tokens: vec![6, 8], ..Piece::default() };
        assert_eq!(relay.hear(2, 1, 0, other), Err(Nonsense::Changed { part: "tokens" }));
    }

    #[test]
    fn a_result_that_is_not_what_was_told_is_refused() {
        let mut relay = Relay::default();
        relay.begin(1, None);
        relay.hear(1, 1, 0, Piece { tool_calls: vec![], ..piece(0, 3) }).unwrap();
        let check = |change: fn(&mut Written, &mut Usage), want: Result<(), Nonsense>| {
            let (mut written, mut usage) = (written(0), usage());
            change(&mut written, &mut usage);
            assert_eq!(relay.check(&written, usage, Some(LENGTH as u32)), want);
        };
        check(|_, _| {}, Ok(()));
        check(|written, _| written.tokens[1] = 9, Err(Nonsense::Changed { part: "tokens" }));
        check(|written, _| written.tokens.truncate(2), Err(Nonsense::Changed { part: "tokens" }));
        check(|written, _| written.text = "é0 é1 è".into(), Err(Nonsense::Changed { part: "words" }));
        check(|_, usage| usage.output_tokens = 7, Err(Nonsense::Usage { tokens: LENGTH, said: 7 }));
        check(
            |written, usage| {
                written.tokens.push(0);
                usage.output_tokens += 1;
            },
            Err(Nonsense::Tokens { got: LENGTH + 1, max: LENGTH }),
        );
        check(
            |written, _| written.text.push_str(&"x".repeat(LENGTH * TOKEN_BYTES_MAX)),
            Err(Nonsense::Bytes { bytes: LENGTH * TOKEN_BYTES_MAX + shown_all(), tokens: LENGTH }),
        );
    }

    fn shown_all() -> usize {
        written(0).text.len()
    }

    #[test]
    fn a_text_that_grows_too_large_is_kept_as_far_as_it_came() {
        let mut relay = Relay::default();
        relay.begin(1, None);
        let large = Piece { tokens: vec![7; BYTES_MAX / 4 + 1], ..Piece::default() };
        assert_eq!(relay.hear(1, 1, 0, large), Ok(true));
        assert_eq!(relay.hear(1, 1, 1, piece(0, 1)), Ok(false));
        assert_eq!(relay.since(&mut Mark::default()).tokens.len(), BYTES_MAX / 4 + 1);
    }
}
