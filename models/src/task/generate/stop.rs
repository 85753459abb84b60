//! Ends a text where one of a caller's stop strings begins, wherever the borders of tokens are. Pieces of text go in, text that
//! certainly stands before any stop string comes out. Of several, the one that is complete first ends the text; of those, the one that
//! began first.

/// Looks for stop strings in a text that comes in pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stops {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop string, and so is not given out yet.
    held: String,
    has_stopped: bool,
}

impl Stops {
    /// For these strings; empty ones are passed over.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), ..Self::default() }
    }

    /// Takes a piece in. Returns what may be given out now. Behind a stop string nothing comes out any more.
    pub fn push(&mut self, piece: &str) -> String {
        if self.has_stopped {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(start) = first(&self.held, &self.stops) {
            self.has_stopped = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string was found.
    pub fn has_stopped(&self) -> bool {
        self.has_stopped
    }

    /// What was held back, when no more comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Where the stop string begins that is complete first.
fn first(text: &str, stops: &[String]) -> Option<usize> {
    let ends = stops.iter().filter_map(|stop| text.find(stop.as_str()).map(|start| (start + stop.len(), start)));
    ends.min().map(|(_, start)| start)
}

/// The longest end of `text` that `stop` begins with, in bytes, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = stop.len().saturating_sub(1).min(text.len());
    let is_start = |count: &usize| stop.as_bytes().starts_with(&text.as_bytes()[text.len() - count..]);
    // What equals the beginning of a text begins and ends where its characters do.
    (1..=longest).rev().find(is_start).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let mut all = Stops::new(stops.iter().map(|stop| (*stop).to_owned()));
        let given = pieces.iter().map(|piece| all.push(piece)).collect();
        (given, all.has_stopped(), all.finish())
    }

    fn check(stops: &[&str], pieces: &[&str], given: &[&str], stopped: bool, rest: &str) {
        let given = given.iter().map(|text| (*text).to_owned()).collect();
        assert_eq!(run(stops, pieces), (given, stopped, rest.to_owned()), "{stops:?} {pieces:?}");
    }

    #[test]
    fn a_stop_string_is_found_across_pieces_and_never_given_out() {
        check(&["END"], &["a E", "N", "D b"], &["a ", "", ""], true, "");
        check(&["END"], &["a E", "N", "x"], &["a ", "", "ENx"], false, "");
        check(&["END"], &["a EN"], &["a "], false, "EN");
        // Of two that are complete at once, the one that began first; else the one that is complete first.
        check(&["é", "aéa"], &["baéaé"], &["ba"], true, "");
        check(&["b", "ab"], &["xaby"], &["x"], true, "");
        check(&["\n\n"], &["one\n", "two\n", "\nthree"], &["one", "\ntwo", ""], true, "");
        check(&[], &["as", " it is"], &["as", " it is"], false, "");
        check(&[""], &["x"], &["x"], false, "");
        // Characters of several bytes are never cut.
        check(&["éß"], &["aé", "x"], &["a", "éx"], false, "");
    }

    proptest! {
        /// However a text is cut into pieces, what comes out is the text up to the first stop string, and nothing comes out that
        /// a later piece could still take back.
        #[test]
        fn pieces_do_not_matter(
            text in "[abé]{0,24}",
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let is_in = |end: &usize| text.is_char_boundary(*end) && stops.iter().any(|stop| text[..*end].ends_with(stop.as_str()));
            let first = (0..=text.len()).find(is_in).map(|end| {
                let there = stops.iter().filter(|stop| text[..end].ends_with(stop.as_str()));
                end - there.map(String::len).max().unwrap()
            });
            let want = &text[..first.unwrap_or(text.len())];
            let borders: Vec<usize> = (0..=text.len()).filter(|at| text.is_char_boundary(*at)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| borders[cut.index(borders.len())]).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let mut all = Stops::new(stops.clone());
            let mut got = String::new();
            for pair in cuts.windows(2) {
                got.push_str(&all.push(&text[pair[0]..pair[1]]));
                prop_assert!(want.starts_with(&got), "{got:?} is not a beginning of {want:?}");
            }
            prop_assert_eq!(all.has_stopped(), first.is_some());
            got.push_str(&all.finish());
            prop_assert_eq!(got, want);
        }
    }
}
