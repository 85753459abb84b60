//! The machine as its live samples show it. A profile and samples go in, what a link tells of them comes out.

use crate::hardware::{self, live};

/// What a link tells of the machine.
pub trait Machine: Send + Sync + 'static {
    /// Hardware, as `GET /api/hardware/profile` gives it. Asked once.
    fn profile(&self) -> serde_json::Value;

    /// The hottest device, in °C, where that can be read.
    fn temperature_c(&self) -> Option<f32>;

    /// Share of time that the busiest device worked, 0 to 1.
    fn utilisation(&self) -> f32;

    /// 0 to 100.
    fn health_score(&self) -> u8;
}

/// A profiled machine that is sampled as long as this lives.
pub struct Sampled {
    profile: serde_json::Value,
    live: live::Handle,
}

impl Sampled {
    /// Starts sampling. Call it within a tokio runtime.
    pub fn start(profile: hardware::Profile, options: hardware::Options) -> Self {
        let live = live::spawn(live::Options::of(&profile, &options));
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
        hardware::health::assess(&hardware::health::Inputs::of(&self.live.latest())).score
    }
}
