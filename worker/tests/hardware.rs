//! The GPU probe against a stand-in for NVIDIA's library and against children that misbehave: in go a library compiled here
//! and environment variables, out come profiles and samples that are compared with what the stand-in was told to say.
//! It needs a C compiler for the stand-in and no GPU.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use worker::hardware::{self, Finding, Profile, Severity, live, nvidia, probe};

/// A healthy child is never silent for so long, however busy the machine is.
const PATIENT: Duration = Duration::from_secs(60);
/// For children that are silent on purpose.
const IMPATIENT: Duration = Duration::from_secs(3);

/// The stand-in library, compiled into a folder of its own.
struct StandIn {
    _folder: tempfile::TempDir,
    library: PathBuf,
}

impl StandIn {
    /// `None`, said aloud, where there is no C compiler.
    fn compile(flags: &[&str]) -> Option<Self> {
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in/nvml.c");
        let folder = tempfile::tempdir().expect("a folder for the library can be made");
        let library = folder.path().join("libnvidia-ml.so.1");
        let mut command = std::process::Command::new(&compiler);
        command.args(["-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(source).args(flags);
        match command.output() {
            Ok(output) if output.status.success() => Some(Self { _folder: folder, library }),
            Ok(output) => panic!("{compiler}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => {
                eprintln!("SKIPPED: no C compiler to build the stand-in library with: {compiler}: {error}");
                None
            }
        }
    }
}

/// The child half of the other tests: they run this executable again with only this test.
#[test]
#[ignore = "the other tests run it as their child process"]
fn probe_child() {
    hardware::run_probe_child();
}

/// This executable as the child.
fn child(environment: &[(&str, &str)]) -> probe::Command {
    let args = ["--ignored", "--exact", "probe_child", "--quiet", "--test-threads=1"];
    // No graphics driver of this machine has a part in these tests.
    let no_vulkan = [("VK_DRIVER_FILES", "/nonexistent"), ("VK_ICD_FILENAMES", "/nonexistent")];
    let variable = |&(name, value): &(&str, &str)| (OsString::from(name), OsString::from(value));
    probe::Command {
        program: std::env::current_exe().expect("this executable has a path"),
        args: args.map(OsString::from).to_vec(),
        environment: no_vulkan.iter().chain(environment).map(variable).collect(),
    }
}

async fn profile_by(command: probe::Command, library: PathBuf, probe_timeout: Duration) -> Profile {
    let options = hardware::Options {
        nvml_library: Some(library),
        probe: Some(command),
        probe_timeout,
        measure: false,
        ..hardware::Options::new(".")
    };
    let profile = hardware::profile(options).await;
    assert!(profile.cpu.logical_cores > 0 && profile.memory.total_bytes > 0, "the rest is there whatever a GPU does");
    profile
}

/// The profile as the stand-in tells it, or `None` where it cannot be compiled.
async fn profile(flags: &[&str], environment: &[(&str, &str)], probe_timeout: Duration) -> Option<Profile> {
    let stand_in = StandIn::compile(flags)?;
    Some(profile_by(child(environment), stand_in.library.clone(), probe_timeout).await)
}

/// What the probe of NVIDIA's cards found; the rest of the machine is not the stand-in's.
fn findings(profile: &Profile) -> Vec<&Finding> {
    let of_the_machine = ["nvidia.card_without_driver"];
    let nvidia = |finding: &&Finding| finding.code.starts_with("nvidia.");
    profile.findings.iter().filter(nvidia).filter(|finding| !of_the_machine.contains(&finding.code.as_str())).collect()
}

/// One finding with this code, whose message holds these words, and no other.
fn check_only_finding(profile: &Profile, code: &str, words: &[&str]) {
    let [finding] = findings(profile)[..] else { panic!("not one finding: {:?}", findings(profile)) };
    assert_eq!(finding.code, code, "{finding}");
    for word in words {
        assert!(finding.message.contains(word), "no {word:?} in {finding}");
    }
}

fn card(index: u32) -> nvidia::Gpu {
    nvidia::Gpu {
        index,
        name: Some(format!("Stand-In {index}")),
        uuid: Some(format!("GPU-00000000-0000-0000-0000-00000000000{index}")),
        pci_address: Some(format!("0000:{:02x}:00.0", index + 1)),
        compute_capability: Some("8.9".to_owned()),
        ecc_enabled: Some(true),
        pcie_generation_max: Some(4),
        pcie_width_max: Some(16),
        power_limit_watts: Some(450.0),
        power_limit_default_watts: Some(450.0),
        mig_enabled: Some(false),
        mig_instances: vec![],
        clock_max_hertz: Some(2_520_000_000),
        temperature_slowdown_celsius: Some(90),
        load: nvidia::Load {
            vram_total_bytes: Some(24 << 30),
            vram_free_bytes: Some(20 << 30),
            vram_used_bytes: Some(3 << 30),
            utilisation_percent: Some(12),
            memory_utilisation_percent: Some(3),
            temperature_celsius: Some(41),
            power_watts: Some(27.5),
            clock_hertz: Some(210_000_000),
            throttled_by: vec!["power_cap".to_owned(), "temperature".to_owned()],
            ecc_corrected_errors: Some(5),
            ecc_uncorrected_errors: Some(0),
            pcie_generation: Some(1),
            pcie_width: Some(8),
        },
    }
}

#[tokio::test]
async fn every_card_is_told_in_full() {
    for count in [0, 1, 2, 8] {
        let gpus = count.to_string();
        let Some(profile) = profile(&[], &[("STAND_IN_GPUS", &gpus)], PATIENT).await else { return };
        assert_eq!(profile.nvidia.gpus, (0..count).map(card).collect::<Vec<_>>());
        let driver = nvidia::Driver {
            version: Some("580.65.06".to_owned()),
            cuda_version: Some("13.0".to_owned()),
            nvml_version: Some("13.580.65.06".to_owned()),
        };
        assert_eq!(profile.nvidia.driver, Some(driver));
        assert_eq!(findings(&profile), Vec::<&Finding>::new());
        assert_eq!(profile.has_gpu(), count > 0);
    }
}

#[tokio::test]
async fn a_card_that_fell_off_the_bus_is_a_finding_and_the_others_are_told() {
    let environment = [("STAND_IN_GPUS", "8"), ("STAND_IN_LOST", "3")];
    let Some(profile) = profile(&[], &environment, PATIENT).await else { return };
    assert_eq!(profile.nvidia.gpus, [0, 1, 2, 4, 5, 6, 7].map(card));
    check_only_finding(&profile, "nvidia.card_lost", &["GPU 3", "fell off the bus"]);
    assert_eq!(findings(&profile)[0].severity, Severity::Error);
}

#[tokio::test]
async fn a_card_that_is_divided_is_told_with_its_instances() {
    for count in [0, 2, 7] {
        let instances = count.to_string();
        let Some(profile) = profile(&[], &[("STAND_IN_MIG", &instances)], PATIENT).await else { return };
        let instance = |number| nvidia::MigInstance {
            name: Some(format!("Stand-In MIG {number}")),
            uuid: Some(format!("MIG-00000000-0000-0000-0000-00000000000{number}")),
            vram_total_bytes: Some(10 << 30),
        };
        let mig_instances = (0..count).map(instance).collect();
        assert_eq!(profile.nvidia.gpus, [nvidia::Gpu { mig_enabled: Some(true), mig_instances, ..card(0) }]);
        assert_eq!(findings(&profile), Vec::<&Finding>::new());
    }
}

#[tokio::test]
async fn a_query_that_the_library_lacks_is_a_finding_and_leaves_its_figures_empty() {
    let Some(profile) = profile(&["-DOLD_DRIVER"], &[], PATIENT).await else { return };
    let mut expected = card(0);
    expected.load.vram_total_bytes = None;
    expected.load.vram_free_bytes = None;
    expected.load.vram_used_bytes = None;
    assert_eq!(profile.nvidia.gpus, [expected]);
    check_only_finding(&profile, "nvidia.symbol_missing", &["GPU 0", "memory"]);
}

#[tokio::test]
async fn a_query_that_fails_is_a_finding_that_says_which_and_why() {
    let cases = [
        ("nvmlDeviceGetPowerUsage=999", "nvidia.query_failed", "power"),
        ("nvmlDeviceGetPowerUsage=3", "nvidia.not_supported", "power"),
        ("nvmlDeviceGetPowerUsage=15", "nvidia.card_lost", "fell off the bus"),
        ("nvmlDeviceGetPowerUsage=12345", "nvidia.query_failed", "power"),
    ];
    for (fail, code, word) in cases {
        let Some(profile) = profile(&[], &[("STAND_IN_FAIL", fail)], PATIENT).await else { return };
        let mut expected = card(0);
        expected.load.power_watts = None;
        assert_eq!(profile.nvidia.gpus, [expected], "{fail}");
        check_only_finding(&profile, code, &["GPU 0", word]);
    }
}

#[tokio::test]
async fn a_driver_that_does_not_start_is_a_finding_that_says_what_to_do() {
    let cases = [
        ("nvmlInit_v2=9", "nvidia.driver_not_loaded"),
        ("nvmlInit_v2=18", "nvidia.driver_mismatch"),
        ("nvmlInit_v2=4", "nvidia.no_permission"),
        ("nvmlInit_v2=999", "nvidia.not_opened"),
        ("nvmlDeviceGetCount_v2=999", "nvidia.query_failed"),
    ];
    for (fail, code) in cases {
        let Some(profile) = profile(&[], &[("STAND_IN_FAIL", fail)], PATIENT).await else { return };
        assert_eq!(profile.nvidia.gpus, [], "{fail}");
        check_only_finding(&profile, code, &[]);
    }
}

#[tokio::test]
async fn a_query_that_crashes_costs_its_own_figure_and_nothing_else() {
    let environment = [("STAND_IN_GPUS", "2"), ("STAND_IN_CRASH", "nvmlDeviceGetPowerUsage")];
    let Some(profile) = profile(&[], &environment, PATIENT).await else { return };
    let without_power = |index| {
        let mut card = card(index);
        card.load.power_watts = None;
        card
    };
    assert_eq!(profile.nvidia.gpus, [without_power(0), without_power(1)]);
    let found = findings(&profile);
    assert_eq!(found.len(), 2, "{found:?}");
    for (finding, step) in found.iter().zip(["GPU 0: power", "GPU 1: power"]) {
        assert_eq!(finding.code, "nvidia.probe_crashed");
        assert!(finding.message.contains("SIGSEGV") && finding.message.contains(step), "{finding}");
    }
}

#[tokio::test]
async fn a_driver_that_crashes_when_it_is_loaded_leaves_the_rest_of_the_profile() {
    let Some(profile) = profile(&[], &[("STAND_IN_CRASH", "nvmlInit_v2")], PATIENT).await else { return };
    assert_eq!(profile.nvidia, nvidia::Nvidia::default());
    check_only_finding(&profile, "nvidia.probe_crashed", &["SIGSEGV", "load the library"]);
}

#[tokio::test]
async fn a_query_that_hangs_is_killed_and_costs_its_own_figure() {
    let hang = [("STAND_IN_HANG", "nvmlDeviceGetTemperature")];
    let Some(profile) = profile(&[], &hang, IMPATIENT).await else { return };
    let mut expected = card(0);
    expected.load.temperature_celsius = None;
    assert_eq!(profile.nvidia.gpus, [expected]);
    check_only_finding(&profile, "nvidia.probe_hung", &["silent for 3s", "GPU 0: temperature"]);
}

#[tokio::test]
async fn a_driver_that_prints_is_noted_and_loses_nothing() {
    // The last query before the card is told: what is printed there stands on the line of the answer.
    let print = [("STAND_IN_PRINT", "nvmlDeviceGetCurrPcieLinkWidth")];
    let Some(profile) = profile(&[], &print, PATIENT).await else { return };
    assert_eq!(profile.nvidia.gpus, [card(0)]);
    check_only_finding(&profile, "nvidia.probe_chatter", &["a driver's own words"]);
}

#[tokio::test]
async fn a_file_that_is_no_library_is_a_finding() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libnvidia-ml.so.1");
    std::fs::write(&library, "not a library").unwrap();
    let profile = profile_by(child(&[]), library, PATIENT).await;
    check_only_finding(&profile, "nvidia.library_missing", &["libnvidia-ml.so.1"]);
}

#[tokio::test]
async fn without_a_vulkan_driver_the_list_of_adapters_is_empty_and_a_finding_says_so() {
    let profile = profile_by(child(&[]), PathBuf::from("/nonexistent"), PATIENT).await;
    assert_eq!(profile.adapters, []);
    let about: Vec<_> = profile.findings.iter().filter(|finding| finding.code == "adapters.none").collect();
    assert_eq!(about.len(), 1, "{:?}", profile.findings);
    assert_eq!(about[0].severity, Severity::Info);
}

#[cfg(unix)]
#[tokio::test]
async fn a_child_that_talks_nonsense_is_a_finding() {
    let cases = [
        ("exit 0", "nvidia.probe_crashed", "ended with exit code 0"),
        ("echo broken >&2; exit 7", "nvidia.probe_crashed", "exit code 7; it said: broken"),
        ("echo nonsense; kill -9 $$", "nvidia.probe_crashed", "SIGKILL"),
        ("exec >&-; exec sleep 600", "nvidia.probe_crashed", "closed its output"),
        ("exec sleep 600", "nvidia.probe_hung", "silent"),
        ("exec yes", "nvidia.probe_garbled", "more than"),
        ("exec cat /dev/zero", "nvidia.probe_garbled", "no answer"),
        ("echo '\"ready\"'; echo '{\"gpu\":5}'; echo '\"done\"'; read _; read _", "nvidia.probe_chatter", "gpu"),
    ];
    for (script, code, word) in cases {
        let args = vec![OsString::from("-c"), OsString::from(script)];
        let shell = probe::Command { program: PathBuf::from("/bin/sh"), args, environment: Vec::new() };
        let profile = profile_by(shell, PathBuf::from("/nonexistent"), IMPATIENT).await;
        assert_eq!(profile.nvidia, nvidia::Nvidia::default(), "{script}");
        check_only_finding(&profile, code, &[word]);
    }
}

#[tokio::test]
async fn a_probe_that_cannot_be_started_is_a_finding() {
    let missing = probe::Command { program: PathBuf::from("/nonexistent"), args: Vec::new(), environment: Vec::new() };
    let profile = profile_by(missing, PathBuf::from("/nonexistent"), PATIENT).await;
    check_only_finding(&profile, "nvidia.probe_not_started", &["/nonexistent"]);
}

#[test]
fn a_child_ends_when_its_parent_is_gone() {
    let command = child(&[]);
    let mut process = std::process::Command::new(command.program)
        .args(command.args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    drop(process.stdin.take());
    assert!(process.wait().unwrap().success());
}

/// The first sample that fits, of the few that come before a test is given up.
async fn sample_where(options: live::Options, fits: impl Fn(&live::Sample) -> bool) -> live::Sample {
    let mut handle = live::spawn(live::Options { interval: Duration::from_millis(50), ..options });
    let mut seen = live::Sample::default();
    for _ in 0..400 {
        seen = (*handle.next().await).clone();
        if fits(&seen) {
            return seen;
        }
    }
    panic!("no sample fits, the last was {seen:?}");
}

fn sampled(stand_in: &StandIn, environment: &[(&str, &str)]) -> live::Options {
    live::Options {
        probe: Some(child(environment)),
        nvml_library: Some(stand_in.library.clone()),
        probe_timeout: PATIENT,
        ..live::Options::new(".")
    }
}

#[tokio::test]
async fn samples_have_the_load_of_every_card_and_the_faults_that_the_driver_reports() {
    let Some(stand_in) = StandIn::compile(&[]) else { return };
    let options = sampled(&stand_in, &[("STAND_IN_GPUS", "2"), ("STAND_IN_XID", "79")]);
    let sample = sample_where(options, |sample| !sample.gpus.is_empty()).await;
    let expected = |index, xid_faults, xid_last| nvidia::GpuSample {
        index,
        uuid: card(index).uuid,
        load: card(index).load,
        xid_faults,
        xid_last,
        xids: xid_last.into_iter().collect(),
    };
    assert_eq!(sample.gpus, [expected(0, 1, Some(79)), expected(1, 0, None)]);
    assert_eq!(sample.findings, []);
}

#[tokio::test]
async fn a_card_that_is_lost_or_broken_makes_the_machine_unfit() {
    let Some(stand_in) = StandIn::compile(&[]) else { return };
    let cases = [
        (("STAND_IN_LOST", "1"), Some("fell off the bus")),
        (("STAND_IN_XID", "79"), Some("Xid 79")),
        // A program's own mistake.
        (("STAND_IN_XID", "31"), None),
    ];
    for (variable, words) in cases {
        let options = sampled(&stand_in, &[("STAND_IN_GPUS", "2"), variable]);
        let sample = sample_where(options, |sample| !sample.gpus.is_empty()).await;
        let mut fitness = hardware::fitness::Fitness::default();
        match (fitness.judge(&sample), words) {
            ([], None) => {}
            ([reason], Some(words)) => assert!(reason.contains(words), "{reason}"),
            (reasons, _) => panic!("{variable:?}: {reasons:?}"),
        }
    }
}

#[tokio::test]
async fn sampling_goes_on_after_a_crash_without_the_query_that_crashed() {
    let Some(stand_in) = StandIn::compile(&[]) else { return };
    let crash = [("STAND_IN_CRASH", "nvmlDeviceGetUtilizationRates")];
    let crashed = |sample: &live::Sample| sample.findings.iter().any(|finding| finding.code == "nvidia.probe_crashed");
    sample_where(sampled(&stand_in, &crash), crashed).await;
    let later = sample_where(sampled(&stand_in, &crash), |sample| !sample.gpus.is_empty()).await;
    let mut expected = card(0).load;
    expected.utilisation_percent = None;
    expected.memory_utilisation_percent = None;
    assert_eq!(later.gpus[0].load, expected);
}

#[tokio::test]
async fn while_no_card_answers_every_sample_says_why() {
    let options = live::Options {
        probe: Some(child(&[])),
        nvml_library: Some(PathBuf::from("/nonexistent")),
        probe_timeout: PATIENT,
        ..live::Options::new(".")
    };
    let mut handle = live::spawn(live::Options { interval: Duration::from_millis(50), ..options });
    for _ in 0..3 {
        let sample = handle.next().await;
        assert_eq!(
            sample.findings.iter().map(|finding| finding.code.as_str()).collect::<Vec<_>>(),
            ["nvidia.library_missing"]
        );
    }
}
