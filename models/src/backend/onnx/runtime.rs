//! The one ONNX runtime of this process: ONNX Runtime's library where one is found and works, else tract. Chosen at
//! the first call and never again, for neither can be unloaded.

use super::search::{Candidate, Places, version_of};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Which runtime executes graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Microsoft's library, found at run time.
    OnnxRuntime,
    /// tract, compiled in. About half as fast, and it lacks some operators.
    Tract,
}

impl Kind {
    /// As it stands in `Info::backend`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::OnnxRuntime => "onnxruntime",
            Kind::Tract => "tract",
        }
    }
}

/// What was chosen and why.
#[derive(Debug)]
pub struct Runtime {
    /// Which one.
    pub kind: Kind,
    /// The library's file, for ONNX Runtime.
    pub library: Option<PathBuf>,
    /// Its version; `unknown` where neither the file's name nor a package says it.
    pub version: String,
    /// Every place that was looked at, with what led there and what was found.
    pub searched: Vec<String>,
    /// Why it is not ONNX Runtime, and what to do about it.
    pub why_not: Option<String>,
    pub(super) environment: ort::environment::Environment,
}

impl Runtime {
    /// `onnxruntime 1.31.1 (/path/to/libonnxruntime.so.1.31.1)`.
    pub fn describe(&self) -> String {
        match &self.library {
            Some(library) => format!("{} {} ({})", self.kind.name(), self.version, library.display()),
            None => format!("{} {}", self.kind.name(), self.version),
        }
    }
}

/// The version of tract's binding, as `ort_tract` has no constant for it.
const TRACT_VERSION: &str = "0.23";

/// The runtime of this process. The first call decides: a library given later changes nothing.
///
/// The library is looked for in this order: `option`; the variable `ORT_DYLIB_PATH`; the package `onnxruntime` in the
/// active Python environment, in that of the `python3` on the path and in the usual places; folders of system
/// libraries. If `option` or the variable names one that does not work, nothing else replaces it: tract runs, and
/// [`Runtime::why_not`] says so.
pub fn runtime(option: Option<&Path>) -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = choose(&Places::of_process(option));
        match &runtime.why_not {
            None => tracing::info!(runtime = %runtime.describe(), "ONNX graphs run on ONNX Runtime"),
            Some(why) => tracing::warn!(%why, "ONNX graphs run on tract, which is slower"),
        }
        runtime
    })
}

fn choose(places: &Places) -> Runtime {
    let mut searched = Vec::new();
    let mut failures = Vec::new();
    for Candidate { path, why, is_file, is_asked } in places.candidates() {
        let shown = format!("{} ({why})", path.display());
        if !is_file {
            searched.push(format!("{shown}: no library"));
            if is_asked {
                failures.push(format!("{shown}: there is no such library"));
            }
            continue;
        }
        let made = ort::init_from(&path).map_err(|e| e.to_string());
        // Whose machine this is has not agreed to reports to the library's maker.
        match made.and_then(|b| b.with_telemetry(false).build().map_err(|e| e.to_string())) {
            Ok(environment) => {
                searched.push(format!("{shown}: loaded"));
                // The library logs every step of optimisation otherwise, and formatting that takes time.
                environment.set_log_level(ort::logging::LogLevel::Warning);
                let version = version_of(&path).unwrap_or_else(|| "unknown".into());
                return Runtime {
                    kind: Kind::OnnxRuntime,
                    library: Some(path),
                    version,
                    searched,
                    why_not: None,
                    environment,
                };
            }
            Err(error) => {
                searched.push(format!("{shown}: {error}"));
                failures.push(format!("{shown}: {error}"));
            }
        }
    }
    let why_not = if failures.is_empty() {
        "no ONNX Runtime library was found; `pip install onnxruntime` puts one where it is looked for".to_string()
    } else {
        format!("ONNX Runtime could not be used: {}; install version 1.24 or newer", failures.join("; "))
    };
    ort::set_api(ort_tract::api());
    let environment = ort::init().with_telemetry(false).build();
    Runtime {
        kind: Kind::Tract,
        library: None,
        version: TRACT_VERSION.into(),
        searched,
        why_not: Some(why_not),
        environment: environment.expect("tract is compiled in and its environment holds nothing that can fail"),
    }
}
