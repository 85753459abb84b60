//! What is asked: from a seed and a number comes the prompt of that number, from a file its lines in turn. The same seed asks the
//! same of every server whose tokens are alike. Pure but for the file's reading.

use super::api::Kind;
use super::length::Length;
use super::random::Random;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Everyday words, which most vocabularies have as one token with the space before them.
const WORDS: &str = "the of and to in that it is was for on are with as they at be this from have or by one had \
    not but what all were when we there can an your which their said if do will each about how up out them then she \
    many some so these would other into has more her two like him see time could no make than first been its who now \
    people my made over did down only way find use may water long little very after words called just where most know \
    get through back much before go good new write our used me man too any day same right look think also around \
    another came come work three word must because does part even place well such here take why things help put years \
    different away again off went old number great tell men say small every found still between name should home big \
    give air line set own under read last never us left end along while might next sound below saw something thought \
    both few those always looked show large often together asked house world going want school important until form \
    food keep children feet land side without boy once animals life enough took sometimes four head above kind began \
    almost live page got earth need far hand high year mother light parts country father let night following picture \
    being study second eyes soon times story boys since white days ever paper hard near sentence better best across \
    during today others however sure means knew try told young miles sun ways thing whole hear example heard several \
    change answer room sea against top turned learn point city play toward five using himself usually";

/// So many numbers are one stage's, more than any sends: made prompts are never asked twice.
pub(crate) const STAGE: u64 = 1 << 32;

/// How the server counts tokens, found by asking it: what a prompt of so many words has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Counting {
    /// Tokens that a word has on average.
    pub(crate) tokens_per_word: f64,
    /// Tokens of a prompt without words: of the chat's template, of the beginning.
    pub(crate) tokens_around: f64,
}

impl Default for Counting {
    /// For a server that does not say how many tokens a prompt has: a word is one.
    fn default() -> Self {
        Self { tokens_per_word: 1.0, tokens_around: 0.0 }
    }
}

impl Counting {
    /// The line through two prompts, given as (words, tokens). The second is the longer one.
    pub(crate) fn of(short: (u32, f64), long: (u32, f64)) -> Self {
        let per_word = (long.1 - short.1) / f64::from(long.0.saturating_sub(short.0));
        // A server that gives the same for both counts something else.
        if !per_word.is_finite() || per_word < 0.1 {
            return Self::default();
        }
        let around = short.1 - per_word * f64::from(short.0);
        Self { tokens_per_word: per_word, tokens_around: around.max(0.0) }
    }

    /// How many words make so many tokens. 1 at least.
    fn words(self, tokens: u32) -> usize {
        (((f64::from(tokens) - self.tokens_around) / self.tokens_per_word).round() as usize).max(1)
    }
}

/// Where prompts come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Made of words.
    Synthetic {
        /// Tokens of a prompt, those of the prefix among them.
        prompt: Length,
        /// Tokens at the beginning that all prompts share.
        shared_prefix: u32,
        /// Tokens that are asked for.
        output: Length,
    },
    /// Read from a file.
    File {
        /// Its lines.
        lines: Vec<Line>,
        /// Tokens that are asked for where a line does not say.
        output: Length,
    },
}

/// One line of a file of prompts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    /// A text.
    #[serde(default)]
    pub(crate) prompt: Option<String>,
    /// A chat, as OpenAI has it. In place of `prompt`.
    #[serde(default)]
    pub(crate) messages: Option<Vec<serde_json::Value>>,
    /// Tokens that are asked for.
    #[serde(default)]
    pub(crate) max_tokens: Option<u32>,
}

/// What one request asks.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    /// One prompt; for embeddings as many texts as a request holds.
    pub(crate) prompts: Vec<Prompt>,
    /// Tokens that may be written.
    pub(crate) max_tokens: u32,
}

/// A prompt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Prompt {
    /// A text.
    Text(String),
    /// A chat.
    Messages(Vec<serde_json::Value>),
}

/// Reads a file of prompts: a JSON object a line.
///
/// # Errors
/// When it cannot be read, has no line, or has one that is of no use for this kind of request.
pub(crate) fn read(path: &Path, kind: Kind) -> anyhow::Result<Vec<Line>> {
    let place = path.display();
    let text = std::fs::read_to_string(path).map_err(|error| anyhow::anyhow!("cannot read {place}: {error}"))?;
    let lines = parse(&text, kind).map_err(|problem| anyhow::anyhow!("{place}: {problem}"))?;
    anyhow::ensure!(!lines.is_empty(), "{place} has no prompts; write {{\"prompt\": \"…\"}} on each line");
    Ok(lines)
}

