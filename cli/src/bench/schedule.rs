//! When requests of an open loop are due: a rate and a seed come in, times go out. Pure.

use super::random::Random;
use std::time::Duration;

/// Arrivals of a Poisson process: the gaps between them are exponential with the mean 1 / rate, as of many callers who know
/// nothing of each other. Endless.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    random: Random,
    per_second: f64,
    seconds: f64,
}

impl Arrivals {
    /// `per_second` is finite and above 0. The same seed gives the same times; at twice the rate they are halved.
    pub(crate) fn new(per_second: f64, seed: u64) -> Self {
        Self { random: Random::new(seed, 0), per_second, seconds: 0.0 }
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    /// Since the start.
    fn next(&mut self) -> Option<Duration> {
        // The logarithm of 1 − u, which is never 0.
        self.seconds -= (1.0 - self.random.unit()).ln() / self.per_second;
        Some(Duration::try_from_secs_f64(self.seconds).unwrap_or(Duration::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(rate: f64, seed: u64, count: usize) -> Vec<f64> {
        Arrivals::new(rate, seed).take(count).map(|due| due.as_secs_f64()).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_times_and_another_gives_others() {
        assert_eq!(seconds(3.0, 7, 100), seconds(3.0, 7, 100));
        assert_ne!(seconds(3.0, 7, 100), seconds(3.0, 8, 100));
        let (once, twice) = (seconds(3.0, 7, 100), seconds(6.0, 7, 100));
        assert!(once.iter().zip(&twice).all(|(a, b)| (a - 2.0 * b).abs() < 1e-6));
    }

    #[test]
    fn gaps_are_exponential() {
        let times = seconds(50.0, 1, 20_000);
        let gaps: Vec<f64> = std::iter::once(times[0]).chain(times.windows(2).map(|w| w[1] - w[0])).collect();
        assert!(gaps.iter().all(|gap| *gap >= 0.0));
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        // Of an exponential distribution 1 − e^−x lie below x means.
        for means in [0.1, 0.5, 1.0, 2.0, 4.0] {
            let below = gaps.iter().filter(|gap| **gap * 50.0 < means).count() as f64 / gaps.len() as f64;
            assert!((below - (1.0 - f64::exp(-means))).abs() < 0.015, "{means}: {below}");
        }
    }
}
