//! What the owner of a card is told: the executable for the CPU on a machine with cards, and the one with CUDA on a machine whose driver is a
//! stand-in. Cards are those of the stand-in for NVIDIA's management library.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

use e2e::program::command;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Says what is skipped, so that the run's closing table lists it.
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// Compiles C into a shared library, or says that it cannot.
fn library(folder: &Path, name: &str, source: &Path, flags: &[&str]) -> Option<PathBuf> {
    let library = folder.join(name);
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let output = Command::new(&compiler)
        .args(["-shared", "-fPIC", "-w"])
        .args(flags)
        .arg("-o")
        .arg(&library)
        .arg(source)
        .output();
    match output {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(library)
        }
        Err(why) => {
            skipped(&format!("no C compiler {compiler:?} for a stand-in library ({why})"));
            None
        }
    }
}

/// The stand-in for the management library.
fn nvml(folder: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/tests/stand_in/nvml.c");
    library(folder, "libnvidia-ml.so.1", &source, &[])
}

fn said(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// The lines of the doctor with this name.
fn lines<'a>(checks: &'a Value, name: &str) -> Vec<&'a Value> {
    checks.as_array().unwrap().iter().filter(|check| check["name"] == name).collect()
}

#[test]
fn the_cpu_build_tells_the_owner_of_a_card_that_it_is_not_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(nvml) = nvml(folder.path()) else { return };
    let mut doctor = command(folder.path());
    doctor.args(["--json", "doctor", "--bind", "127.0.0.1:0", "--nvml-library"]).arg(&nvml).env("STAND_IN_GPUS", "2");
    let output = doctor.output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    let gpu = lines(&checks, "gpu");
    let refusal = gpu.iter().find(|check| check["verdict"] == "failed").unwrap();
    assert!(refusal["proof"].as_str().unwrap().contains("this build runs models on the CPU only"), "{refusal}");
    assert!(refusal["fix"].as_str().unwrap().contains("--gpus all"), "{refusal}");
    // Both cards are shown with what their owner can mend: each has half of its lanes, and is too hot.
    for (name, count, verdict) in
        [("gpu", 3, "ok"), ("pcie", 2, "warning"), ("clocks", 2, "warning"), ("power", 2, "ok")]
    {
        assert_eq!(lines(&checks, name).len(), count, "{name}: {checks:#}");
        assert!(lines(&checks, name).iter().any(|check| check["verdict"] == verdict), "{name}: {checks:#}");
    }
}

#[test]
fn the_cpu_build_refuses_a_cuda_device_and_what_is_none() {
    let folder = tempfile::tempdir().unwrap();
    for (device, words) in [("cuda:0", "this build has no CUDA"), ("gpu", "is no device")] {
        let output =
            command(folder.path()).args(["worker", "--bind", "127.0.0.1:0", "--device", device]).output().unwrap();
        assert!(!output.status.success());
        assert!(said(&output).contains(words), "{device}: {}", said(&output));
    }
}

/// A driver's library in which every function fails with this number.
fn driver(folder: &Path, stand_in: &Path, code: u32) -> Option<()> {
    let text = std::fs::read_to_string(stand_in).unwrap();
    let source = folder.join("libcuda.c");
    std::fs::write(&source, text.replace("return 999;", &format!("return {code};"))).unwrap();
    library(folder, "libcuda.so.1", &source, &["-Wl,-soname,libcuda.so.1"]).map(drop)
}

#[test]
fn the_cuda_build_refuses_in_words_where_the_driver_does_not_work() {
    let (Some(executable), Some(home)) =
        (std::env::var_os("NEUROGRID_TEST_CUDA_BIN"), std::env::var_os("NEUROGRID_TEST_CUDA_HOME").map(PathBuf::from))
    else {
        return skipped("no executable with CUDA was built (`cargo xtask cuda`)");
    };
    let stand_in = home.join("lib/stubs/libcuda.c");
    // 999 is a stand-in's own answer, 100 that of a driver without a card, 35 that of one that is too old.
    for (code, words) in
        [(999, "the driver's library does not work"), (100, "there is no CUDA device"), (35, "too old")]
    {
        let folder = tempfile::tempdir().unwrap();
        if driver(folder.path(), &stand_in, code).is_none() {
            return;
        }
        let run = |arguments: &[&str]| {
            let mut command = Command::new(&executable);
            command
                .args(arguments)
                .env("LD_LIBRARY_PATH", format!("{}:{}", folder.path().display(), home.join("lib").display()));
            command.env("HOME", folder.path()).env("XDG_CACHE_HOME", folder.path()).env("XDG_DATA_HOME", folder.path());
            command.output().unwrap()
        };
        let output = run(&["worker", "--bind", "127.0.0.1:0"]);
        assert!(!output.status.success(), "{code}");
        let text = said(&output);
        assert!(text.contains("no CUDA device can be used") && text.contains(words), "{code}: {text}");
        assert!(text.contains("--device cpu"), "{code}: {text}");
        // The CPU is taken where it is asked for, and only there.
        let model = ["run", "embed", "minilm-tiny", "a text"];
        assert!(!run(&model).status.success(), "{code}");
        let output = run(&[&model[..], &["--device", "cpu"]].concat());
        assert!(output.status.success(), "{code}: {}", said(&output));
        let output = run(&["doctor", "--bind", "127.0.0.1:0"]);
        let text = said(&output);
        assert!(
            !output.status.success() && text.contains("this build is for GPUs, and none answers"),
            "{code}: {text}"
        );
    }
}

#[test]
fn the_profile_measures_what_a_device_can_do_once_and_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let profile = |arguments: &[&str]| -> Value {
        let output = command(folder.path()).args(["--json", "profile"]).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(profile(&["--no-measure"])["capabilities"], Value::Null, "nothing was measured before");
    let measured = profile(&[])["capabilities"].clone();
    assert_eq!(measured[0]["device"], "cpu", "{measured:#}");
    for figure in ["copy_bytes_per_s", "embeddings_per_s", "tokens_per_s"] {
        assert!(measured[0][figure].as_f64().is_some_and(|rate| rate > 0.0), "{figure}: {measured:#}");
    }
    assert!(measured[0]["matmul_ops_per_s"]["f32"].as_f64().is_some_and(|rate| rate > 0.0), "{measured:#}");
    assert_eq!(profile(&["--no-measure"])["capabilities"], measured, "what was measured is kept, to the second");
}
