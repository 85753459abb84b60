//! What comes in: NVIDIA's compiler and libraries as pinned Python wheels. What goes out: the `neurogrid` executable with
//! CUDA, built on a machine without a GPU. It runs nothing on a GPU, and it installs nothing outside `target/cuda`.

pub(crate) mod resources;
mod stand_in;

use crate::{process, python};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Builds the CUDA executable on a machine without a GPU or a CUDA toolkit.
///
/// Downloads the compiler and libraries as Python wheels (650 MB, 1.2 GB unpacked) into target/cuda, makes a stand-in for the
/// driver's library to link against, and runs `cargo build --release --package neurogrid --features cuda`. From nothing the build
/// takes 40 minutes of processor time and 2 GB of disk; run nothing beside it. The executable has 184 MB and lies at target/cuda/neurogrid.
/// It starts only where NVIDIA's driver is installed (580 or newer): for machines without one, build without `--features cuda`.
///
/// One executable runs on the compute capability that it is built for and all newer ones, by default on every card that CUDA 13
/// supports: Turing (75), Ampere (80, 86), Ada (89), Hopper (90), Blackwell (100, 120). Our kernels and Candle's are PTX, which the driver
/// compiles for the card when it loads them, ours in one form for Turing and one for all newer cards; what Candle links statically has
/// PTX beside machine code for both.
///
/// Where a CUDA toolkit is installed none of this is needed: `cargo build --release --package neurogrid --features cuda`
/// finds it by CUDA_HOME or nvcc.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Stop before the build and print the environment that it needs
    #[arg(long)]
    prepare_only: bool,
    /// Only compile our kernels for every architecture, and keep what each takes (registers, spills) in
    /// benches/results/cuda-resources.md; fails when one spills
    #[arg(long)]
    resources: bool,
    /// Only run the tests of what models do on CUDA devices, on a stand-in for compiler, driver and libraries: nothing is downloaded, no card is
    /// needed, kernels run on the CPU
    #[arg(long)]
    test: bool,
    /// Compute capability to compile for: 75 (Turing) to 120 (Blackwell); code for an older one runs on newer cards
    #[arg(long, default_value_t = 75)]
    compute_capability: u32,
    /// Compilers that run at once
    #[arg(long, default_value_t = 2)]
    threads: usize,
}

/// All of CUDA 13.0: driver 580 refuses code made by a newer compiler.
const WHEELS: [&str; 8] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-nvrtc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-curand==10.4.0.35",
    "nvidia-cublas==13.0.2.14",
];

/// Libraries that the linker looks for without a version.
const LIBRARIES: [&str; 5] = ["libcublas", "libcublasLt", "libcurand", "libnvrtc", "libcudart"];

/// Where the wheels put their files.
const HOME: &str = "nvidia/cu13";

pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    if options.test {
        return stand_in::test(root);
    }
    let home = prepare(root)?;
    if options.resources {
        let folder = home.parent().context("the toolkit lies in a folder")?;
        let file = root.join("benches/results/cuda-resources.md");
        return resources::report(root, &home.join("bin/nvcc"), folder, &file);
    }
    let variables = environment(&home, options.compute_capability, options.threads)?;
    if options.prepare_only {
        println!("ready; the build needs:");
        for (name, value) in &variables {
            println!("{name}='{value}'");
        }
        return Ok(true);
    }
    let mut build = process::cargo(root);
    build.args(["build", "--release", "--package", "neurogrid", "--features", "cuda"]).envs(variables);
    if !process::succeeds(&mut build)? {
        return Ok(false);
    }
    // A later build without CUDA takes its place in target/release.
    let (target, kept) = (process::target_folder(root)?, executable(root)?);
    let built = target.join("release").join(format!("neurogrid{}", env::consts::EXE_SUFFIX));
    fs::copy(&built, &kept).with_context(|| format!("cannot copy {}", built.display()))?;
    println!("{} ({} MB)", kept.display(), fs::metadata(&kept)?.len() / 1_000_000);
    Ok(true)
}

/// Where the executable with CUDA is kept. Tests find it there.
pub(crate) fn executable(root: &Path) -> Result<PathBuf> {
    Ok(process::target_folder(root)?.join("cuda").join(format!("neurogrid{}", env::consts::EXE_SUFFIX)))
}

/// The folder of the toolkit, whether it is there or not.
pub(crate) fn home(root: &Path) -> Result<PathBuf> {
    Ok(process::target_folder(root)?.join("cuda/toolkit").join(HOME))
}

/// Unpacks the toolkit where it is not there yet, and gives its folder.
pub(crate) fn prepare(root: &Path) -> Result<PathBuf> {
    if !(cfg!(target_os = "linux") && cfg!(target_arch = "x86_64")) {
        bail!("the pinned wheels are for Linux on x86-64; elsewhere install a CUDA 13.0 toolkit");
    }
    let (folder, home) = (process::target_folder(root)?.join("cuda"), home(root)?);
    unpack_wheels(root, &folder)?;
    link(&home)?;
    compiler(&home.join("bin"))?;
    stand_in_driver(root, &home)?;
    let compiler = process::output(Command::new(home.join("bin/nvcc")).arg("--version"))?;
    println!("{}", process::last_lines(&compiler, 2));
    Ok(home)
}

