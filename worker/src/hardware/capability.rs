//! What each device of this machine can do, measured: a device comes in; bandwidth, matrix rates, embeddings and tokens a second go out, and
//! are kept in a file until the device, its driver or this build is another. It measures only where it is asked to, for seconds, on
//! all of the device; run it where nothing else does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use models::backend::speed::{self as work, Precision, Work};
use models::bundled::{self, Bundled};
use models::engine::{Device, Generator, Item, Tokens};
use models::generate::{Part, Plan};
use models::manifest::Manifest;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Finding, Profile, speed};

/// How long each figure is measured for. There are up to six for a device, so a device takes less than ten seconds.
const MEASURE_FOR: Duration = Duration::from_millis(800);

/// Sequences of a batch, and tokens of each: what most texts that are searched have, in a batch that fills most devices.
const BATCH: (usize, usize) = (32, 128);

/// Texts that are written side by side, and tokens of each one's prompt.
const TEXTS: (usize, usize) = (8, 32);

/// What was measured of one device, and what of it would make that void.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::Capability)]
pub struct Capability {
    /// What was measured, and with what.
    #[serde(flatten)]
    pub key: Key,
    /// When, in seconds since 1970.
    pub measured_unix_s: u64,
    /// Bytes read plus bytes written per second when a block larger than the caches is copied within the device's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_bytes_per_s: Option<f64>,
    /// Operations (a multiplication and an addition are two) per second of a matrix product, by precision: `f32`, `f16`, `bf16`, `int8`.
    /// Those that models are calculated in there.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub matmul_ops_per_s: BTreeMap<String, f64>,
    /// Sequences of 128 tokens per second that the bundled encoder turns into vectors, 32 at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embeddings_per_s: Option<f64>,
    /// Tokens per second that the bundled language model writes in 8 texts side by side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_s: Option<f64>,
}

/// Figures hold as long as all of this does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = hardware::CapabilityKey)]
pub struct Key {
    /// Such as `cpu` or `cuda:0`.
    pub device: String,
    /// The processor's or the card's name; of a card also its UUID.
    pub name: String,
    /// Threads of a CPU that worked; the driver of a GPU.
    pub driver: String,
    /// This program's version, and what it is built for.
    pub build: String,
}

/// What to do where a figure is not at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Leave it out.
    #[default]
    Kept,
    /// Measure devices that have none.
    Missing,
    /// Measure every device, whatever is at hand.
    Again,
}

/// Whether and how devices are measured.
#[derive(Clone)]
pub struct Options {
    /// Where figures are kept.
    pub file: PathBuf,
    /// When to measure.
    pub mode: Mode,
    /// How long each figure is measured for.
    pub measure_for: Duration,
    /// Told what is being measured.
    pub progress: Arc<dyn Fn(&str) + Send + Sync>,
}

impl Options {
    /// Only what is kept in this file of the data folder.
    pub fn kept(data: &Path) -> Self {
        let file = data.join("worker").join("capabilities.json");
        Self { file, mode: Mode::Kept, measure_for: MEASURE_FOR, progress: Arc::new(|_| {}) }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Options");
        shown.field("file", &self.file).field("mode", &self.mode).field("measure_for", &self.measure_for);
        shown.finish_non_exhaustive()
    }
}

/// The devices of a profile that models can run on, with what their figures depend on.
fn devices(profile: &Profile) -> Vec<(Device, Key)> {
    let build = format!(
        "{}{}{}{}",
        env!("CARGO_PKG_VERSION"),
        if cfg!(feature = "cuda") { "-cuda" } else { "" },
        if cfg!(feature = "metal") { "-metal" } else { "" },
        if cfg!(debug_assertions) { "-debug" } else { "" }
    );
    let key = |device: Device, name: String, driver: String| {
        (device, Key { device: device.to_string(), name, driver, build: build.clone() })
    };
    let threads = format!("{} threads", profile.threads.count);
    let mut devices = vec![key(Device::Cpu, profile.cpu.model.clone(), threads)];
    let driver = profile.nvidia.driver.as_ref().and_then(|driver| driver.version.clone()).unwrap_or_default();
    for card in profile.cuda.iter().flatten().filter(|card| card.works) {
        let name = format!("{} {}", card.name, card.uuid);
        devices.push(key(Device::Cuda(card.ordinal as usize), name, driver.clone()));
    }
    if cfg!(feature = "metal") {
        let macs = profile.apple.iter().enumerate();
        let system = profile.system.version.clone().unwrap_or_default();
        devices.extend(macs.map(|(at, gpu)| key(Device::Metal(at), gpu.name.clone(), system.clone())));
    }
    devices
}

