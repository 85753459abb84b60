//! Whether the cards are fit for work: samples go in one after the other, reasons not to take tasks come out. Pure. What only makes a
//! card a little worse costs health points instead ([`super::health`]).

use std::collections::BTreeMap;

use super::live::Sample;
use super::nvidia::GpuSample;

/// A card slows itself down for a moment now and then; so many samples in a row are no moment any more (15 s at the usual interval).
const SLOW_SAMPLES: u32 = 3;

/// Faults (Xid) after which a card gives wrong results or none until it is reset; from NVIDIA's list of Xid errors. Others
/// are mistakes of a program, or end with it.
const FATAL_XIDS: &[(u64, &str)] = &[
    (48, "memory errors that cannot be corrected"),
    (62, "its microcontroller halted"),
    (64, "a broken row of memory could not be replaced"),
    (74, "its NVLink failed"),
    (79, "it has fallen off the bus"),
    (95, "memory errors that were not contained"),
    (119, "its firmware does not answer"),
    (120, "its firmware failed"),
    (140, "memory errors that were not recovered"),
    (143, "it could not be initialised"),
];

/// Reasons of a card to slow itself down that its owner has to mend: its clock is then far below what it is made for.
const SLOW: [&str; 3] = ["hardware_slowdown", "temperature_hardware", "power_brake"];

/// What was seen of the cards so far.
#[derive(Debug, Clone, Default)]
pub struct Fitness {
    seen_unix_ms: u64,
    slow: BTreeMap<u32, u32>,
    /// The last verdict.
    reasons: Vec<String>,
}

impl Fitness {
    /// Takes a sample in and gives why no task should be taken; nothing when all is well.
    pub fn judge(&mut self, sample: &Sample) -> &[String] {
        if sample.taken_unix_ms == self.seen_unix_ms {
            return &self.reasons;
        }
        self.seen_unix_ms = sample.taken_unix_ms;
        let lost = sample.findings.iter().filter(|finding| finding.code == "nvidia.card_lost");
        let mut reasons: Vec<String> = lost.map(|finding| finding.message.clone()).collect();
        for gpu in &sample.gpus {
            reasons.extend(broken(gpu));
            let count = self.slow.entry(gpu.index).or_default();
            let slowed: Vec<&str> =
                SLOW.into_iter().filter(|by| gpu.load.throttled_by.iter().any(|r| r == by)).collect();
            *count = if slowed.is_empty() { 0 } else { count.saturating_add(1) };
            if *count >= SLOW_SAMPLES {
                let at = gpu.load.temperature_celsius.map(|celsius| format!(" at {celsius} °C")).unwrap_or_default();
                let by = slowed.join(", ");
                reasons.push(format!(
                    "GPU {} slows itself down{at} ({by}): check its cooling and its power supply",
                    gpu.index
                ));
            }
        }
        self.reasons = reasons;
        &self.reasons
    }
}

fn broken(gpu: &GpuSample) -> Vec<String> {
    let mut reasons = Vec::new();
    if let Some(errors) = gpu.load.ecc_uncorrected_errors.filter(|&errors| errors > 0) {
        reasons.push(format!(
            "GPU {} had {errors} memory errors that were not corrected, so its results cannot be trusted: reset it or restart the machine",
            gpu.index
        ));
    }
    for (xid, why) in FATAL_XIDS.iter().filter(|(xid, _)| gpu.xids.contains(xid)) {
        reasons.push(format!(
            "GPU {}'s driver reported Xid {xid}, {why}: restart the machine; if it comes back, check the card",
            gpu.index
        ));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{Finding, nvidia};

    fn sample(number: u64, gpus: Vec<GpuSample>) -> Sample {
        Sample { taken_unix_ms: number, gpus, ..Sample::default() }
    }

    fn slowed(by: &str) -> GpuSample {
        let load = nvidia::Load { throttled_by: vec![by.to_owned()], ..nvidia::Load::default() };
        GpuSample { load, ..GpuSample::default() }
    }

    /// What a fresh judge says of one sample.
    fn check(gpu: GpuSample, expected: Option<&str>) {
        let mut fitness = Fitness::default();
        let reasons = fitness.judge(&sample(1, vec![gpu]));
        match expected {
            None => assert!(reasons.is_empty(), "{reasons:?}"),
            Some(words) => assert!(reasons.len() == 1 && reasons[0].contains(words), "{reasons:?}"),
        }
    }

    #[test]
    fn a_broken_card_takes_no_tasks() {
        let ecc = |errors| nvidia::Load { ecc_uncorrected_errors: Some(errors), ..nvidia::Load::default() };
        check(GpuSample::default(), None);
        check(GpuSample { load: ecc(0), ..GpuSample::default() }, None);
        check(GpuSample { load: ecc(2), ..GpuSample::default() }, Some("2 memory errors"));
        let xids = |xids: &[u64]| GpuSample { xids: xids.iter().copied().collect(), ..GpuSample::default() };
        check(xids(&[79]), Some("Xid 79, it has fallen off the bus"));
        // A program's own mistake, before and after.
        check(xids(&[13, 31, 43]), None);
        check(xids(&[48, 31]), Some("Xid 48"));
    }

    #[test]
    fn a_lost_card_takes_no_tasks() {
        let lost = Finding::error("nvidia.card_lost", "GPU 0: fell off the bus");
        let other = Finding::warning("nvidia.query_failed", "GPU 0: power is not known");
        let sample = Sample { findings: vec![other, lost], ..sample(1, vec![]) };
        assert_eq!(Fitness::default().judge(&sample), ["GPU 0: fell off the bus"]);
    }

    #[test]
    fn a_card_that_stays_slow_takes_no_tasks_until_it_is_fast_again() {
        let mut fitness = Fitness::default();
        let mut judged = |number, by: &str| fitness.judge(&sample(number, vec![slowed(by)])).len();
        assert_eq!([1, 2, 2, 2].map(|number| judged(number, "temperature_hardware")), [0; 4], "one sample counts once");
        assert_eq!(judged(3, "power_brake"), 1);
        assert_eq!(judged(4, "temperature"), 0, "lowering the clock by a little is what cards do");
        assert_eq!([5, 6, 7].map(|number| judged(number, "power_cap")), [0; 3], "its owner chose that");
    }
}
