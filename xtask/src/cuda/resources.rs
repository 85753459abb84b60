//! What comes in: the ops' `cuda.cu`, compiled for every architecture that CUDA 13 and we support. What goes out: each kernel's registers,
//! shared memory and spills, as ptxas reports them, and whether any spills. It runs nothing on a GPU.

use crate::process;
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Turing, Ampere (data centre, players), Ada, Hopper, Blackwell (data centre, players).
pub(crate) const ARCHITECTURES: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

/// What a kernel takes of a multiprocessor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Usage {
    registers: u32,
    stack_bytes: u32,
    spill_bytes: u32,
    shared_bytes: u32,
}

/// Kernel to architecture to what it takes.
type Kernels = BTreeMap<String, BTreeMap<u32, Usage>>;

/// Compiles everything, writes `file`, and says whether nothing spills.
pub(crate) fn report(root: &Path, nvcc: &Path, scratch: &Path, file: &Path) -> Result<bool> {
    let mut kernels = Kernels::new();
    for source in sources(root)? {
        println!("{}", source.strip_prefix(root).unwrap_or(&source).display());
        for architecture in ARCHITECTURES {
            let said = compile(nvcc, &source, architecture, &scratch.join("resources.cubin"))?;
            let found = read(&said);
            if found.is_empty() {
                bail!("ptxas reports no kernel of {}; its words have changed: {said}", source.display());
            }
            for (kernel, usage) in found {
                kernels.entry(kernel).or_default().insert(architecture, usage);
            }
        }
    }
    let version = process::output(Command::new(nvcc).arg("--version"))?;
    let version = version.lines().find(|line| line.contains("release")).unwrap_or_default().trim().to_owned();
    fs::write(file, page(&kernels, &version)).with_context(|| format!("cannot write {}", file.display()))?;
    let spilling = spilling(&kernels);
    for kernel in &spilling {
        println!("{kernel} spills");
    }
    println!("{} kernels, {} architectures, kept in {}", kernels.len(), ARCHITECTURES.len(), file.display());
    Ok(spilling.is_empty())
}

/// Every op's source, in the order of their names.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let folder = root.join("kernels/src");
    let folders = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut sources = folders
        .map(|entry| Ok(entry?.path().join("cuda.cu")))
        .filter(|path| path.as_ref().map_or(true, |path| path.is_file()))
        .collect::<Result<Vec<_>>>()?;
    sources.sort();
    Ok(sources)
}

/// What ptxas says of a source, compiled with the flags of kernels/build.rs.
fn compile(nvcc: &Path, source: &Path, architecture: u32, out: &Path) -> Result<String> {
    let mut command = Command::new(nvcc);
    command.args(["--cubin", "-O3", "--std=c++17", "--resource-usage"]);
    command.arg(format!("--generate-code=arch=compute_{architecture},code=sm_{architecture}"));
    command.arg("-o").arg(out).arg(source);
    let output = command.output().with_context(|| format!("cannot start `{}`", process::line(&command)))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        bail!("`{}` failed: {}", process::line(&command), process::last_lines(&said, 4));
    }
    Ok(said)
}

/// Kernels and what they take, out of ptxas' words.
fn read(said: &str) -> Vec<(String, Usage)> {
    let mut found: Vec<(String, Usage)> = Vec::new();
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            found.push((rest.split('\'').next().unwrap_or_default().to_owned(), Usage::default()));
        }
        let Some((_, usage)) = found.last_mut() else { continue };
        let before = |words: &str| number_before(line, words);
        if let Some(bytes) = before(" bytes stack frame") {
            usage.stack_bytes = bytes;
            usage.spill_bytes = before(" bytes spill stores").unwrap_or(0) + before(" bytes spill loads").unwrap_or(0);
        }
        if let Some(registers) = before(" registers") {
            usage.registers = registers;
            usage.shared_bytes = before(" bytes smem").unwrap_or(0);
        }
    }
    found
}

