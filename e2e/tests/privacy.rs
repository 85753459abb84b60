//! What the program keeps from those whom it does not concern.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed, and the panic says where")]

use e2e::program::command;
use std::path::{Path, PathBuf};

fn files(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, all) } else { all.push(path) }
    }
}

/// As Microsoft builds it, the library keeps a number of the machine and a database of what it wants to report.
#[test]
fn nothing_is_kept_for_the_maker_of_onnx_runtime() {
    if std::env::var_os("NEUROGRID_TEST_ORT").is_none() {
        return eprintln!("skipped: NEUROGRID_TEST_ORT names no ONNX Runtime library");
    }
    let folder = tempfile::tempdir().unwrap();
    let mut doctor = command(folder.path());
    doctor.args(["doctor", "--bind", "127.0.0.1:0"]).env_remove("ORT_DISABLE_TELEMETRY");
    let output = doctor.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("onnxruntime 1."), "{said}");
    let mut all = vec![];
    files(folder.path(), &mut all);
    let of_others = all.iter().filter(|path| path.to_string_lossy().to_lowercase().contains("microsoft"));
    assert_eq!(of_others.collect::<Vec<_>>(), Vec::<&PathBuf>::new());
}
