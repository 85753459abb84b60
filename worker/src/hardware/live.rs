//! How the machine does right now: every few seconds one sample of processor, memory, disk, network and GPUs, of which the
//! latest is kept. GPUs are asked through a child that is kept and started again when it dies. It decides nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use sysinfo::{Networks, Pid, ProcessRefreshKind, ProcessesToUpdate, System};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::{CancellationToken, DropGuard};
use utoipa::ToSchema;

use super::{Disk, Finding, Memory, Profile, cgroup, cpu, disk, network, nvidia, pci, probe};

/// How the machine is sampled.
#[derive(Debug, Clone)]
pub struct Options {
    /// Time from one sample to the next.
    pub interval: Duration,
    /// Where models are kept.
    pub storage_path: PathBuf,
    /// How the child that asks the GPUs is started; `None` where there is no NVIDIA card to ask.
    pub probe: Option<probe::Command>,
    /// The NVML library, where it is not to be searched.
    pub nvml_library: Option<PathBuf>,
    /// How long the child may be silent before it is killed.
    pub probe_timeout: Duration,
}

impl Options {
    /// Every 5 s, which is how often a worker tells its coordinator, and without GPUs.
    pub fn new(storage_path: impl Into<PathBuf>) -> Self {
        Self {
            interval: Duration::from_secs(5),
            storage_path: storage_path.into(),
            probe: None,
            nvml_library: None,
            probe_timeout: Duration::from_secs(15),
        }
    }

    /// As the machine was profiled, with GPUs where there is an NVIDIA card: one without a driver too, since the driver may
    /// be installed meanwhile.
    pub fn of(profile: &Profile, options: &super::Options) -> Self {
        let on_the_bus = profile.pci_cards.iter().any(|card| card.vendor_id == pci::NVIDIA);
        let to_be_asked = on_the_bus || !profile.nvidia.gpus.is_empty();
        let command = || options.probe.clone().or_else(|| probe::Command::this_executable().ok());
        Self {
            probe: if to_be_asked { command() } else { None },
            nvml_library: options.nvml_library.clone(),
            probe_timeout: options.probe_timeout,
            ..Self::new(&options.storage_path)
        }
    }
}

/// The machine at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Sample)]
pub struct Sample {
    /// When it was taken, in milliseconds since 1970.
    pub taken_unix_ms: u64,
    /// Share of all hardware threads of the machine that worked since the last sample; absent in the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_utilisation_percent: Option<f32>,
    /// Share of the threads that this process may use that it used since the last sample; absent in the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_cpu_percent: Option<f32>,
    /// Memory that this process holds.
    pub process_resident_bytes: u64,
    /// Main memory.
    pub memory: Memory,
    /// The disk that holds the models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// The network.
    pub network: Traffic,
    /// The NVIDIA cards that answered.
    pub gpus: Vec<nvidia::GpuSample>,
    /// What was noticed this time.
    pub findings: Vec<Finding>,
}

/// What went over the network, by all programs, without the loopback.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Traffic)]
pub struct Traffic {
    /// Received since the system started.
    pub received_bytes: u64,
    /// Sent since the system started.
    pub sent_bytes: u64,
    /// Received since the last sample; absent in the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes_per_s: Option<f64>,
    /// Sent since the last sample; absent in the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_bytes_per_s: Option<f64>,
}

/// The samples. Sampling ends when the last clone of it is dropped.
#[derive(Debug, Clone)]
pub struct Handle {
    samples: watch::Receiver<Arc<Sample>>,
    _stop: Arc<DropGuard>,
}

impl Handle {
    /// The latest sample.
    pub fn latest(&self) -> Arc<Sample> {
        self.samples.borrow().clone()
    }

    /// The next sample that this handle has not returned yet.
    pub async fn next(&mut self) -> Arc<Sample> {
        // The service lives as long as a handle does; should it have panicked, the latest sample stays the latest.
        let _ = self.samples.changed().await;
        self.samples.borrow_and_update().clone()
    }
}

/// Takes a first sample, without GPUs and rates, and goes on sampling in the background. Call it within a tokio runtime.
pub fn spawn(options: Options) -> Handle {
    let mut machine = Machine::new(options.storage_path.clone());
    let (sender, samples) = watch::channel(Arc::new(machine.sample()));
    let stop = CancellationToken::new();
    let service = Service { options, machine, sender, stop: stop.clone() };
    tokio::spawn(service.run());
    Handle { samples, _stop: Arc::new(stop.drop_guard()) }
}

struct Service {
    options: Options,
    machine: Machine,
    sender: watch::Sender<Arc<Sample>>,
    stop: CancellationToken,
}