/// The number that stands right before these words.
fn number_before(line: &str, words: &str) -> Option<u32> {
    let (before, _) = line.split_once(words)?;
    before.rsplit(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

fn spilling(kernels: &Kernels) -> Vec<String> {
    let spills = |(architecture, usage): (&u32, &Usage)| {
        (usage.spill_bytes > 0).then(|| format!("{architecture} ({} bytes)", usage.spill_bytes))
    };
    let of_kernel = |(kernel, on): (&String, &BTreeMap<u32, Usage>)| {
        let where_: Vec<String> = on.iter().filter_map(spills).collect();
        (!where_.is_empty()).then(|| format!("{kernel} on {}", where_.join(", ")))
    };
    kernels.iter().filter_map(of_kernel).collect()
}

/// The page that is kept.
fn page(kernels: &Kernels, version: &str) -> String {
    let mut page = format!(
        "# What the CUDA kernels take\n\n`cargo xtask cuda --resources`, {version}. Registers a thread by compute capability; in brackets, where \
         there are any: bytes of stack (s), of spills (sp). Shared memory in bytes a block, the largest of all architectures.\n\n| kernel |"
    );
    for architecture in ARCHITECTURES {
        page += &format!(" {}.{} |", architecture / 10, architecture % 10);
    }
    page += &format!(" shared |\n|---|{}\n", "--:|".repeat(ARCHITECTURES.len() + 1));
    for (kernel, on) in kernels {
        page += &format!("| `{kernel}` |");
        for architecture in ARCHITECTURES {
            page += &on.get(&architecture).map_or_else(|| " |".to_owned(), |usage| format!(" {} |", cell(usage)));
        }
        page += &format!(" {} |\n", on.values().map(|usage| usage.shared_bytes).max().unwrap_or(0));
    }
    let spilling = spilling(kernels);
    page += "\n";
    page += &match spilling.as_slice() {
        [] => "No kernel spills.\n".to_owned(),
        some => format!("Spilling: {}.\n", some.join("; ")),
    };
    page
}

fn cell(usage: &Usage) -> String {
    let mut notes = Vec::new();
    if usage.stack_bytes > 0 {
        notes.push(format!("{} s", usage.stack_bytes));
    }
    if usage.spill_bytes > 0 {
        notes.push(format!("{} sp", usage.spill_bytes));
    }
    if notes.is_empty() { usage.registers.to_string() } else { format!("{} ({})", usage.registers, notes.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'gelu_f32' for 'sm_75'
ptxas info    : Function properties for gelu_f32
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 22 registers, used 0 barriers, 404 bytes cmem[0]
ptxas info    : Compiling entry function 'attention_f32_256' for 'sm_75'
ptxas info    : Function properties for attention_f32_256
    64 bytes stack frame, 40 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 64 bytes cumulative stack size, 33792 bytes smem, 436 bytes cmem[0]
";

    #[test]
    fn ptxas_words_are_read() {
        let usage = |registers, stack_bytes, spill_bytes, shared_bytes| Usage {
            registers,
            stack_bytes,
            spill_bytes,
            shared_bytes,
        };
        let expected =
            [("gelu_f32".to_owned(), usage(22, 0, 0, 0)), ("attention_f32_256".to_owned(), usage(255, 64, 64, 33_792))];
        assert_eq!(read(SAID), expected);
        assert_eq!(read("ptxas info : nothing here"), []);
    }

    #[test]
    fn a_kernel_that_spills_is_named_with_its_architecture() {
        let kernels: Kernels = read(SAID).into_iter().map(|(kernel, usage)| (kernel, [(75, usage)].into())).collect();
        assert_eq!(spilling(&kernels), ["attention_f32_256 on 75 (64 bytes)"]);
        let page = page(&kernels, "release 13.0");
        assert!(page.contains("| `gelu_f32` | 22 | | | | | | | 0 |"), "{page}");
        assert!(page.contains("| `attention_f32_256` | 255 (64 s, 64 sp) |"), "{page}");
    }
}