/// The name of the compiler for Candle's kernels.
const COMPILER: &str = "nvcc-for-candle";

/// Puts a compiler into a folder that makes Candle's kernels run on all newer cards, too: without it the objects that it links statically are
/// machine code for one generation, and its products of quantised weights fail on all others. It calls the nvcc of that folder, or the
/// installed one.
pub(crate) fn compiler(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join(COMPILER);
    fs::write(&file, include_str!("nvcc-for-candle")).with_context(|| format!("cannot write {}", file.display()))?;
    make_executable(&file)?;
    Ok(file)
}

/// Downloads the wheels and unpacks them into `folder/toolkit`, once for each set of versions.
fn unpack_wheels(root: &Path, folder: &Path) -> Result<()> {
    let stamp = folder.join("unpacked.txt");
    let wanted = WHEELS.join("\n");
    if fs::read_to_string(&stamp).is_ok_and(|unpacked| unpacked == wanted) {
        return Ok(());
    }
    let python = python::prepare(&python::folder(root), &[])?.python;
    let wheels = folder.join("wheels");
    fs::create_dir_all(&wheels).with_context(|| format!("cannot make {}", wheels.display()))?;
    let mut download = Command::new(&python);
    download.args([
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
    ]);
    if !process::succeeds(download.arg("--dest").arg(&wheels).args(WHEELS))? {
        bail!(
            "the CUDA wheels could not be downloaded (pip's words are above): check that pip reaches your package index and \
             that it carries {}, or install a CUDA 13.0 toolkit",
            WHEELS[0]
        );
    }
    let toolkit = folder.join("toolkit");
    if toolkit.exists() {
        fs::remove_dir_all(&toolkit).with_context(|| format!("cannot remove {}", toolkit.display()))?;
    }
    const UNPACK: &str =
        "import sys, zipfile\nfor wheel in sys.argv[2:]: zipfile.ZipFile(wheel).extractall(sys.argv[1])";
    let mut unpack = Command::new(&python);
    unpack.args(["-c", UNPACK]).arg(&toolkit);
    for entry in fs::read_dir(&wheels)? {
        let path = entry?.path();
        // A wheel of versions pinned earlier may lie beside those of today.
        if WHEELS.iter().any(|pinned| is_wheel_of(&path, pinned)) {
            unpack.arg(path);
        }
    }
    process::output(&mut unpack)?;
    fs::remove_dir_all(&wheels).with_context(|| format!("cannot remove {}", wheels.display()))?;
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// True for `nvidia_cublas-13.0.2.14-….whl` and `nvidia-cublas==13.0.2.14`.
fn is_wheel_of(path: &Path, pinned: &str) -> bool {
    let start = format!("{}-", pinned.replace('-', "_").replace("==", "-"));
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start))
}

/// Gives the toolkit the shape that an installed one has: programs that may run, `lib64`, libraries without a version.
fn link(home: &Path) -> Result<()> {
    for folder in ["bin", "nvvm/bin"] {
        let folder = home.join(folder);
        for entry in fs::read_dir(&folder).with_context(|| format!("the wheels hold no {}", folder.display()))? {
            make_executable(&entry?.path())?;
        }
    }
    symlink("lib", &home.join("lib64"))?;
    let lib = home.join("lib");
    for library in LIBRARIES {
        let start = format!("{library}.so.");
        let names = fs::read_dir(&lib)?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let versioned = names.filter(|name| name.starts_with(&start)).min();
        let versioned = versioned.with_context(|| format!("the wheels hold no {start}* in {}", lib.display()))?;
        symlink(&versioned, &lib.join(format!("{library}.so")))?;
    }
    Ok(())
}

/// Makes a link, unless it is there.
fn symlink(to: &str, at: &Path) -> Result<()> {
    if at.symlink_metadata().is_ok() {
        return Ok(());
    }
    #[cfg(unix)]
    std::os::unix::fs::symlink(to, at).with_context(|| format!("cannot link {} to {to}", at.display()))?;
    #[cfg(not(unix))]
    bail!("cannot link {} to {to} on this system", at.display());
    #[cfg(unix)]
    Ok(())
}

fn make_executable(file: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        if file.is_file() {
            fs::set_permissions(file, fs::Permissions::from_mode(0o755))
                .with_context(|| format!("cannot make {} executable", file.display()))?;
        }
    }
    #[cfg(not(unix))]
    let _ = file;
    Ok(())
}