/// The figures of every device, kept or measured as the options say, and what could not be had. It blocks for up to ten seconds a device.
pub fn of_all(profile: &Profile, options: &Options) -> (Vec<Capability>, Vec<Finding>) {
    let mut kept = read(&options.file);
    let mut findings = Vec::new();
    let mut is_new = false;
    let mut capabilities = Vec::new();
    for (device, key) in devices(profile) {
        let known = kept.iter().find(|capability| capability.key == key);
        match (known, options.mode) {
            (Some(known), Mode::Kept | Mode::Missing) => capabilities.push(known.clone()),
            (None, Mode::Kept) => {}
            (None, Mode::Missing) | (_, Mode::Again) => {
                is_new = true;
                capabilities.push(measure(device, key, profile, options, &mut findings));
            }
        }
    }
    // Of another build's figures, the CPU's beside the GPUs' say, those stay that nobody has measured anew.
    let is_replaced =
        |old: &Capability, new: &Capability| (&old.key.device, &old.key.build) == (&new.key.device, &new.key.build);
    kept.retain(|old| !capabilities.iter().any(|new| is_replaced(old, new)));
    kept.extend_from_slice(&capabilities);
    if is_new && let Err(why) = write(&options.file, &kept) {
        let message = format!("what was measured could not be kept in {}: {why}", options.file.display());
        findings
            .push(Finding::warning("capability.not_kept", message).with_remedy("see that the folder can be written"));
    }
    (capabilities, findings)
}

