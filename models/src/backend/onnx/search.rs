//! An option and the environment go in; paths where an ONNX Runtime library may lie come out, best first. It looks
//! at folders only: nothing is loaded and no Python is run.

use std::path::{Path, PathBuf};

/// Where to look. Made from the process's environment by [`Places::of_process`], by hand in tests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    /// What the caller or a setting said; if given, nothing else is tried.
    pub option: Option<PathBuf>,
    /// `ORT_DYLIB_PATH`; if given, nothing after it is tried.
    pub variable: Option<PathBuf>,
    /// Roots of Python environments, e.g. of an activated one: folders that have `lib/python3.11/site-packages`.
    pub python_roots: Vec<PathBuf>,
    /// Folders of the system that hold libraries.
    pub library_folders: Vec<PathBuf>,
}

/// A place that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// A file, or the folder in which there was none.
    pub path: PathBuf,
    /// What led there, for people.
    pub why: &'static str,
    /// Whether it is a file that can be tried.
    pub is_file: bool,
    /// Whether somebody asked for exactly this: then nothing else replaces it.
    pub is_asked: bool,
}

/// Folders where systems keep libraries.
const LIBRARY_FOLDERS: &[&str] = &[
    "/usr/local/lib",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/opt/onnxruntime/lib",
    "/opt/homebrew/lib",
];

impl Places {
    /// The places of this process.
    pub fn of_process(option: Option<&Path>) -> Self {
        let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let mut python_roots: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect();
        let path = std::env::var_os("PATH").unwrap_or_default();
        for folder in std::env::split_paths(&path) {
            let python = folder.join(if cfg!(windows) { "python.exe" } else { "python3" });
            if python.is_file() {
                // The environment of this python, and the installation that it is a link to.
                python_roots.extend(folder.parent().map(Path::to_path_buf));
                let real = python.canonicalize().ok();
                python_roots.extend(real.and_then(|p| Some(p.parent()?.parent()?.to_path_buf())));
                break;
            }
        }
        python_roots.extend(variable("HOME").map(|home| home.join(".local")));
        python_roots.extend(["/usr/local", "/usr"].map(PathBuf::from));
        Self {
            option: option.map(Path::to_path_buf),
            variable: variable("ORT_DYLIB_PATH"),
            python_roots,
            library_folders: LIBRARY_FOLDERS.iter().map(PathBuf::from).collect(),
        }
    }

    /// Every candidate in the order in which it is to be tried.
    pub fn candidates(&self) -> Vec<Candidate> {
        let asked = [(&self.option, "the setting"), (&self.variable, "ORT_DYLIB_PATH")];
        if let Some((path, why)) = asked.into_iter().find_map(|(path, why)| Some((path.as_ref()?, why))) {
            let found = if path.is_dir() { library_in(path) } else { None };
            let path = found.unwrap_or_else(|| path.clone());
            return vec![Candidate { is_file: path.is_file(), path, why, is_asked: true }];
        }
        let mut candidates = Vec::new();
        let mut look = |folder: PathBuf, why| {
            let found = library_in(&folder);
            let is_file = found.is_some();
            let path = found.unwrap_or(folder);
            if !candidates.iter().any(|c: &Candidate| c.path == path) {
                candidates.push(Candidate { path, why, is_file, is_asked: false });
            }
        };
        for root in &self.python_roots {
            for packages in package_folders(root) {
                look(packages.join("onnxruntime").join("capi"), "an installed Python package");
            }
        }
        for folder in &self.library_folders {
            look(folder.clone(), "a folder of system libraries");
        }
        candidates
    }
}

/// Where a Python root keeps its packages.
fn package_folders(root: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for lib in ["lib", "lib64"] {
        let Ok(entries) = std::fs::read_dir(root.join(lib)) else { continue };
        let pythons = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("python3"));
        let mut pythons: Vec<PathBuf> = pythons.map(|entry| entry.path()).collect();
        pythons.sort();
        for python in pythons.iter().rev() {
            folders.extend([python.join("site-packages"), python.join("dist-packages")]);
        }
    }
    folders.push(root.join("Lib").join("site-packages"));
    folders.retain(|folder| folder.is_dir());
    folders
}

