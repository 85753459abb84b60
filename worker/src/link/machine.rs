//! The machine as its live samples show it. A profile and samples go in, what a link tells of them comes out.

use super::Machine;
use crate::hardware::{self, live};

/// A profiled machine that is sampled as long as this lives.
pub struct Sampled {
    profile: serde_json::Value,
    live: live::Handle,
}

impl Sampled {
    /// Starts sampling. Call it within a tokio runtime.
    pub fn start(profile: hardware::Profile, options: hardware::Options) -> Self {
        let live = live::spawn(live::Options {
            probe: options.probe,
            nvml_library: options.nvml_library,
            ..live::Options::new(&options.storage_path)
        });
        Self { profile: serde_json::to_value(profile).unwrap_or_default(), live }
    }
}

impl Machine for Sampled {
    fn profile(&self) -> serde_json::Value {
        self.profile.clone()
    }

    fn temperature_c(&self) -> Option<f32> {
        let sample = self.live.latest();
        sample.gpus.iter().filter_map(|gpu| gpu.load.temperature_celsius).max().map(|celsius| celsius as f32)
    }

    fn utilisation(&self) -> f32 {
        let sample = self.live.latest();
        let busiest = sample.gpus.iter().filter_map(|gpu| gpu.load.utilisation_percent).max();
        let busiest = busiest.map(|percent| percent as f32);
        busiest.or(sample.cpu_utilisation_percent).unwrap_or(0.0) / 100.0
    }

    fn health_score(&self) -> u8 {
        hardware::health(&hardware::health::Inputs::of(&self.live.latest())).score
    }
}
