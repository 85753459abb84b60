//! Limits that an answer is to keep, and whether it does. Pure.

use super::record::Answer;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The limits of a run; what is not limited is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Limits {
    /// Until the first token.
    pub(crate) ttft: Option<Duration>,
    /// A token behind the first, on the answer's average.
    pub(crate) itl: Option<Duration>,
    /// The longest wait for more of the text, once it has begun.
    pub(crate) gap: Option<Duration>,
    /// Until the end.
    pub(crate) e2e: Option<Duration>,
}

impl Limits {
    /// Whether the answer keeps every limit that it has to do with. `due` is when it was to be sent.
    pub(crate) fn are_kept(&self, due: Duration, answer: &Answer) -> bool {
        let keeps = |limit: Option<Duration>, took: Option<Duration>| match (limit, took) {
            (Some(limit), Some(took)) => took <= limit,
            _ => true,
        };
        keeps(self.ttft, answer.ttft(due))
            && keeps(self.itl, answer.mean_gap())
            && keeps(self.gap, answer.longest_gap())
            && keeps(self.e2e, Some(answer.e2e(due)))
    }

    fn named(&self) -> [(&'static str, Option<Duration>); 4] {
        [("ttft", self.ttft), ("itl", self.itl), ("gap", self.gap), ("e2e", self.e2e)]
    }
}

impl FromStr for Limits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut limits = Self::default();
        for part in text.split(',') {
            let (name, time) = part.split_once('=').ok_or_else(|| format!("{part:?}: write ttft=500ms,itl=50ms"))?;
            let limit = match name.trim() {
                "ttft" => &mut limits.ttft,
                "itl" => &mut limits.itl,
                "gap" => &mut limits.gap,
                "e2e" => &mut limits.e2e,
                other => return Err(format!("{other:?} is no limit; there are ttft, itl, gap and e2e")),
            };
            let time = humantime::parse_duration(time.trim())
                .map_err(|error| format!("{part:?}: {error}; write a time as 500ms or 2s"))?;
            if limit.replace(time).is_some() {
                return Err(format!("{} is limited twice", name.trim()));
            }
        }
        Ok(limits)
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.named().into_iter().filter_map(|(name, limit)| Some((name, limit?)));
        let named = named.map(|(name, limit)| format!("{name}={}", humantime::format_duration(limit)));
        f.write_str(&named.collect::<Vec<_>>().join(","))
    }
}

impl Serialize for Limits {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::api::Usage;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// An answer that was due at 100 ms, with pieces at these times, which ended at the last of them.
    fn check(limits: &str, arrivals_ms: &[u64], tokens: u64, want: bool) {
        let arrivals: Vec<Duration> = arrivals_ms.iter().map(|at| ms(*at)).collect();
        let usage = Usage { output: Some(tokens), ..Usage::default() };
        let answer = Answer { ended: arrivals[arrivals.len() - 1], arrivals, usage };
        assert_eq!(limits.parse::<Limits>().unwrap().are_kept(ms(100), &answer), want, "{limits} {arrivals_ms:?}");
    }

    #[test]
    fn an_answer_is_good_when_it_keeps_every_limit() {
        let answer = [150, 160, 170, 220];
        check("ttft=50ms", &answer, 4, true);
        check("ttft=49ms", &answer, 4, false);
        // 70 ms for three tokens behind the first.
        check("itl=24ms", &answer, 4, true);
        check("itl=23ms", &answer, 4, false);
        // The same pieces with more tokens in them.
        check("itl=10ms", &answer, 8, true);
        check("gap=50ms", &answer, 4, true);
        check("gap=49ms", &answer, 4, false);
        check("e2e=120ms", &answer, 4, true);
        check("e2e=119ms", &answer, 4, false);
        check("ttft=1s,itl=1s,gap=1s,e2e=119ms", &answer, 4, false);
        // A single piece has no gaps to keep a limit with.
        check("itl=1ms,gap=1ms", &[150], 1, true);
    }

    #[test]
    fn limits_are_read_and_what_is_none_is_refused() {
        let limits: Limits = "ttft=500ms, itl=50ms".parse().unwrap();
        assert_eq!(limits, Limits { ttft: Some(ms(500)), itl: Some(ms(50)), ..Limits::default() });
        assert_eq!(limits.to_string(), "ttft=500ms,itl=50ms");
        for wrong in ["", "ttft", "ttft=fast", "p99=1s", "ttft=1s,ttft=2s", "ttft=500"] {
            assert!(wrong.parse::<Limits>().is_err(), "{wrong}");
        }
    }
}
