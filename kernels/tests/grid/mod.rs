//! Runs sources for GPUs on the CPU: a C++ compiler builds them with headers that stand where a GPU's own would be (`grid.h`); what a
//! harness is told comes in, its answer goes out. What this cannot show is a GPU's own arithmetic and speed: for that, `NEUROGRID_TEST_CUDA_HARNESS`
//! names a harness that nvcc has built and that runs on a GPU (`cargo xtask gpu`).

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// A harness, built at its first use.
pub(crate) struct Harness {
    /// The folder of its `harness.cpp`, beside this one, which is also the language's name.
    pub(crate) language: &'static str,
    built: OnceLock<Option<PathBuf>>,
}

impl Harness {
    /// For the sources in a language.
    pub(crate) const fn new(language: &'static str) -> Self {
        Self { language, built: OnceLock::new() }
    }

    /// The program, or `None`, said aloud, where there is no compiler that can.
    fn program(&self) -> Option<&Path> {
        self.built.get_or_init(|| build(self.language)).as_deref()
    }

    /// Tells the program something, as its source says, and gives its answer, or `None` where nothing can build it.
    pub(crate) fn run(&self, arguments: &[String], input: &[u8]) -> Option<Vec<u8>> {
        let mut child =
            Command::new(self.program()?).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // The harness reads all before it writes.
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", output.status);
        Some(output.stdout)
    }
}

fn build(language: &str) -> Option<PathBuf> {
    if let Some(given) = std::env::var_os(format!("NEUROGRID_TEST_{}_HARNESS", language.to_uppercase())) {
        return Some(given.into());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(language);
    let source = folder.join("harness.cpp");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let program = target.join(format!("{language}-on-the-cpu-{:016x}", digest(&compiler)));
    if program.exists() {
        return Some(program);
    }
    // Each test may run in a process of its own; a file that is renamed is whole at every moment.
    let fresh = target.join(format!("{language}-{}", std::process::id()));
    let built = Command::new(&compiler)
        .args(["-std=c++20", "-O1", "-fno-strict-aliasing", "-w", "-I"])
        .arg(folder)
        .arg("-o")
        .args([&fresh, &source])
        .output();
    match built {
        Ok(output) if output.status.success() => {
            std::fs::rename(fresh, &program).unwrap();
            Some(program)
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(lacks_what_we_need(&compiler), "{} does not build:\n{said}", source.display());
            eprintln!("skipped: {language} sources on the CPU: {compiler:?} has no ucontext.h or no _Float16");
            None
        }
        Err(why) => {
            eprintln!(
                "skipped: {language} sources on the CPU: no C++ compiler {compiler:?} ({why}); install one or set CXX"
            );
            None
        }
    }
}

/// Of everything that a harness may be made of: the ops' folders, and those of the tests.
fn digest(compiler: &std::ffi::OsStr) -> u64 {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![crate_root.join("src"), crate_root.join("tests")];
    let mut files = vec![];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_none_or(|extension| extension != "rs") {
                files.push(entry);
            }
        }
    }
    files.sort();
    let mut hasher = DefaultHasher::new();
    compiler.hash(&mut hasher);
    for file in files {
        file.hash(&mut hasher);
        std::fs::read(file).unwrap().hash(&mut hasher);
    }
    hasher.finish()
}

/// Whether the compiler refuses even a program that does nothing with what the harnesses need.
fn lacks_what_we_need(compiler: &std::ffi::OsStr) -> bool {
    let mut child = Command::new(compiler)
        .args(["-std=c++20", "-x", "c++", "-fsyntax-only", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it has just run");
    let program = b"#define _XOPEN_SOURCE 700\n#include <ucontext.h>\nint main() { ucontext_t c; return getcontext(&c) + (int)(_Float16)0; }\n";
    child.stdin.take().unwrap().write_all(program).unwrap();
    !child.wait().unwrap().success()
}