/// Makes `lib/stubs/libcuda.so`: the driver's library comes with the driver, so a machine without a GPU has none to link
/// against. The stand-in has the names that cudarc declares and does nothing; it is not there when the program runs.
fn stand_in_driver(root: &Path, home: &Path) -> Result<()> {
    let stubs = home.join("lib/stubs");
    fs::create_dir_all(&stubs).with_context(|| format!("cannot make {}", stubs.display()))?;
    let declarations = cudarc_sources(root)?.join("driver/sys/mod.rs");
    let text = fs::read_to_string(&declarations).with_context(|| format!("cannot read {}", declarations.display()))?;
    let names = functions(&text, "cu");
    if names.is_empty() {
        bail!("{} declares no function; cudarc has changed its shape", declarations.display());
    }
    let source: String = names.iter().map(|name| format!("int {name}(void) {{ return 999; }}\n")).collect();
    let file = stubs.join("libcuda.c");
    fs::write(&file, source).with_context(|| format!("cannot write {}", file.display()))?;
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let mut compile = Command::new(compiler);
    compile.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(stubs.join("libcuda.so")).arg(&file);
    process::must(&mut compile)?;
    println!("a stand-in for the driver's library with {} functions", names.len());
    Ok(())
}

/// The folder in which cudarc declares the functions of NVIDIA's libraries, in the sources that cargo has fetched.
fn cudarc_sources(root: &Path) -> Result<PathBuf> {
    let mut command = process::cargo(root);
    command.args(["metadata", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]);
    command.args(["--manifest-path", "cli/Cargo.toml", "--features", "cuda"]);
    let metadata: serde_json::Value = serde_json::from_str(&process::output(&mut command)?)?;
    let packages = metadata["packages"].as_array().context("`cargo metadata` lists no packages")?;
    let cudarc = packages.iter().find(|package| package["name"] == "cudarc");
    let manifest = cudarc.and_then(|package| package["manifest_path"].as_str());
    let folder = manifest.and_then(|manifest| Path::new(manifest).parent()).context("no dependency brings cudarc")?;
    Ok(folder.join("src"))
}

/// Names of a library's functions: what the source declares as `fn cu…(`, with a capital after what all begin with.
fn functions<'a>(source: &'a str, start: &str) -> BTreeSet<&'a str> {
    let declared =
        source.lines().filter_map(|line| line.split_once("fn ")).filter_map(|(_, rest)| rest.split_once('('));
    let is_one = |name: &&str| {
        name.strip_prefix(start).is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_uppercase()))
            && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
    };
    declared.map(|(name, _)| name).filter(is_one).collect()
}

/// What the build is told.
pub(crate) fn environment(home: &Path, compute_capability: u32, threads: usize) -> Result<Vec<(&'static str, String)>> {
    let shown = |path: PathBuf| path.into_os_string().into_string().ok().context("the path of target/ is not UTF-8");
    let (bin, lib, stubs) = (shown(home.join("bin"))?, shown(home.join("lib"))?, shown(home.join("lib/stubs"))?);
    let path = env::var("PATH").unwrap_or_default();
    let libraries = env::var("LIBRARY_PATH").map(|before| format!(":{before}")).unwrap_or_default();
    Ok(vec![
        ("CUDA_HOME", shown(home.to_owned())?),
        ("NVCC", format!("{bin}/{COMPILER}")),
        ("PATH", format!("{bin}:{path}")),
        ("CUDA_COMPUTE_CAP", compute_capability.to_string()),
        ("CUDAFORGE_THREADS", threads.to_string()),
        // Not RUSTFLAGS: another value would build every dependency anew.
        ("LIBRARY_PATH", format!("{lib}:{stubs}{libraries}")),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_functions_are_read_out_of_the_declarations() {
        let source = "pub unsafe fn cuInit(Flags: u32) -> CUresult {\n            fn cuInit(Flags: u32) -> CUresult;\n\
                      fn cuDeviceGet_v2(device: *mut CUdevice) -> CUresult;\n// fn cuff link (x)\nfn culib() -> Library {\n";
        assert_eq!(functions(source, "cu").into_iter().collect::<Vec<_>>(), ["cuDeviceGet_v2", "cuInit"]);
    }

    #[test]
    fn a_wheel_is_known_by_name_and_version() {
        let wheel = Path::new("wheels/nvidia_cublas-13.0.2.14-py3-none-manylinux_2_27_x86_64.whl");
        assert!(is_wheel_of(wheel, "nvidia-cublas==13.0.2.14"));
        assert!(!is_wheel_of(wheel, "nvidia-cublas==13.0.2.1"));
        assert!(!is_wheel_of(wheel, "nvidia-cuda-nvcc==13.0.88"));
    }

    #[test]
    fn everything_is_of_one_release_of_cuda() {
        for wheel in WHEELS.iter().filter(|wheel| !wheel.contains("curand")) {
            assert!(wheel.contains("==13.0."), "{wheel}");
        }
    }
}
