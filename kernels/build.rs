//! With the feature `cuda`: every `src/<op>/cuda.cu` comes in, `$OUT_DIR/<op>.rs` goes out, an expression with its PTX for each
//! architecture that it is compiled for, and `$OUT_DIR/compute_capability.rs` with the oldest of them. Without it, nothing happens.
//! Never a download, never a search through the disk: nvcc is on `PATH`, or under `CUDA_HOME` or `CUDA_PATH`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest architecture that CUDA 13 compiles for (Turing). The driver compiles PTX for newer ones when it loads it.
const COMPUTE_CAP_DEFAULT: &str = "75";

/// From here on products in bf16 run on tensor cores, and those in f16 in larger pieces: an own PTX for these cards, where an older one is
/// compiled for.
const COMPUTE_CAP_BF16: u32 = 80;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    for variable in ["CUDA_HOME", "CUDA_PATH", "CUDA_COMPUTE_CAP", "PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(why) = compile_all() {
        println!("cargo::error={why}");
    }
}

fn compile_all() -> Result<(), String> {
    let nvcc = find_nvcc()?;
    let cap = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| COMPUTE_CAP_DEFAULT.to_owned());
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; build with cargo")?);
    let [major @ .., minor] = cap.as_bytes() else {
        return Err("CUDA_COMPUTE_CAP is empty; set it to 75, 80, …".into());
    };
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<u32>().ok();
    let (Some(major), Some(minor)) = (number(major), number(&[*minor])) else {
        return Err(format!("CUDA_COMPUTE_CAP is {cap:?}, which is no architecture; set it to 75, 80, …"));
    };
    let oldest = 10 * major + minor;
    let mut architectures = vec![oldest];
    architectures.extend((oldest < COMPUTE_CAP_BF16).then_some(COMPUTE_CAP_BF16));
    write(&out.join("compute_capability.rs"), &format!("({major}, {minor})\n"))?;
    println!("cargo::rerun-if-changed=src");
    let folders = std::fs::read_dir("src").map_err(|why| format!("kernels/src: {why}"))?;
    for folder in folders {
        let folder = folder.map_err(|why| format!("kernels/src: {why}"))?;
        let source = folder.path().join("cuda.cu");
        if source.exists() {
            let mut list = String::new();
            for architecture in &architectures {
                let ptx = out.join(folder.file_name()).with_extension(format!("{architecture}.ptx"));
                compile(&nvcc, &source, &ptx, *architecture)?;
                let (major, minor) = (architecture / 10, architecture % 10);
                list += &format!("Ptx {{ compute_capability: ({major}, {minor}), text: include_str!({ptx:?}) }},\n");
            }
            write(&out.join(folder.file_name()).with_extension("rs"), &format!("&[\n{list}]\n"))?;
        }
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    std::fs::write(file, text).map_err(|why| format!("{}: {why}", file.display()))
}

fn find_nvcc() -> Result<PathBuf, String> {
    let roots =
        ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os).map(|root| PathBuf::from(root).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let name = format!("nvcc{}", env::consts::EXE_SUFFIX);
    roots.chain(env::split_paths(&path)).map(|folder| folder.join(&name)).find(|nvcc| nvcc.is_file()).ok_or_else(|| {
        "the feature `cuda` needs nvcc, which is neither on PATH nor in bin under CUDA_HOME or CUDA_PATH; install the CUDA \
         toolkit (12 or 13) and set CUDA_HOME to it, or build without the feature"
            .to_owned()
    })
}

fn compile(nvcc: &Path, source: &Path, ptx: &Path, architecture: u32) -> Result<(), String> {
    let output = Command::new(nvcc)
        .args(["--ptx", "-O3", "--std=c++17", &format!("--gpu-architecture=compute_{architecture}"), "-o"])
        .arg(ptx)
        .arg(source)
        .output()
        .map_err(|why| format!("{} does not start: {why}", nvcc.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // One line, as cargo's directives are.
    Err(format!("{} refused {}: {}", nvcc.display(), source.display(), said.trim().replace('\n', " | ")))
}
