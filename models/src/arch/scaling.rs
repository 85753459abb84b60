//! Rotary scaling, by which models read longer texts than they were first trained on: what a `config.json` says of it goes in, angles
//! and the tokens of a sequence at most come out. A scaling that is not known is refused, never left out.
//!
//! # Source
//! Linear: Chen et al., arXiv 2306.15595. YaRN: Peng et al., arXiv 2309.00071. Llama 3's: Grattafiori et al., arXiv 2407.21783. LongRoPE:
//! Ding et al., arXiv 2402.13753. All as `transformers` 5.23 computes them (`modeling_rope_utils.py`).

use super::decoder::Rotary;
use super::settings::Settings;
use crate::load::Error;
use crate::load::inspect::CONFIG;
use kernels::rotary::frequencies;
use serde_json::Value;
use std::f64::consts::TAU;

/// Tokens of a sequence as a configuration states them, besides its scaling.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths {
    /// What a model can read.
    pub(super) positions: usize,
    /// What it was first trained on.
    pub(super) original: usize,
}

/// Angles as a scaling changes them.
#[derive(Debug)]
pub(super) struct Scaled {
    pub(super) rotary: Rotary,
    /// Tokens of a sequence at most.
    pub(super) context: usize,
    /// Other angles, with which a sequence may have so many tokens: see [`Longer`](super::decoder::Longer).
    pub(super) longer: Option<(Rotary, usize)>,
}

impl Scaled {
    /// Of heads of `dim` elements `rotated` are turned, by angles of base `theta`.
    ///
    /// # Errors
    /// When the scaling is not known, or states what cannot be.
    pub(super) fn read(
        scaling: Settings<'_>,
        dim: usize,
        rotated: usize,
        theta: f64,
        lengths: Lengths,
    ) -> Result<Self, Error> {
        let plain = frequencies(rotated, theta);
        let original = scaling.size_or("original_max_position_embeddings", lengths.original)?;
        let mut context = lengths.positions;
        let mut amplitude = 1.0;
        let mut longer = None;
        let turned: Vec<f64> = match kind(scaling)? {
            "default" => plain,
            "linear" => {
                let factor = scaling.positive_or("factor", 1.0)?;
                plain.iter().map(|frequency| frequency / factor).collect()
            }
            "llama3" => llama_3(scaling, &plain, original)?,
            "yarn" => {
                let factor = scaling.positive_or("factor", lengths.positions as f64 / original as f64)?;
                // What is published with it leaves the positions as they were, or has them stretched already.
                context = context.max((original as f64 * factor) as usize);
                amplitude = yarn_amplitude(scaling, factor)?;
                yarn(scaling, &plain, theta, original, factor)?
            }
            "longrope" | "su" => {
                let times = scaling.positive_or("factor", lengths.positions as f64 / original as f64)?;
                let usual = if times > 1.0 { (1.0 + times.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
                amplitude = scaling.positive_or("attention_factor", usual)?;
                context = context.min(original);
                if lengths.positions > original && !scaling.0["long_factor"].is_null() {
                    let turned = divided(&plain, scaling, "long_factor")?;
                    longer = Some((rotary(turned, dim, amplitude)?, lengths.positions));
                }
                divided(&plain, scaling, "short_factor")?
            }
            other => {
                let detail =
                    format!("rope_type {other:?} is not supported; default, linear, llama3, yarn and longrope are");
                return Err(Error::config(CONFIG, detail));
            }
        };
        Ok(Self { rotary: rotary(turned, dim, amplitude)?, context, longer })
    }
}

/// The name of a scaling.
fn kind<'a>(scaling: Settings<'a>) -> Result<&'a str, Error> {
    let stated = ["rope_type", "type"].map(|key| &scaling.0[key]).into_iter().find(|stated| !stated.is_null());
    match stated {
        Some(Value::String(name)) => Ok(name),
        None if scaling.0["factor"].is_null() => Ok("default"),
        other => {
            let other = other.unwrap_or(&Value::Null);
            Err(Error::config(CONFIG, format!("rope_type is {other} beside a scaling of angles; a name is needed")))
        }
    }
}