/// Nothing where there is no file, or one of another version.
fn read(file: &Path) -> Vec<Capability> {
    std::fs::read(file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// As a whole or not at all: a reader finds the old figures or the new ones.
fn write(file: &Path, capabilities: &[Capability]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = file.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&temporary, serde_json::to_vec_pretty(capabilities)?)?;
    std::fs::rename(&temporary, file)
}

fn measure(device: Device, key: Key, profile: &Profile, options: &Options, findings: &mut Vec<Finding>) -> Capability {
    let (threads, measure_for) = (profile.threads.count.max(1), options.measure_for);
    let tell = |what: &str| (options.progress)(&format!("{device}: measuring {what}"));
    let mut failed = |what: &str, why: String| {
        findings.push(Finding::warning("capability.failed", format!("{device}: {what} was not measured: {why}")));
    };
    tell("copies");
    let copy_bytes_per_s = copies(device, profile, measure_for);
    if copy_bytes_per_s.is_none() {
        failed("the bandwidth", "too little memory is free".into());
    }
    let mut matmul_ops_per_s = BTreeMap::new();
    for precision in work::precisions(device) {
        tell(&format!("products in {}", precision.name()));
        match products(device, *precision, threads, measure_for) {
            Some(rate) => drop(matmul_ops_per_s.insert(precision.name().to_owned(), rate)),
            None => failed(precision.name(), "the library could not multiply".into()),
        }
    }
    tell("embeddings");
    let folder = options.file.with_extension(format!("{}.models", std::process::id()));
    let trial = Trial { device, threads, folder: &folder, measure_for };
    let embeddings_per_s = trial.embeddings().map_err(|why| failed("the rate of embeddings", why)).ok();
    tell("tokens");
    let tokens_per_s = trial.tokens().map_err(|why| failed("the rate of tokens", why)).ok();
    // What is left of it is of no harm.
    drop(std::fs::remove_dir_all(&folder));
    let measured_unix_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Capability {
        key,
        measured_unix_s,
        copy_bytes_per_s: copy_bytes_per_s.map(rounded),
        matmul_ops_per_s: matmul_ops_per_s.into_iter().map(|(name, rate)| (name, rounded(rate))).collect(),
        embeddings_per_s: embeddings_per_s.map(rounded),
        tokens_per_s: tokens_per_s.map(rounded),
    }
}

/// To four digits: more were not measured, and so many are the same when they are read again.
fn rounded(rate: f64) -> f64 {
    format!("{rate:.3e}").parse().unwrap_or(rate)
}

/// The CPU's is measured by all its threads; a GPU's by its own copies of a gigabyte, or of what is free.
fn copies(device: Device, profile: &Profile, measure_for: Duration) -> Option<f64> {
    const BLOCK_BYTES: u64 = 1 << 30;
    if device == Device::Cpu {
        return speed::memory_bandwidth(&speed::Bench {
            threads: profile.threads.count,
            available_bytes: profile.memory.available_bytes,
            cache_bytes: profile.cpu.last_level_cache_bytes(),
            matmul: None,
        });
    }
    let free = models::backend::cuda::free_bytes(device).unwrap_or(profile.memory.available_bytes);
    let bytes = usize::try_from(BLOCK_BYTES.min(free / 8)).ok()?;
    per_second(work::copies(device, bytes)?, measure_for).map(|rounds| rounds * 2.0 * bytes as f64)
}

/// Operations per second. A GPU's matrices are larger: what fills a processor's cores leaves most of a card idle.
fn products(device: Device, precision: Precision, threads: usize, measure_for: Duration) -> Option<f64> {
    let edge: usize = if device == Device::Cpu { 1024 } else { 8192 };
    let rounds = per_second(work::products(device, precision, edge, threads)?, measure_for)?;
    Some(rounds * 2.0 * (edge as f64).powi(3))
}

/// Rounds per second: once to warm up, once to learn how long it takes, then for so long.
fn per_second(mut work: Work, measure_for: Duration) -> Option<f64> {
    work(1).then_some(())?;
    let started = Instant::now();
    work(1).then_some(())?;
    let once = started.elapsed().max(Duration::from_nanos(1));
    let rounds = (measure_for.as_secs_f64() / once.as_secs_f64()).clamp(1.0, 1e6) as usize;
    let started = Instant::now();
    work(rounds).then_some(())?;
    Some(rounds as f64 / started.elapsed().as_secs_f64())
}

/// What is counted per second, `count` of it in each step: at least one step, for so long, or until there is no further step.
fn counted(count: usize, measure_for: Duration, mut step: impl FnMut() -> Result<bool, String>) -> Result<f64, String> {
    let started = Instant::now();
    let mut steps = 0;
    while step()? {
        steps += 1;
        if started.elapsed() >= measure_for {
            break;
        }
    }
    match steps {
        0 => Err("it has no room for one step".into()),
        steps => Ok((steps * count) as f64 / started.elapsed().as_secs_f64()),
    }
}

fn bundled_model(name: &str) -> Result<&'static Bundled, String> {
    bundled::all().iter().find(|model| model.name == name).ok_or_else(|| format!("{name} is not in this program"))
}

/// What bundled models are tried with.
struct Trial<'a> {
    device: Device,
    threads: usize,
    /// Where their files are put.
    folder: &'a Path,
    measure_for: Duration,
}

