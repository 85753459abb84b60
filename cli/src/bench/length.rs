//! How many tokens a text has: fixed, or drawn for each request. Pure.

use super::random::Random;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;

/// More than any model takes; a mistyped figure is caught here and not by the memory of a machine.
const TOKENS_MAX: u32 = 10_000_000;

/// A number of tokens, or where it is drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Length {
    /// Always the same.
    Fixed(u32),
    /// Evenly from the first to the last of these.
    Even(u32, u32),
    /// Normal with this mean and standard deviation, 1 at least.
    Normal(u32, u32),
}

impl Length {
    /// Draws one. 1 at least.
    pub(crate) fn draw(self, random: &mut Random) -> u32 {
        match self {
            Self::Fixed(count) => count,
            Self::Even(least, most) => least + random.below((most - least) as usize + 1) as u32,
            // Casting a negative number gives 0.
            Self::Normal(mean, deviation) => {
                let drawn = f64::from(mean) + f64::from(deviation) * random.normal();
                (drawn.round() as u32).clamp(1, TOKENS_MAX)
            }
        }
    }

    /// What is drawn on average, before what is below 1 becomes 1.
    pub(crate) fn mean(self) -> f64 {
        match self {
            Self::Fixed(count) => f64::from(count),
            Self::Even(least, most) => f64::midpoint(f64::from(least), f64::from(most)),
            Self::Normal(mean, _) => f64::from(mean),
        }
    }
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |digits: &str| digits.trim().parse::<u32>().ok().filter(|count| *count <= TOKENS_MAX);
        let usual =
            || format!("{text:?} is no length; write 128, 64-256 (evenly between) or 128±32 (or 128+-32: normal)");
        let positive = |digits: &str| number(digits).filter(|count| *count > 0).ok_or_else(usual);
        if let Some((mean, deviation)) = text.split_once('±').or_else(|| text.split_once("+-")) {
            return Ok(Self::Normal(positive(mean)?, number(deviation).ok_or_else(usual)?));
        }
        if let Some((least, most)) = text.split_once('-') {
            let (least, most) = (positive(least)?, positive(most)?);
            if least > most {
                return Err(format!("{text:?} goes from much to little; write {most}-{least}"));
            }
            return Ok(Self::Even(least, most));
        }
        positive(text).map(Self::Fixed)
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(count) => write!(f, "{count}"),
            Self::Even(least, most) => write!(f, "{least}-{most}"),
            Self::Normal(mean, deviation) => write!(f, "{mean}±{deviation}"),
        }
    }
}

impl Serialize for Length {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, want: Option<Length>) {
        let length = text.parse::<Length>();
        assert_eq!(length.as_ref().ok(), want.as_ref(), "{text:?}: {length:?}");
        if let Ok(length) = length {
            assert_eq!(length.to_string().parse(), Ok(length), "{text:?}");
        }
    }

    #[test]
    fn lengths_are_read_and_what_is_none_is_refused() {
        check("128", Some(Length::Fixed(128)));
        check("64-256", Some(Length::Even(64, 256)));
        check("128±32", Some(Length::Normal(128, 32)));
        check("128 +- 0", Some(Length::Normal(128, 0)));
        for wrong in ["", "0", "-5", "0-4", "9-4", "5-", "±3", "0±3", "5±-3", "1.5", "many", "10000001", "99999999999"]
        {
            check(wrong, None);
        }
    }

    #[test]
    fn what_is_drawn_has_the_bounds_and_the_mean_that_were_asked() {
        let draw = |length: Length| {
            let mut random = Random::new(5, 0);
            (0..20_000).map(|_| length.draw(&mut random)).collect::<Vec<u32>>()
        };
        let mean = |drawn: &[u32]| drawn.iter().map(|count| f64::from(*count)).sum::<f64>() / drawn.len() as f64;
        assert!(draw(Length::Fixed(9)).iter().all(|count| *count == 9));
        let even = draw(Length::Even(3, 6));
        assert_eq!((even.iter().min(), even.iter().max()), (Some(&3), Some(&6)));
        assert!((mean(&even) - Length::Even(3, 6).mean()).abs() < 0.05);
        let normal = draw(Length::Normal(100, 20));
        let variance = normal.iter().map(|count| (f64::from(*count) - 100.0).powi(2)).sum::<f64>() / 20_000.0;
        assert!((mean(&normal) - 100.0).abs() < 1.0 && (variance.sqrt() - 20.0).abs() < 1.0);
        // A wide one never falls below 1.
        assert_eq!(draw(Length::Normal(2, 50)).iter().min(), Some(&1));
    }
}