/// The library in a folder: the one with the most exact version, as the unversioned name is a link where it exists.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let is_library = |name: &str| {
        name.starts_with("libonnxruntime.so")
            || (name.starts_with("libonnxruntime") && name.ends_with(".dylib") && !name.contains("providers"))
            || name == "onnxruntime.dll"
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let name = names.filter(|name| is_library(name)).max_by_key(|name| (name.len(), name.clone()))?;
    Some(folder.join(name))
}

/// The version that stands in a library's file name (`libonnxruntime.so.1.31.1`), or in the name of the metadata
/// folder of the Python package around it.
pub fn version_of(library: &Path) -> Option<String> {
    let real = library.canonicalize().unwrap_or_else(|_| library.to_path_buf());
    let name = real.file_name()?.to_string_lossy().into_owned();
    let name = name.strip_suffix(".dylib").unwrap_or(&name);
    let tail = name.strip_prefix("libonnxruntime.so.").or_else(|| name.strip_prefix("libonnxruntime."));
    let is_version = |text: &str| text.split('.').count() >= 3 && text.starts_with(|c: char| c.is_ascii_digit());
    if let Some(version) = tail.filter(|tail| is_version(tail)) {
        return Some(version.to_string());
    }
    let packages = real.parent()?.parent()?.parent()?;
    let names = std::fs::read_dir(packages).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let of = |name: String| {
        let stem = name.strip_suffix(".dist-info")?;
        let (package, version) = stem.rsplit_once('-')?;
        package.starts_with("onnxruntime").then(|| version.to_string())
    };
    names.filter_map(of).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CAPI: &str = "lib/python3.11/site-packages/onnxruntime/capi";

    fn root(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"not a library").unwrap();
        }
        root
    }

    /// Paths of the candidates that are files, relative to the root.
    fn check(root: &Path, places: Places, want: &[&str]) {
        let found = places.candidates();
        let files = found.iter().filter(|c| c.is_file).map(|c| c.path.strip_prefix(root).unwrap().to_str().unwrap());
        assert_eq!(files.collect::<Vec<_>>(), want, "{found:?}");
    }

    #[test]
    fn a_python_package_comes_before_the_system() {
        let root = root(&[
            "venv/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime.so.1.31.1",
            "venv/lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime_providers_shared.so",
            "sys/libonnxruntime.so",
            "sys/libonnxruntime.so.1.30.0",
            "empty/libother.so",
        ]);
        let at = |path: &str| root.path().join(path);
        let places = Places {
            python_roots: vec![at("venv"), at("venv"), at("missing")],
            library_folders: vec![at("empty"), at("sys")],
            ..Places::default()
        };
        let package = format!("venv/{CAPI}/libonnxruntime.so.1.31.1");
        check(root.path(), places.clone(), &[&package, "sys/libonnxruntime.so.1.30.0"]);
        let looked = places.candidates();
        assert!(
            looked.iter().any(|c| c.path == at("empty") && !c.is_file),
            "shows where it looked in vain: {looked:?}"
        );
    }

    #[test]
    fn what_was_asked_for_is_not_replaced() {
        let root = root(&["a/libonnxruntime.so.1.31.1", "b/libonnxruntime.so", "sys/libonnxruntime.so"]);
        let at = |path: &str| root.path().join(path);
        let system = Places { library_folders: vec![at("sys")], ..Places::default() };
        let variable = Places { variable: Some(at("b/libonnxruntime.so")), ..system.clone() };
        check(root.path(), variable.clone(), &["b/libonnxruntime.so"]);
        let option = Places { option: Some(at("a")), ..variable };
        check(root.path(), option, &["a/libonnxruntime.so.1.31.1"]);
        check(root.path(), Places { option: Some(at("nowhere.so")), ..system }, &[]);
    }

    #[test]
    fn versions_are_read_from_names() {
        let root = root(&["x/libonnxruntime.so.1.31.1", "p/onnxruntime/capi/onnxruntime.dll", "q/libonnxruntime.so"]);
        std::fs::create_dir_all(root.path().join("p/onnxruntime_gpu-1.30.2.dist-info")).unwrap();
        let version = |path: &str| version_of(&root.path().join(path));
        assert_eq!(version("x/libonnxruntime.so.1.31.1").as_deref(), Some("1.31.1"));
        assert_eq!(version("p/onnxruntime/capi/onnxruntime.dll").as_deref(), Some("1.30.2"));
        assert_eq!(version("q/libonnxruntime.so"), None);
    }
}
