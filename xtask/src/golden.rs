//! What comes in: the scripts of `models/scripts` and their pinned requirements. What goes out: the golden data and the
//! bundled models that the repository keeps, written again. It changes files under `models/`, for a person to look at.

use crate::{process, python};
use anyhow::{Context as _, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Writes the golden data of the tests again, from the reference implementations.
///
/// Runs every script of models/scripts whose name begins with `make_` or `train_`, in a Python environment of its own
/// (target/golden-venv) from models/scripts/requirements.txt. Tests need none of this: what it writes is kept in the
/// repository. Look at the difference before you commit it: golden data changes only when the reference does.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only the scripts whose names contain this
    filter: Option<String>,
}

/// Names of scripts that write files of the repository begin so.
const WRITERS: [&str; 2] = ["make_", "train_"];

pub(crate) fn run(root: &Path, options: &Options) -> Result<bool> {
    let folder = root.join("models/scripts");
    let scripts = writers(&folder, options.filter.as_deref().unwrap_or_default())?;
    if scripts.is_empty() {
        bail!("no script of {} is named {} and fits the filter", folder.display(), WRITERS.join("… or "));
    }
    let requirements = [
        python::Requirements { file: folder.join("requirements.txt"), with_dependencies: true },
        python::Requirements { file: root.join("e2e/requirements-no-deps.txt"), with_dependencies: false },
    ];
    let environment = python::prepare(&process::target_folder(root)?.join("golden-venv"), &requirements)?;
    if let Some(missing) = environment.missing.first() {
        bail!("{} could not be installed: {}", missing.requirement, missing.why);
    }
    for script in scripts {
        let mut command = Command::new(&environment.python);
        process::must(command.arg(script).current_dir(root).env("PYTHONDONTWRITEBYTECODE", "1"))?;
    }
    println!("look at `git diff --stat models/` before you commit");
    Ok(true)
}

/// The scripts that write files of the repository, sorted by name.
fn writers(folder: &Path, filter: &str) -> Result<Vec<PathBuf>> {
    let mut scripts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".py") && WRITERS.iter().any(|start| name.starts_with(start)) && name.contains(filter) {
            scripts.push(path);
        }
    }
    scripts.sort();
    Ok(scripts)
}