fn parse(text: &str, kind: Kind) -> Result<Vec<Line>, String> {
    let filled = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    filled
        .map(|(index, line)| parse_line(line, kind).map_err(|problem| format!("line {}: {problem}", index + 1)))
        .collect()
}

fn parse_line(line: &str, kind: Kind) -> Result<Line, String> {
    let line: Line = serde_json::from_str(line).map_err(|error| {
        format!("{error}; write {{\"prompt\": \"…\", \"max_tokens\": 64}} or {{\"messages\": […]}}")
    })?;
    match (&line.prompt, &line.messages) {
        (Some(_), Some(_)) => Err("has both prompt and messages; keep one".into()),
        (None, None) => Err("has neither prompt nor messages".into()),
        (None, Some(_)) if kind != Kind::Chat => Err("messages are for `bench chat`; write a prompt here".into()),
        (None, Some(messages)) if messages.is_empty() => Err("messages are empty".into()),
        _ if line.max_tokens == Some(0) => Err("max_tokens must be 1 at least".into()),
        _ => Ok(line),
    }
}

/// Makes the prompts of one run.
#[derive(Debug, Clone)]
pub(crate) struct Prompts {
    source: Source,
    seed: u64,
    counting: Counting,
    /// Texts of one request. Only embeddings take more than one.
    texts: usize,
    words: Vec<&'static str>,
    prefix: String,
    prefix_words: usize,
}

impl Prompts {
    /// Prompts of a source.
    pub(crate) fn new(source: Source, seed: u64, counting: Counting, texts: usize) -> Self {
        let mut prompts = Self {
            source,
            seed,
            counting,
            texts,
            words: WORDS.split_whitespace().collect(),
            prefix: String::new(),
            prefix_words: 0,
        };
        if let Source::Synthetic { shared_prefix, .. } = prompts.source
            && shared_prefix > 0
        {
            prompts.prefix_words = counting.words(shared_prefix);
            // A stream that no request has.
            prompts.prefix = prompts.text(prompts.prefix_words, &mut Random::new(seed, u64::MAX));
        }
        prompts
    }

    /// Whether prompts are made of words, and not read.
    pub(crate) fn is_synthetic(&self) -> bool {
        matches!(self.source, Source::Synthetic { .. })
    }

    /// A text of so many words, to ask a server how it counts. Another one for each number.
    pub(crate) fn probe(&self, words: u32, number: u32) -> Ask {
        // Streams that no request has, and the same for every seed: so is the counting.
        let mut random = Random::new(u64::from(words), u64::MAX - 1 - u64::from(number));
        Ask { prompts: vec![Prompt::Text(self.text(words as usize, &mut random))], max_tokens: 1 }
    }

    /// What the request of this number asks.
    pub(crate) fn ask(&self, number: u64) -> Ask {
        // 0 is the schedule's.
        let mut random = Random::new(self.seed, number + 1);
        match &self.source {
            Source::Synthetic { prompt, output, .. } => {
                let made = (0..self.texts).map(|_| Prompt::Text(self.synthetic(*prompt, &mut random)));
                let prompts = made.collect();
                Ask { prompts, max_tokens: output.draw(&mut random) }
            }
            Source::File { lines, output } => {
                // Every stage reads the file from its start.
                let first = number % STAGE * self.texts as u64;
                let place = |text: usize| ((first + text as u64) % lines.len() as u64) as usize;
                let prompt = |line: &Line| match (&line.prompt, &line.messages) {
                    (Some(text), _) => Prompt::Text(text.clone()),
                    (None, messages) => Prompt::Messages(messages.clone().unwrap_or_default()),
                };
                let prompts = (0..self.texts).map(|text| prompt(&lines[place(text)])).collect();
                let drawn = output.draw(&mut random);
                Ask { prompts, max_tokens: lines[place(0)].max_tokens.unwrap_or(drawn) }
            }
        }
    }

    fn synthetic(&self, length: Length, random: &mut Random) -> String {
        let words = self.counting.words(length.draw(random));
        if self.prefix_words == 0 {
            return self.text(words, random);
        }
        // At least one word of its own, so that no prompt is another's beginning and nothing else.
        let own = words.saturating_sub(self.prefix_words).max(1);
        format!("{} {}", self.prefix, self.text(own, random))
    }