impl Service {
    async fn run(self) {
        let Self { options, mut machine, sender, stop } = self;
        let mut gpus = options.probe.map(|command| {
            let load = probe::Subject::NvidiaLoad;
            probe::Live::new(command, load, options.nvml_library.clone(), options.probe_timeout)
        });
        // Rates need some time since the first sample; the next one comes as soon as they mean something.
        let first = Instant::now() + sysinfo::MINIMUM_CPU_UPDATE_INTERVAL.max(Duration::from_millis(250));
        let mut ticks = tokio::time::interval_at(first.into(), options.interval.max(Duration::from_millis(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let answers = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                answers = ask(&mut gpus) => answers,
            };
            // Asking the disk of a server that is gone can take for ever: not on a thread of the runtime.
            let path = options.storage_path.clone();
            let sampled = tokio::task::spawn_blocking(move || {
                let sample = machine.sample();
                (machine, sample)
            });
            let mut sample;
            (machine, sample) = match sampled.await {
                Ok(sampled) => sampled,
                Err(error) => {
                    tracing::error!(%error, "the machine could not be sampled");
                    (Machine::new(path), Sample::default())
                }
            };
            for answer in answers {
                match answer {
                    probe::Answer::GpuSample(gpu) => sample.gpus.push(gpu),
                    probe::Answer::Finding(finding) => sample.findings.push(finding),
                    _ => {}
                }
            }
            sender.send_replace(Arc::new(sample));
        }
    }
}

async fn ask(gpus: &mut Option<probe::Live>) -> Vec<probe::Answer> {
    match gpus {
        Some(gpus) => gpus.ask(Instant::now()).await,
        None => Vec::new(),
    }
}

/// The system's counters and what they were the last time.
struct Machine {
    storage_path: PathBuf,
    system: Option<System>,
    networks: Option<Networks>,
    threads: usize,
    last: Option<(Instant, u64, u64)>,
}

impl Machine {
    fn new(storage_path: PathBuf) -> Self {
        Self {
            storage_path,
            system: System::new().ok(),
            networks: Networks::new_with_refreshed_list().ok(),
            threads: cpu::threads(),
            last: None,
        }
    }

    fn sample(&mut self) -> Sample {
        let now = Instant::now();
        let taken = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut sample =
            Sample { taken_unix_ms: u64::try_from(taken.as_millis()).unwrap_or(u64::MAX), ..Sample::default() };
        let first = self.last.is_none();
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            sample.cpu_utilisation_percent = Some(system.global_cpu_usage()).filter(|_| !first);
            sample.memory = Memory::now(system, &cgroup::limits());
            let own = Pid::from_u32(std::process::id());
            let what = ProcessRefreshKind::nothing().with_cpu().with_memory().without_tasks();
            system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), true, what);
            if let Some(process) = system.process(own) {
                sample.process_resident_bytes = process.memory();
                let share = process.cpu_usage() / self.threads as f32;
                sample.process_cpu_percent = Some(share).filter(|_| !first);
            }
        }
        match disk::at(&self.storage_path) {
            Ok(disk) => sample.disk = Some(disk),
            Err(finding) => sample.findings.push(finding),
        }
        if let Some(networks) = &mut self.networks {
            networks.refresh(true);
            let (received, sent) = network::total_bytes(networks);
            sample.network = self.traffic(now, received, sent);
        }
        sample
    }

    fn traffic(&mut self, now: Instant, received_bytes: u64, sent_bytes: u64) -> Traffic {
        let since = self.last.replace((now, received_bytes, sent_bytes));
        let rate = |count: u64, before: u64, time: Instant| {
            let seconds = now.duration_since(time).as_secs_f64();
            // An interface that went away takes its count with it: that is no traffic backwards.
            (seconds > 0.0).then(|| count.saturating_sub(before) as f64 / seconds)
        };
        Traffic {
            received_bytes,
            sent_bytes,
            received_bytes_per_s: since.and_then(|(time, received, _)| rate(received_bytes, received, time)),
            sent_bytes_per_s: since.and_then(|(time, _, sent)| rate(sent_bytes, sent, time)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_rate_is_what_came_since_the_last_sample() {
        let mut machine = Machine::new(PathBuf::from("."));
        let begin = Instant::now();
        let first = machine.traffic(begin, 1000, 500);
        assert_eq!((first.received_bytes_per_s, first.sent_bytes_per_s), (None, None));
        let second = machine.traffic(begin + Duration::from_secs(2), 3000, 500);
        assert_eq!((second.received_bytes_per_s, second.sent_bytes_per_s), (Some(1000.0), Some(0.0)));
        let gone = machine.traffic(begin + Duration::from_secs(3), 10, 600);
        assert_eq!((gone.received_bytes_per_s, gone.sent_bytes_per_s), (Some(0.0), Some(100.0)));
    }

    #[tokio::test]
    async fn a_sample_is_there_at_once_and_the_next_one_has_rates() {
        let mut handle = spawn(Options { interval: Duration::from_millis(20), ..Options::new(".") });
        let first = handle.latest();
        assert!(first.memory.total_bytes > 0 && first.process_resident_bytes > 0 && first.disk.is_some(), "{first:?}");
        assert_eq!(first.cpu_utilisation_percent, None);
        let second = handle.next().await;
        assert!(second.cpu_utilisation_percent.is_some_and(|percent| (0.0..=100.0).contains(&percent)), "{second:?}");
        assert!(second.taken_unix_ms >= first.taken_unix_ms);
    }

    #[tokio::test]
    async fn sampling_ends_with_its_last_handle() {
        let handle = spawn(Options::new("."));
        let samples = handle.samples.clone();
        drop(handle.clone());
        assert!(samples.has_changed().is_ok());
        drop(handle);
        let mut samples = samples;
        while samples.changed().await.is_ok() {}
    }
}
