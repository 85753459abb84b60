//! Samples come in, exact quantiles go out. Nothing is put into buckets, and no quantile is made of other quantiles. Pure.

use serde::Serialize;

/// Samples with the weight that each stands for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    /// Value and weight.
    samples: Vec<(f64, f64)>,
}

impl Samples {
    /// Adds a value.
    pub(crate) fn add(&mut self, value: f64) {
        self.add_weighted(value, 1.0);
    }

    /// Adds a value that stands for `weight` samples. What is not a number, or weighs nothing, is left out.
    pub(crate) fn add_weighted(&mut self, value: f64, weight: f64) {
        if value.is_finite() && weight > 0.0 {
            self.samples.push((value, weight));
        }
    }

    /// Puts them in order.
    pub(crate) fn sorted(mut self) -> Sorted {
        self.samples.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut below = 0.0;
        for (_, weight) in &mut self.samples {
            below += *weight;
            *weight = below;
        }
        Sorted { samples: self.samples }
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut samples = Self::default();
        values.into_iter().for_each(|value| samples.add(value));
        samples
    }
}

/// Samples in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sorted {
    /// Value, and the weight of all up to and with this one.
    samples: Vec<(f64, f64)>,
}

impl Sorted {
    /// The least value that at least the share `q` of all samples does not exceed (the nearest rank). `None` without samples.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let (last, total) = *self.samples.last()?;
        // Sums of weights are exact for whole numbers; for others a rounding must not skip a sample.
        let wanted = q.clamp(0.0, 1.0) * total * (1.0 - 1e-12);
        let index = self.samples.partition_point(|(_, below)| *below < wanted);
        Some(self.samples.get(index).map_or(last, |(value, _)| *value))
    }

    /// The share of samples that are `value` or less, at no more than `points` values: a curve to draw.
    pub(crate) fn curve(&self, points: usize) -> Vec<(f64, f64)> {
        let Some((_, total)) = self.samples.last() else { return vec![] };
        let step = self.samples.len().div_ceil(points.max(2) - 1).max(1);
        let mut curve: Vec<(f64, f64)> = self.samples.iter().step_by(step).map(|(v, w)| (*v, w / total)).collect();
        curve.extend(self.samples.last().map(|(value, _)| (*value, 1.0)));
        curve
    }

    /// The usual figures. `None` without samples.
    pub(crate) fn summary(&self) -> Option<Summary> {
        let (_, total) = *self.samples.last()?;
        let mut sum = 0.0;
        let mut before = 0.0;
        for (value, below) in &self.samples {
            sum += value * (below - before);
            before = *below;
        }
        let at = |q| self.quantile(q).unwrap_or(f64::NAN);
        Some(Summary {
            samples: total,
            mean: sum / total,
            min: at(0.0),
            p1: at(0.01),
            p10: at(0.1),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            max: at(1.0),
        })
    }
}

/// What samples say, in their unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    /// How many, or the sum of their weights.
    pub(crate) samples: f64,
    pub(crate) mean: f64,
    pub(crate) min: f64,
    pub(crate) p1: f64,
    pub(crate) p10: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let sorted = (1..=100).rev().map(f64::from).collect::<Samples>().sorted();
        for (q, want) in [(0.0, 1.0), (0.01, 1.0), (0.5, 50.0), (0.501, 51.0), (0.9, 90.0), (0.99, 99.0), (1.0, 100.0)]
        {
            assert_eq!(sorted.quantile(q), Some(want), "{q}");
        }
        let summary = sorted.summary().unwrap();
        assert_eq!((summary.mean, summary.samples, summary.p1, summary.max), (50.5, 100.0, 1.0, 100.0));
        assert_eq!([3.0].into_iter().collect::<Samples>().sorted().quantile(0.5), Some(3.0));
    }

    #[test]
    fn nothing_has_no_quantiles_and_what_is_no_number_is_left_out() {
        assert_eq!(Samples::default().sorted().summary(), None);
        assert_eq!(Samples::default().sorted().curve(10), []);
        let mut samples = Samples::default();
        samples.add(f64::NAN);
        samples.add(f64::INFINITY);
        samples.add_weighted(1.0, 0.0);
        assert_eq!(samples.sorted().quantile(0.5), None);
    }

    #[test]
    fn a_weight_is_as_many_samples() {
        let mut weighted = Samples::default();
        for (value, weight) in [(5.0, 3.0), (1.0, 6.0), (9.0, 1.0)] {
            weighted.add_weighted(value, weight);
        }
        let plain: Samples = [1.0; 6].into_iter().chain([5.0; 3]).chain([9.0]).collect();
        let (weighted, plain) = (weighted.sorted(), plain.sorted());
        for q in [0.0, 0.1, 0.5, 0.6, 0.61, 0.9, 0.91, 1.0] {
            assert_eq!(weighted.quantile(q), plain.quantile(q), "{q}");
        }
        assert_eq!(weighted.summary(), plain.summary());
        // Weights that are no whole numbers lose no rank by their rounding.
        let mut tenths = Samples::default();
        (1..=10).for_each(|value| tenths.add_weighted(f64::from(value), 0.1));
        assert_eq!(tenths.sorted().quantile(0.3), Some(3.0));
    }

    #[test]
    fn a_curve_rises_to_one_with_no_more_points_than_asked() {
        let sorted = (0..1_000).map(f64::from).collect::<Samples>().sorted();
        let curve = sorted.curve(50);
        assert!(curve.len() <= 51, "{}", curve.len());
        assert_eq!((curve[0], curve[curve.len() - 1]), ((0.0, 0.001), (999.0, 1.0)));
        assert!(curve.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1));
    }
}