impl Trial<'_> {
    /// A bundled model's description, its files, and how it is loaded.
    fn unpack(&self, name: &str) -> Result<(Manifest, PathBuf, models::Options), String> {
        let model = bundled_model(name)?;
        let folder = self.folder.join(name);
        model.write(&folder).map_err(|why| format!("{}: {why}", folder.display()))?;
        let options = models::Options { device: self.device, threads: self.threads, ..models::Options::default() };
        Ok((model.manifest(), folder, options))
    }

    fn embeddings(&self) -> Result<f64, String> {
        let (manifest, folder, options) = self.unpack("minilm-tiny")?;
        let mut engine = models::load(&manifest, &folder, &options).map_err(words)?.engine;
        let (sequences, length) = BATCH;
        // Which tokens they are changes nothing of the time.
        let sequence = |at: usize| Item::Tokens(Tokens { ids: vec![1000 + at as u32; length], type_ids: vec![] });
        let batch: Vec<Item> = (0..sequences).map(sequence).collect();
        let mut run = || engine.run(&batch).map(|_| true).map_err(|error| error.to_string());
        run()?;
        counted(sequences, self.measure_for, run)
    }

    fn tokens(&self) -> Result<f64, String> {
        let (manifest, folder, options) = self.unpack("debian-tiny-chat")?;
        let need = models::load::text_need(&manifest, &folder, &options).map_err(words)?;
        let (texts, prompt) = TEXTS;
        let cache_bytes = (texts * need.context.div_ceil(need.block_tokens)) as u64 * need.block_bytes;
        let mut writer = models::load::load_generator(&manifest, &folder, &options, cache_bytes).map_err(words)?;
        let room = writer.info().context.min(writer.info().blocks / texts * need.block_tokens);
        let mut written = prompt;
        step(&mut *writer, texts, 0..prompt)?;
        let mut next = || {
            if written == room {
                return Ok(false);
            }
            step(&mut *writer, texts, written..written + 1)?;
            written += 1;
            Ok(true)
        };
        next()?;
        counted(texts, self.measure_for, next)
    }
}

fn words(error: models::Error) -> String {
    error.to_string()
}