/// What is not turned has an angle of zero, and stands where the other half of a pair is.
fn rotary(mut turned: Vec<f64>, dim: usize, amplitude: f64) -> Result<Rotary, Error> {
    if !turned.iter().all(|frequency| frequency.is_finite()) {
        return Err(Error::config(CONFIG, "the scaling of angles and rope_theta give angles that are no numbers"));
    }
    turned.resize(dim / 2, 0.0);
    Ok(Rotary { frequencies: turned, amplitude })
}

/// Frequencies, each divided by a number of its own.
fn divided(plain: &[f64], scaling: Settings<'_>, key: &str) -> Result<Vec<f64>, Error> {
    let factors = scaling.0[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let factors: Vec<f64> = factors.iter().filter_map(Value::as_f64).filter(|factor| *factor > 0.0).collect();
    if factors.len() != plain.len() {
        return Err(Error::config(CONFIG, format!("{key} needs {} positive numbers", plain.len())));
    }
    Ok(plain.iter().zip(factors).map(|(frequency, factor)| frequency / factor).collect())
}

/// Wavelengths that are short beside the original length stay, long ones are stretched, those between are in part.
fn llama_3(scaling: Settings<'_>, plain: &[f64], original: usize) -> Result<Vec<f64>, Error> {
    let factor = scaling.positive_or("factor", 8.0)?;
    let (low, high) = (scaling.positive_or("low_freq_factor", 1.0)?, scaling.positive_or("high_freq_factor", 4.0)?);
    let stretched = |frequency: &f64| {
        let wavelength = TAU / frequency;
        let smooth = ((original as f64 / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        frequency * ((1.0 - smooth) / factor + smooth)
    };
    Ok(plain.iter().map(stretched).collect())
}

/// Pairs that turn more than `beta_fast` times within the original length stay, those that turn less than `beta_slow` times are
/// stretched, and between them the share grows from pair to pair.
fn yarn(scaling: Settings<'_>, plain: &[f64], theta: f64, original: usize, factor: f64) -> Result<Vec<f64>, Error> {
    let (fast, slow) = (scaling.positive_or("beta_fast", 32.0)?, scaling.positive_or("beta_slow", 1.0)?);
    let rotated = 2 * plain.len();
    // Which pair turns so often; in fractions of one.
    let pair = |turns: f64| rotated as f64 * (original as f64 / (turns * TAU)).ln() / (2.0 * theta.ln());
    let (mut first, mut last) = (pair(fast), pair(slow));
    if scaling.0["truncate"].as_bool().unwrap_or(true) {
        (first, last) = (first.floor(), last.ceil());
    }
    (first, last) = (first.max(0.0), last.min((rotated - 1) as f64));
    if first == last {
        last += 0.001;
    }
    let stretched = |(pair, frequency): (usize, &f64)| {
        let share = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
        frequency * (share / factor + 1.0 - share)
    };
    Ok(plain.iter().enumerate().map(stretched).collect())
}

/// What YaRN multiplies queries and keys with, so that attention over more tokens stays as sharp.
fn yarn_amplitude(scaling: Settings<'_>, factor: f64) -> Result<f64, Error> {
    let of = |share: f64| if factor > 1.0 { 0.1 * share * factor.ln() + 1.0 } else { 1.0 };
    // Zero stands for none.
    let share = |key: &str| match scaling.0[key].as_f64() {
        Some(0.0) => Ok(None),
        _ => scaling.positive_or(key, f64::NAN).map(|share| Some(share).filter(|share| !share.is_nan())),
    };
    let usual = match (share("mscale")?, share("mscale_all_dim")?) {
        (Some(over), Some(under)) => of(over) / of(under),
        _ => of(1.0),
    };
    scaling.positive_or("attention_factor", usual)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LENGTHS: Lengths = Lengths { positions: 128, original: 64 };

    fn read(scaling: &Value) -> Result<Scaled, Error> {
        Scaled::read(Settings(scaling), 16, 16, 10_000.0, LENGTHS)
    }

    fn check(scaling: Value, pair: usize, share: f64, amplitude: f64, context: usize) {
        let Scaled { rotary, context: found, .. } = read(&scaling).unwrap();
        let plain = 10_000.0_f64.powf(-2.0 * pair as f64 / 16.0);
        let (share_found, near) = (rotary.frequencies[pair] / plain, |a: f64, b: f64| (a - b).abs() < 1e-12);
        assert!(near(share_found, share), "{scaling}: pair {pair} turns {share_found} times as fast, not {share}");
        assert!(near(rotary.amplitude, amplitude) && found == context, "{scaling}: {} {found}", rotary.amplitude);
    }

    #[test]
    fn pairs_are_stretched_as_far_as_a_scaling_says() {
        let grown = 0.1 * 4.0_f64.ln() + 1.0;
        check(json!(null), 5, 1.0, 1.0, 128);
        check(json!({"rope_type": "linear", "factor": 4.0}), 5, 0.25, 1.0, 128);
        // 64 tokens are 10.19 radians of pair 0, so that every pair turns less than 32 times, and pair 2.02 once: from 0 to 3.
        let yarn = json!({"type": "yarn", "factor": 4.0});
        check(yarn.clone(), 0, 1.0, grown, 256);
        check(yarn.clone(), 1, 2.0 / 3.0 + 1.0 / 12.0, grown, 256);
        check(yarn, 3, 0.25, grown, 256);
        let whole = json!({"type": "yarn", "factor": 4.0, "truncate": false, "attention_factor": 0.5});
        let last = 16.0 * (64.0 / TAU).ln() / (2.0 * 10_000.0_f64.ln());
        check(whole, 1, 1.0 - 0.75 / last, 0.5, 256);
        let shares = json!({"type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0});
        check(shares, 0, 1.0, (0.2 * 4.0_f64.ln() + 1.0) / grown, 256);
        check(json!({"type": "yarn", "mscale": 2.0, "mscale_all_dim": 0.0}), 4, 0.5, 0.1 * 2.0_f64.ln() + 1.0, 128);
    }

    #[test]
    fn long_factors_are_for_texts_beyond_the_original_length() {
        let scaling = json!({"type": "longrope", "short_factor": vec![2.0; 8], "long_factor": vec![8.0; 8]});
        let usual = (1.0 + 2.0_f64.ln() / 64.0_f64.ln()).sqrt();
        check(scaling.clone(), 3, 0.5, usual, 64);
        let (rotary, context) = read(&scaling).unwrap().longer.unwrap();
        assert_eq!((rotary.frequencies[0], rotary.amplitude, context), (0.125, usual, 128));
        let no_longer = json!({"type": "longrope", "short_factor": vec![2.0; 8]});
        assert!(read(&no_longer).unwrap().longer.is_none());
    }

    #[test]
    fn what_is_not_known_is_refused_and_named() {
        for (scaling, words) in [
            (json!({"rope_type": "dynamic", "factor": 2.0}), "dynamic"),
            (json!({"type": "mrope"}), "mrope"),
            (json!({"factor": 2.0}), "rope_type is null"),
            (json!({"rope_type": 7}), "rope_type is 7"),
            (json!({"type": "yarn", "factor": -2.0}), "factor"),
            (json!({"type": "yarn", "factor": 2.0, "beta_fast": "x"}), "beta_fast"),
            (json!({"type": "yarn", "factor": 2.0, "mscale": "x"}), "mscale"),
            (json!({"type": "longrope", "short_factor": [1.0]}), "short_factor needs 8"),
            (json!({"type": "longrope", "short_factor": vec![1.0; 8], "long_factor": [1.0]}), "long_factor needs 8"),
        ] {
            let error = read(&scaling).unwrap_err().to_string();
            assert!(error.contains(words), "{error} does not say {words:?}");
        }
    }
}
