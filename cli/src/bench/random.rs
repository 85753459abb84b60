//! Random numbers that a seed fixes: the same on every machine and in every release. Never for secrets.

use rand::rngs::Xoshiro256PlusPlus;
use rand::{Rng, SeedableRng};

/// One stream of random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(Xoshiro256PlusPlus);

impl Random {
    /// The stream of this number that belongs to the seed. Streams of one seed have nothing to do with each other.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut bytes = [0; 32];
        // SplitMix64 of both, so that neighbouring seeds and streams start far apart.
        let mut state = seed;
        for (index, chunk) in bytes.chunks_exact_mut(8).enumerate() {
            if index == 2 {
                state ^= stream.rotate_left(32).wrapping_add(1);
            }
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut mixed = state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
        Self(Xoshiro256PlusPlus::from_seed(bytes))
    }

    /// At least 0 and below 1.
    pub(crate) fn unit(&mut self) -> f64 {
        // The 53 bits that a number between 0 and 1 can hold.
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// At least 0 and below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        // The product's high half: off from even by less than bound / 2^64.
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Normal, with mean 0 and variance 1.
    ///
    /// # Source
    /// Box and Muller, "A note on the generation of random normal deviates", 1958.
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_fixed_by_their_seed_and_number() {
        let first = |seed, stream| Random::new(seed, stream).below(usize::MAX);
        assert_eq!(first(1, 0), first(1, 0));
        let mut seen: Vec<usize> = (0..50).flat_map(|seed| (0..50).map(move |stream| first(seed, stream))).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 2_500);
    }

    #[test]
    fn numbers_are_even_and_normal_ones_have_their_moments() {
        let mut random = Random::new(3, 1);
        let mut counts = [0; 7];
        (0..70_000).for_each(|_| counts[random.below(7)] += 1);
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        let values: Vec<f64> = (0..50_000).map(|_| random.normal()).collect();
        let mean = values.iter().sum::<f64>() / 50_000.0;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 50_000.0;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