/// Runs the tokens at these positions of so many texts, each of which has its own blocks.
fn step(writer: &mut dyn Generator, texts: usize, positions: std::ops::Range<usize>) -> Result<(), String> {
    let block_tokens = writer.info().block_tokens;
    let blocks_each = (writer.info().blocks / texts) as u32;
    let ids = vec![(writer.info().vocabulary - 1) as u32; positions.len()];
    let mut plan = Plan::default();
    for text in 0..texts as u32 {
        let first = text * blocks_each;
        let blocks: Vec<u32> = (first..first + positions.end.div_ceil(block_tokens) as u32).collect();
        let sequence = u64::from(text);
        plan.push(Part { sequence, tokens: &ids, position: positions.start, blocks: &blocks, is_sampled: true });
    }
    writer.step(&plan, &mut |_, _| {}).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::{cpu, cuda, nvidia};
    use std::sync::Mutex;

    fn profile() -> Profile {
        let mut profile = Profile::default();
        profile.cpu.model = "Processor".into();
        profile.threads.count = 2;
        profile.memory.available_bytes = 2 << 30;
        profile
    }

    fn options(file: PathBuf, mode: Mode) -> (Options, Arc<Mutex<Vec<String>>>) {
        let told = Arc::new(Mutex::new(Vec::new()));
        let here = Arc::clone(&told);
        let progress = Arc::new(move |what: &str| here.lock().unwrap().push(what.to_owned()));
        (Options { file, mode, measure_for: Duration::from_millis(1), progress }, told)
    }

    #[test]
    fn a_cpu_is_measured_once_kept_and_measured_again_when_it_is_asked_for_or_another() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("worker/capabilities.json");
        let of = |profile: &Profile, mode| {
            let (options, told) = options(file.clone(), mode);
            let (capabilities, findings) = of_all(profile, &options);
            assert_eq!(findings, []);
            (capabilities, told.lock().unwrap().clone())
        };
        assert_eq!(of(&profile(), Mode::Kept), (vec![], vec![]), "nothing is measured where nobody asks for it");

        let (first, told) = of(&profile(), Mode::Missing);
        let [processor] = first.as_slice() else { panic!("{first:?}") };
        assert_eq!((processor.key.device.as_str(), processor.key.driver.as_str()), ("cpu", "2 threads"));
        let rates = [processor.copy_bytes_per_s, processor.embeddings_per_s, processor.tokens_per_s];
        assert!(rates.iter().all(|rate| rate.is_some_and(|rate| rate.is_finite() && rate > 0.0)), "{processor:?}");
        assert_eq!(processor.matmul_ops_per_s.keys().collect::<Vec<_>>(), ["f32", "int8"]);
        assert!(told.iter().any(|line| line == "cpu: measuring products in int8"), "{told:?}");
        assert_eq!(std::fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "its models are gone");

        assert_eq!(of(&profile(), Mode::Missing), (first.clone(), vec![]), "it is kept");
        assert_eq!(of(&profile(), Mode::Kept), (first.clone(), vec![]));
        let other = Profile { threads: cpu::Threads { count: 1, ..profile().threads }, ..profile() };
        assert_eq!(of(&other, Mode::Kept), (vec![], vec![]), "with other threads it is another device");

        let theirs = Capability { key: Key { build: "another".into(), ..processor.key.clone() }, ..processor.clone() };
        write(&file, &[theirs.clone(), processor.clone()]).unwrap();
        let (again, told) = of(&profile(), Mode::Again);
        assert!(!told.is_empty());
        assert_eq!(read(&file), [theirs, again[0].clone()], "another build's figures stay");
    }

    #[test]
    fn a_card_is_known_by_itself_and_its_driver() {
        let card = |ordinal, uuid: &str, works| cuda::Device {
            ordinal,
            name: "Card".into(),
            uuid: uuid.into(),
            works,
            ..cuda::Device::default()
        };
        let driver = nvidia::Driver { version: Some("580.1".into()), ..nvidia::Driver::default() };
        let machine = Profile {
            nvidia: nvidia::Nvidia { driver: Some(driver), gpus: vec![] },
            cuda: Some(vec![card(0, "GPU-a", false), card(1, "GPU-b", true)]),
            ..profile()
        };
        let found = devices(&machine);
        assert_eq!(found.iter().map(|(device, _)| *device).collect::<Vec<_>>(), [Device::Cpu, Device::Cuda(1)]);
        let key = &found[1].1;
        assert_eq!((key.name.as_str(), key.driver.as_str()), ("Card GPU-b", "580.1"));
    }

    #[test]
    fn what_is_kept_and_cannot_be_read_is_measured_anew_and_not_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("capabilities.json");
        std::fs::write(&file, b"{ not what it was").unwrap();
        assert_eq!(read(&file), []);
        let kept = Capability { tokens_per_s: Some(1.5), ..Capability::default() };
        write(&file, std::slice::from_ref(&kept)).unwrap();
        assert_eq!(read(&file), [kept]);
    }

    #[test]
    fn figures_have_the_digits_that_were_measured() {
        for (rate, expected) in [(1_234_567_890_123.4, 1.235e12), (0.123_45, 0.1235), (7.0, 7.0)] {
            assert_eq!(rounded(rate), expected);
        }
    }

    #[test]
    fn a_rate_is_what_was_counted_by_the_time_that_it_took() {
        let rate = per_second(
            Box::new(|rounds| {
                std::thread::sleep(Duration::from_millis(10) * rounds as u32);
                true
            }),
            Duration::from_millis(30),
        );
        assert!(rate.is_some_and(|rate| rate > 1.0 && rate <= 100.0), "{rate:?}");
        assert_eq!(per_second(Box::new(|_| false), Duration::ZERO), None);
        let mut left = 3;
        let rate = counted(8, Duration::from_secs(1), || {
            left -= 1;
            std::thread::sleep(Duration::from_millis(10));
            Ok(left >= 0)
        });
        assert!(rate.as_ref().is_ok_and(|rate| *rate > 1.0 && *rate <= 800.0), "{rate:?}");
        assert!(counted(8, Duration::ZERO, || Ok(false)).is_err());
        assert_eq!(counted(8, Duration::ZERO, || Err("gone".into())), Err("gone".to_owned()));
    }
}
