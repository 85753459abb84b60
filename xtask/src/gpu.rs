//! What comes in: the workspace, on a machine with an NVIDIA GPU or on the way to one. What goes out: a pack that needs no cargo, and what
//! its stages found, kept under benches/results/. What is measured and how is said in benches/gpu.

use crate::{bench, cuda, process};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    process::Command,
};

/// Runs all that needs an NVIDIA GPU, and compares with PyTorch; or packs it for a machine that has one.
///
/// Kernels and models against their oracles, compute-sanitizer, encoders beside PyTorch and sentence-transformers, HTTP, memory. Without
/// a GPU it says so and succeeds.
///
/// Needs nvcc and a python3 with torch, transformers, sentence-transformers and aiohttp; what is missing is left out, and said. Results go
/// to benches/results/.
///
/// For a machine without cargo or a network: `cargo xtask gpu --pack neurogrid-gpu.tar.xz` here (it builds with CUDA, as `cargo xtask
/// cuda` does), and there `tar xf neurogrid-gpu.tar.xz && ./neurogrid-gpu/run.sh --out results --only tests,encoders`. Where only
/// smaller files can be carried, `--parts 64` cuts it, and `cat neurogrid-gpu.tar.xz.* > neurogrid-gpu.tar.xz` joins it there.
#[derive(clap::Args, Default)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Only make a pack, as a compressed archive of this name
    #[arg(long, value_name = "FILE")]
    pack: Option<PathBuf>,
    /// Cut the archive into parts of at most so many MiB: FILE.1, FILE.2, …
    #[arg(long, value_name = "MIB", requires = "pack", value_parser = clap::value_parser!(u64).range(1..))]
    parts: Option<u64>,
    /// Only these stages: tests, sanitizer, encoders, http, memory
    #[arg(long, value_name = "STAGES")]
    only: Option<String>,
    /// Compute capability to compile for; newer cards compile the code further when they load it
    #[arg(long, default_value_t = 75)]
    compute_capability: u32,
    /// Compilers that run at once
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// The name of the folder in the archive.
const NAME: &str = "neurogrid-gpu";

/// Programs of the pack: its name there, the package, cargo's name and kind of target.
const PROGRAMS: [(&str, &str, &str, &str); 5] = [
    ("neurogrid", "neurogrid", "neurogrid", "bin"),
    ("models-tests", "models", "models", "lib"),
    ("models-suite", "models", "suite", "test"),
    ("kernels-tests", "kernels", "cuda", "test"),
    ("encoder-device", "benches", "encoder_device", "bench"),
];

/// Sources that the pack needs: the kernels with their harness, which is compiled for the card that is there, the models of the suite, and the
/// stages.
const SOURCES: [(&str, &str); 5] = [
    ("models/tests/data", "models/tests/data"),
    ("kernels/src", "kernels/src"),
    ("kernels/tests/cuda", "kernels/tests/cuda"),
    ("kernels/tests/grid", "kernels/tests/grid"),
    ("benches/gpu", "gpu"),
];

const RUN: &str = "#!/bin/sh\n# Runs the stages: --help lists them. Needs python3; see gpu/README.md.\ncd \"$(dirname \"$0\")\" && \
                   exec python3 -m gpu \"$@\"\n";

pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    let target = process::target_folder(root)?.join("gpu");
    if let Some(file) = &options.pack {
        let folder = pack(root, &target, options)?;
        return archive(&folder, &env::current_dir()?.join(file), options.parts);
    }
    if !is_there() {
        println!("not measured: no GPU");
        return Ok(true);
    }
    let folder = pack(root, &target, options)?;
    let date = bench::now();
    let results = root.join("benches/results").join(format!("{}-gpu", date.split(' ').next().unwrap_or(&date)));
    let mut stages = Command::new(folder.join("run.sh"));
    stages.arg("--out").arg(&results);
    if let Some(only) = &options.only {
        stages.args(["--only", only]);
    }
    process::succeeds(&mut stages)
}

/// Whether NVIDIA's driver lists a card.
pub(crate) fn is_there() -> bool {
    process::output(Command::new("nvidia-smi").arg("--list-gpus")).is_ok_and(|list| list.contains("GPU 0"))
}

