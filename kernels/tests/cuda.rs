//! The ops' CUDA sources against their oracles, without a GPU: a C++ compiler builds them with a header that runs a grid's
//! threads on the CPU (`cuda/cuda_fp16.h`). What this cannot show, a GPU's own arithmetic and speed, the GPU test script does.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test panics to fail, and says what it skips")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use half::f16;
use kernels::testing::{Fill, Tolerance, compare, normal};
use kernels::{gelu, layer_norm, mean_pool};

const EPS: f32 = 1e-5;

/// The harness, built once, or `None`, said aloud, where there is no compiler that can.
fn harness() -> Option<&'static Path> {
    static HARNESS: OnceLock<Option<PathBuf>> = OnceLock::new();
    HARNESS
        .get_or_init(|| {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda");
            let source = folder.join("harness.cpp");
            // Each test may run in a process of its own; a file that is renamed is whole at every moment.
            let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let (program, fresh) =
                (target.join("cuda-on-the-cpu"), target.join(format!("cuda-{}", std::process::id())));
            let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
            let built = Command::new(&compiler)
                .args(["-std=c++20", "-O1", "-pthread", "-I"])
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
                    eprintln!("skipped: CUDA sources on the CPU: {compiler:?} has no std::barrier or no _Float16");
                    None
                }
                Err(why) => {
                    eprintln!(
                        "skipped: CUDA sources on the CPU: no C++ compiler {compiler:?} ({why}); install one or set CXX"
                    );
                    None
                }
            }
        })
        .as_deref()
}

/// Whether the compiler refuses even a program that does nothing with what the harness needs.
fn lacks_what_we_need(compiler: &std::ffi::OsStr) -> bool {
    let mut child = Command::new(compiler)
        .args(["-std=c++20", "-x", "c++", "-fsyntax-only", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it has just run");
    let program = b"#include <barrier>\nint main() { std::barrier<> b(1); return (int)(_Float16)0; }\n";
    child.stdin.take().unwrap().write_all(program).unwrap();
    !child.wait().unwrap().success()
}

/// Runs a function of a CUDA source, or gives `None` where nothing can build it.
fn run(function: &str, numbers: &[usize], arrays: &[&[f32]]) -> Option<Vec<f32>> {
    let mut child = Command::new(harness()?)
        .arg(function)
        .arg(EPS.to_string())
        .args(numbers.iter().map(usize::to_string))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes: Vec<u8> = arrays.iter().flat_map(|array| array.iter().flat_map(|x| x.to_le_bytes())).collect();
    // The harness reads all before it writes.
    child.stdin.take().unwrap().write_all(&bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{function} {numbers:?}: {}", output.status);
    Some(output.stdout.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect())
}

type Rounding = fn(f32) -> f32;

/// The types that the sources are written for: a name's ending, how the type rounds, how far off it may be.
const TYPES: &[(&str, Rounding, Tolerance)] =
    &[("f32", |x| x, Tolerance::F32), ("f16", |x| f16::from_f32(x).to_f32(), Tolerance::F16)];

const FILLS: &[Fill] = &[Fill::Normal, Fill::Offset, Fill::Constant, Fill::Nan, Fill::Infinite];

/// Tries a function for each type on each kind of data. `call` gets the function's ending, what rounds to its type, and the data.
fn on_every_type_and_fill(
    op: &str,
    n: usize,
    call: impl Fn(&str, &[f32], &dyn Fn(Vec<f32>) -> Vec<f32>) -> Option<(Vec<f32>, Vec<f32>)>,
) {
    for (ending, rounded, tolerance) in TYPES {
        let round = |values: Vec<f32>| values.into_iter().map(rounded).collect::<Vec<f32>>();
        for fill in FILLS {
            let x = round(fill.numbers(1, n));
            let Some((found, expected)) = call(&format!("{op}_{ending}"), &x, &round) else { return };
            // Results of the type's own range, rounded once more.
            let compared = compare(&found, &expected, *tolerance);
            assert!(compared.is_ok(), "{op}_{ending}, {n} elements, {fill:?}: {compared:?}");
        }
    }
}

#[test]
fn layer_norm_agrees_with_the_oracle() {
    for (rows, dim, fused) in [(1, 1, false), (5, 31, true), (4, 33, false), (6, 385, true), (3, 385, false)] {
        on_every_type_and_fill("layer_norm", rows * dim, |function, x, round| {
            let residual = round(normal(2, rows * dim));
            let residual = fused.then_some(residual.as_slice());
            // The sum is rounded to the type; the oracle knows f32 only, so it gets the rounded sum.
            let sum = round(x.iter().enumerate().map(|(i, x)| x + residual.map_or(0.0, |r| r[i])).collect());
            let weight = round(normal(3, dim).iter().map(|w| 1.0 + 0.1 * w).collect());
            let bias = round(normal(4, dim));
            let arrays = [x, residual.unwrap_or(&[]), &weight, &bias];
            let found = run(function, &[rows, dim, usize::from(fused)], &arrays)?;
            let mut expected = vec![0.0; rows * dim];
            let params = layer_norm::Params { weight: &weight, bias: &bias, eps: EPS };
            layer_norm::cpu::layer_norm(&sum, None, &params, &mut expected).unwrap();
            Some((found, expected))
        });
    }
}

#[test]
fn gelu_agrees_with_the_oracle() {
    for (rows, dim, fused) in [(1, 1, false), (5, 31, true), (3, 257, true), (3, 300, false)] {
        on_every_type_and_fill("gelu", rows * dim, |function, x, round| {
            let bias = round(normal(3, dim));
            let sum = x.iter().enumerate().map(|(i, x)| x + if fused { bias[i % dim] } else { 0.0 });
            let mut expected = round(sum.collect());
            let bias = if fused { bias.as_slice() } else { &[] };
            let found = run(function, &[rows, dim, usize::from(fused)], &[x, bias])?;
            gelu::cpu::gelu(&mut expected, None).unwrap();
            Some((found, expected))
        });
    }
}

#[test]
fn mean_pool_agrees_with_the_oracle() {
    for (cu_seqlens, dim, norm) in [
        (&[0, 1][..], 1, mean_pool::Norm::L2),
        (&[0, 1, 8, 40], 33, mean_pool::Norm::None),
        (&[0, 9, 10], 300, mean_pool::Norm::L2),
    ] {
        let tokens = cu_seqlens[cu_seqlens.len() - 1] as usize;
        on_every_type_and_fill("mean_pool", tokens * dim, |function, x, _| {
            let mut numbers = vec![dim, usize::from(norm == mean_pool::Norm::L2)];
            numbers.extend(cu_seqlens.iter().map(|at| *at as usize));
            let found = run(function, &numbers, &[x])?;
            let mut expected = vec![0.0; (cu_seqlens.len() - 1) * dim];
            mean_pool::cpu::mean_pool(x, &mean_pool::Params { cu_seqlens, dim, norm }, &mut expected).unwrap();
            Some((found, expected))
        });
    }
}
