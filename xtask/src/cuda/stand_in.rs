//! Runs the tests of what models do on CUDA devices where there is neither a card nor a toolkit: a stand-in for driver and libraries that computes
//! on the CPU is built and linked against, tests go out. Never a word about speed, and never an executable that is of use.

use super::{cudarc_sources, functions, make_executable, symlink};
use crate::process;
use anyhow::{Context as _, Result};
use std::{env, fs, path::Path, process::Command};

/// The libraries that programs with CUDA are linked with, which are all one here.
const LIBRARIES: [&str; 6] = ["cuda", "cudart", "cublas", "cublasLt", "curand", "nvrtc"];

/// Where cudarc declares the functions of each, and how their names begin.
const DECLARED: [(&str, &str); 5] =
    [("driver", "cu"), ("cublas", "cublas"), ("cublaslt", "cublasLt"), ("curand", "curand"), ("nvrtc", "nvrtc")];

pub(crate) fn test(root: &Path) -> Result<bool> {
    let home = process::target_folder(root)?.join("cuda/stand-in");
    let (bin, lib) = (home.join("bin"), home.join("lib"));
    for folder in [&bin, &lib] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let compiler = bin.join("nvcc");
    fs::write(&compiler, include_str!("nvcc-for-nothing"))
        .with_context(|| format!("cannot write {}", compiler.display()))?;
    make_executable(&compiler)?;
    library(root, &lib)?;
    let before = |name: &str| env::var(name).map(|before| format!(":{before}")).unwrap_or_default();
    let mut test = process::cargo(root);
    // A target of its own: what is compiled by a stand-in must not be taken for the real.
    test.env("CARGO_TARGET_DIR", home.join("target")).env("CUDA_HOME", &home).env("NVCC", &compiler);
    test.env("CUDA_COMPUTE_CAP", "75").env("PATH", format!("{}{}", bin.display(), before("PATH")));
    for name in ["LIBRARY_PATH", "LD_LIBRARY_PATH"] {
        test.env(name, format!("{}{}", lib.display(), before(name)));
    }
    test.args(["test", "--package", "models", "--features", "cuda", "--"]);
    // On one thread, for the stand-in is one card; without what runs on the CPU.
    test.args(["--test-threads=1", "cuda", "candle::", "decoders::", "--skip", "on_candle", "--skip", "on_kernels"]);
    process::succeeds(&mut test)
}

/// Builds the stand-in.
fn library(root: &Path, lib: &Path) -> Result<()> {
    let sources = cudarc_sources(root)?;
    let mut stubs = String::from("#include <stdio.h>\n");
    for (of, start) in DECLARED {
        let file = sources.join(of).join("sys/mod.rs");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        for name in functions(&text, start) {
            stubs += &format!(
                "__attribute__((weak)) int {name}(void) {{ fprintf(stderr, \"stand-in for CUDA: no {name}\\n\"); return 999; }}\n"
            );
        }
    }
    let (c, object, built) = (lib.join("stubs.c"), lib.join("stubs.o"), lib.join("libstand-in.so"));
    fs::write(&c, stubs).with_context(|| format!("cannot write {}", c.display()))?;
    let named = |variable: &str, default: &str| Command::new(env::var(variable).unwrap_or_else(|_| default.into()));
    process::must(named("CC", "cc").args(["-w", "-c", "-fPIC", "-o"]).arg(&object).arg(&c))?;
    let tests = root.join("kernels/tests/cuda");
    let mut compile = named("CXX", "c++");
    compile.args(["-std=c++20", "-O2", "-fno-strict-aliasing", "-ffp-contract=off", "-w", "-fPIC", "-shared", "-I"]);
    compile.arg(&tests).arg("-Wl,-soname,libstand-in.so").arg("-o").arg(&built);
    process::must(compile.arg(tests.join("driver/driver.cpp")).arg(&object))?;
    for name in LIBRARIES {
        symlink("libstand-in.so", &lib.join(format!("lib{name}.so")))?;
    }
    Ok(())
}