/// Builds everything and puts it into a folder.
fn pack(root: &Path, target: &Path, options: &Options) -> Result<PathBuf> {
    let variables = toolkit(root, options)?;
    let built = build(root, &variables)?;
    let folder = target.join(NAME);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let programs = folder.join("bin");
    fs::create_dir_all(&programs).with_context(|| format!("cannot make {}", programs.display()))?;
    for (name, program) in built {
        let to = programs.join(name);
        let mut strip = Command::new("strip");
        strip.arg("--strip-all").arg("-o").arg(&to).arg(&program);
        process::output(&mut strip).context("`strip` is part of binutils")?;
        println!("{name}: {} MB", fs::metadata(&to)?.len() / 1_000_000);
    }
    for (from, to) in SOURCES {
        copy_folder(&root.join(from), &folder.join(to))?;
    }
    let commit = process::output(Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(root));
    let head = serde_json::json!({
        "commit": commit.map(|commit| commit.trim().to_owned()).unwrap_or_else(|_| "unknown".into()),
        "packed": format!("{} UTC", bench::now()),
        "compute_capability": options.compute_capability,
    });
    write(&folder.join("pack.json"), &format!("{head:#}\n"))?;
    write(&folder.join("run.sh"), RUN)?;
    executable(&folder.join("run.sh"))?;
    Ok(folder)
}

/// The variables of a build with CUDA: of the installed toolkit where there is one, else of the one that `cargo xtask cuda` prepares.
fn toolkit(root: &Path, options: &Options) -> Result<Vec<(&'static str, String)>> {
    let installed =
        process::output(Command::new("nvcc").arg("--version")).is_ok() || env::var_os("CUDA_HOME").is_some();
    if installed {
        let compiler = cuda::compiler(&process::target_folder(root)?.join("cuda"))?;
        let compiler = compiler.into_os_string().into_string().ok().context("the path of target/ is not UTF-8")?;
        return Ok(vec![("NVCC", compiler), ("CUDA_COMPUTE_CAP", options.compute_capability.to_string())]);
    }
    cuda::environment(&cuda::prepare(root)?, options.compute_capability, options.threads)
}