    fn text(&self, words: usize, random: &mut Random) -> String {
        let drawn: Vec<&str> = (0..words).map(|_| self.words[random.below(self.words.len())]).collect();
        drawn.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn synthetic(prompt: &str, shared_prefix: u32, counting: Counting) -> Prompts {
        let output = Length::Even(4, 8);
        Prompts::new(Source::Synthetic { prompt: prompt.parse().unwrap(), shared_prefix, output }, 1, counting, 1)
    }

    fn text(ask: &Ask) -> &str {
        match ask.prompts.as_slice() {
            [Prompt::Text(text)] => text,
            other => panic!("{other:?}"),
        }
    }

    fn words(ask: &Ask) -> usize {
        text(ask).split(' ').count()
    }

    #[test]
    fn a_prompt_is_fixed_by_its_seed_and_number() {
        let prompts = synthetic("20", 0, Counting::default());
        assert_eq!(prompts.ask(3), prompts.clone().ask(3));
        assert_ne!(text(&prompts.ask(3)), text(&prompts.ask(4)));
        assert!((0..200).all(|number| (4..=8).contains(&prompts.ask(number).max_tokens)));
        let other = Prompts { seed: 2, ..prompts.clone() };
        assert_ne!(text(&prompts.ask(3)), text(&other.ask(3)));
    }

    #[test]
    fn words_are_counted_as_the_server_counts() {
        let counting = Counting::of((16, 30.0), (144, 222.0));
        assert_eq!(counting, Counting { tokens_per_word: 1.5, tokens_around: 6.0 });
        assert_eq!(words(&synthetic("156", 0, counting).ask(0)), 100);
        assert_eq!(words(&synthetic("20", 0, Counting::default()).ask(0)), 20);
        // Too few tokens for the template alone still make a prompt.
        assert_eq!(words(&synthetic("2", 0, counting).ask(0)), 1);
        // A server that always says the same, or nothing of use.
        assert_eq!(Counting::of((16, 9.0), (144, 9.0)), Counting::default());
        assert_eq!(Counting::of((16, 9.0), (16, 12.0)), Counting::default());
    }

    #[test]
    fn a_shared_prefix_is_shared_and_what_is_behind_it_is_not() {
        let prompts = synthetic("30-40", 20, Counting::default());
        let (first, second) = (prompts.ask(0), prompts.ask(1));
        let same = text(&first).split(' ').zip(text(&second).split(' ')).take_while(|(a, b)| a == b).count();
        assert!((20..24).contains(&same), "{same}");
        assert!((30..=40).contains(&words(&first)));
        // A prefix that is longer than the prompt leaves it a word of its own.
        assert_eq!(words(&synthetic("10", 20, Counting::default()).ask(0)), 21);
    }

    #[test]
    fn the_words_are_many_and_none_comes_twice() {
        let mut all: Vec<&str> = WORDS.split_whitespace().collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!((all.len(), count > 250), (count, true));
    }

    #[test]
    fn a_file_is_asked_line_by_line_and_again_from_its_start() {
        let text =
            "{\"prompt\": \"a\", \"max_tokens\": 3}\n\n{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}\n";
        let lines = parse(text, Kind::Chat).unwrap();
        let prompts = Prompts::new(Source::File { lines, output: Length::Fixed(9) }, 1, Counting::default(), 1);
        let asks: Vec<Ask> = (0..3).map(|number| prompts.ask(number)).collect();
        assert_eq!(asks[0], Ask { prompts: vec![Prompt::Text("a".into())], max_tokens: 3 });
        assert!(matches!(asks[1].prompts[0], Prompt::Messages(_)));
        assert_eq!((asks[1].max_tokens, &asks[2]), (9, &asks[0]));
        assert_eq!(prompts.ask(STAGE), asks[0]);
    }

    #[test]
    fn lines_of_no_use_are_refused_with_their_number() {
        for (line, problem) in [
            ("nonsense", "line 2: expected"),
            ("{\"promt\": \"a\"}", "unknown field `promt`"),
            ("{}", "neither prompt nor messages"),
            ("{\"prompt\": \"a\", \"messages\": []}", "keep one"),
            ("{\"messages\": []}", "messages are empty"),
            ("{\"prompt\": \"a\", \"max_tokens\": 0}", "1 at least"),
        ] {
            let refused = parse(&format!("{{\"prompt\": \"x\"}}\n{line}"), Kind::Chat).unwrap_err();
            assert!(refused.contains(problem) && refused.starts_with("line 2"), "{line}: {refused}");
        }
        let chat = "{\"messages\": [{\"role\": \"user\", \"content\": \"b\"}]}";
        assert!(parse(chat, Kind::Completions).unwrap_err().contains("bench chat"));
    }
}