/// Builds the programs of the pack, and gives where each lies. The whole workspace is chosen for each of them, as it is for tests and
/// benches: cargo then builds each dependency once.
fn build(root: &Path, variables: &[(&'static str, String)]) -> Result<BTreeMap<&'static str, PathBuf>> {
    let mut found = BTreeMap::new();
    for (verb, targets) in [
        (&["build"][..], &["--bin", "neurogrid"][..]),
        (
            &["test", "--no-run"],
            // Without the tests of rooms that no program of the pack is of.
            &[
                "--exclude=worker",
                "--exclude=coordinator",
                "--exclude=coordinator-client",
                "--exclude=e2e",
                "--exclude=xtask",
                "--lib",
                "--test=cuda",
                "--test=suite",
                "--bench=encoder_device",
            ],
        ),
    ] {
        let mut command = process::cargo(root);
        command.args(verb).args(["--release", "--message-format", "json-render-diagnostics"]);
        command.args(["--workspace", "--features", "neurogrid/cuda"]).args(targets);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        println!("$ {}", process::line(&command));
        let output = command.stderr(std::process::Stdio::inherit()).output()?;
        if !output.status.success() {
            bail!("the build failed; its own words are above");
        }
        found.extend(executables(&String::from_utf8_lossy(&output.stdout)));
    }
    for (name, ..) in PROGRAMS {
        if !found.contains_key(name) {
            bail!("cargo built no {name}; the list of programs in xtask/src/gpu.rs is not that of the workspace");
        }
    }
    Ok(found)
}

/// The programs of the pack among cargo's messages.
fn executables(messages: &str) -> BTreeMap<&'static str, PathBuf> {
    let mut found = BTreeMap::new();
    for message in messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let Some(executable) = message["executable"].as_str() else { continue };
        let package = message["manifest_path"].as_str().unwrap_or_default();
        for (name, of, target, kind) in PROGRAMS {
            // A package's folder has its name, but for the executable's, which lies in cli.
            let folder = if of == "neurogrid" { "cli" } else { of };
            let is_of = package.ends_with(&format!("/{folder}/Cargo.toml"));
            if is_of && message["target"]["name"] == target && message["target"]["kind"][0] == kind {
                found.insert(name, PathBuf::from(executable));
            }
        }
    }
    found
}

/// What xz is told, unless `XZ_OPT` is set: the programs hold the same kernels and models, and only a window as wide as the pack sees that.
/// It takes 5 GB of memory here, and half of one there.
const COMPRESSION: &str = "--lzma2=preset=6,dict=512MiB";

/// Makes an archive of the folder, in parts where they are asked for.
fn archive(folder: &Path, file: &Path, parts: Option<u64>) -> Result<bool> {
    let above = folder.parent().context("the pack lies in a folder")?;
    let mut tar = Command::new("tar");
    if env::var_os("XZ_OPT").is_none() {
        tar.env("XZ_OPT", COMPRESSION);
    }
    tar.arg("--create").arg("--auto-compress").arg("--file").arg(file).arg("--directory").arg(above).arg(NAME);
    if !process::succeeds(&mut tar)? {
        return Ok(false);
    }
    let (whole, name) = (fs::metadata(file)?.len(), file.file_name().context("FILE is a file's name")?);
    println!("{}: {:.1} MiB", file.display(), mib(whole));
    let name = name.to_string_lossy();
    let Some(largest) = parts else {
        println!("there: tar xf {name} && ./{NAME}/run.sh --help");
        return Ok(true);
    };
    for (part, bytes) in cut(file, largest << 20)? {
        println!("{}: {:.1} MiB", part.display(), mib(bytes));
    }
    println!("there: cat {name}.* > {name} && tar xf {name} && ./{NAME}/run.sh --help");
    Ok(true)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Puts a file's bytes into parts beside it, in the order in which a shell lists their names, and gives them with their sizes. The whole
/// goes away, and so do parts that an earlier run has left.
fn cut(file: &Path, largest: u64) -> Result<Vec<(PathBuf, u64)>> {
    let part = |number: u64| {
        let mut name = file.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    };
    let mut whole = fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let count = whole.metadata()?.len().div_ceil(largest);
    // Behind 9 comes 10, which a shell lists before 2.
    if count > 9 {
        bail!("{} would be {count} parts, and nine are the most: allow larger ones", file.display());
    }
    for number in 1..=9 {
        let left = part(number);
        if left.exists() {
            fs::remove_file(&left).with_context(|| format!("cannot remove {}", left.display()))?;
        }
    }
    let mut made = Vec::new();
    for number in 1..=count {
        let to = part(number);
        let mut out = fs::File::create(&to).with_context(|| format!("cannot write {}", to.display()))?;
        let bytes = io::copy(&mut whole.by_ref().take(largest), &mut out)
            .with_context(|| format!("cannot write {}", to.display()))?;
        made.push((to, bytes));
    }
    fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    Ok(made)
}

/// Copies a folder, without what Python leaves behind.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().expect("read_dir returns entries with names");
        if path.is_dir() && name != "__pycache__" {
            copy_folder(&path, &to.join(name))?;
        } else if path.is_file() {
            fs::copy(&path, to.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn executable(file: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(file, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", file.display()))?;
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let message = |package: &str, target: &str, kind: &str, executable: Value| {
            serde_json::json!({
                "reason": "compiler-artifact", "manifest_path": format!("/here/{package}/Cargo.toml"),
                "target": {"name": target, "kind": [kind]}, "executable": executable,
            })
            .to_string()
        };
        let messages = [
            message("models", "models", "lib", Value::Null),
            message("models", "models", "lib", "/target/models-1".into()),
            message("kernels", "cuda", "test", "/target/cuda-1".into()),
            message("kernels", "kernels", "lib", "/target/kernels-1".into()),
            message("cli", "neurogrid", "bin", "/target/neurogrid".into()),
            "not JSON".to_owned(),
        ];
        let found = executables(&messages.join("\n"));
        let expected = [
            ("kernels-tests", "/target/cuda-1"),
            ("models-tests", "/target/models-1"),
            ("neurogrid", "/target/neurogrid"),
        ];
        assert_eq!(found.iter().map(|(name, path)| (*name, path.to_str().unwrap())).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_parts_joined_in_the_order_of_their_names_are_the_archive() {
        let folder = env::temp_dir().join(format!("neurogrid-parts-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("pack.tar.xz");
        let bytes: Vec<u8> = (0..=255).cycle().take(2500).collect();
        for (largest, sizes) in [(1000, &[1000, 1000, 500][..]), (2500, &[2500])] {
            fs::write(&file, &bytes).unwrap();
            let parts = cut(&file, largest).unwrap();
            assert_eq!(parts.iter().map(|(_, bytes)| *bytes).collect::<Vec<_>>(), sizes);
            assert!(!file.exists());
            let mut names: Vec<PathBuf> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
            names.sort();
            assert_eq!(names.iter().flat_map(|name| fs::read(name).unwrap()).collect::<Vec<_>>(), bytes, "{largest}");
        }
        fs::write(&file, &bytes).unwrap();
        assert!(cut(&file, 100).is_err(), "more parts than a shell lists in order");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn everything_that_is_packed_is_there() {
        let root = process::repository().unwrap();
        for (from, _) in SOURCES {
            assert!(root.join(from).is_dir(), "{from}");
        }
    }
}
