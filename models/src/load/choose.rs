//! A manifest, the asked backend and whether ONNX Runtime is there go in; the backend to use and the reason in words
//! come out. It decides only: nothing is loaded here.

use super::{Backend, Error, is_known_architecture, takes_tokens};
use crate::manifest::Manifest;

/// A backend that can run the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chosen {
    /// Candle on its safetensors.
    Candle,
    /// The ONNX graph.
    Onnx,
}

/// Chooses by the rules of [the module above](super). `runtime_found` is asked only when it decides.
pub(super) fn choose(
    manifest: &Manifest,
    asked: Backend,
    runtime_found: &dyn Fn() -> bool,
) -> Result<(Chosen, String), Error> {
    let refuse = |why: String| Err(Error::NoBackend { model: manifest.id(), asked, why });
    let known = is_known_architecture(&manifest.architecture);
    let candle = cfg!(feature = "candle") && manifest.has_safetensors() && known;
    let onnx = cfg!(feature = "onnx") && manifest.has_onnx();
    let decide = |chosen, why: &str| Ok((chosen, why.to_string()));
    match asked {
        Backend::Candle if candle => decide(Chosen::Candle, "Candle was asked for"),
        Backend::Onnx if onnx => decide(Chosen::Onnx, "ONNX was asked for"),
        Backend::Candle if !cfg!(feature = "candle") => refuse("this build has no Candle".into()),
        Backend::Onnx if !cfg!(feature = "onnx") => refuse("this build has no ONNX".into()),
        Backend::Candle if !manifest.has_safetensors() => {
            refuse("it has no safetensors weights; use backend onnx".into())
        }
        Backend::Candle => refuse(format!(
            "architecture {:?} is not one that Candle has here; use backend onnx with an ONNX export",
            manifest.architecture
        )),
        Backend::Onnx => refuse("it has no ONNX graph; export one or use backend candle".into()),
        Backend::Fake => refuse("the fake is not loaded from files".into()),
        Backend::Auto => match (candle, onnx, takes_tokens(manifest)) {
            (true, true, true) if runtime_found() => {
                decide(Chosen::Onnx, "ONNX Runtime was found, which is the faster for encoders")
            }
            (true, true, true) => decide(Chosen::Candle, "no ONNX Runtime was found, Candle is the faster of the rest"),
            (_, true, false) => decide(Chosen::Onnx, "a model that takes tensors runs its ONNX graph"),
            (true, false, _) => decide(Chosen::Candle, "it has safetensors only"),
            (false, true, true) => decide(Chosen::Onnx, "only its ONNX graph can be run"),
            (false, false, _) => refuse(format!(
                "its architecture {:?} is not one that this build has, and there is no ONNX graph that it could run",
                manifest.architecture
            )),
        },
    }
}

#[cfg(test)]
#[cfg(all(feature = "candle", feature = "onnx"))]
mod tests {
    use super::*;
    use crate::manifest::{File, Task};

    fn check(files: &[&str], architecture: &str, asked: Backend, found: bool, want: Option<Chosen>) {
        let file = |path: &&str| File { path: (*path).into(), sha256: "0".repeat(64), bytes: 1 };
        let mut manifest = crate::backend::fake::manifest("m");
        manifest.files = files.iter().map(file).collect();
        manifest.architecture = architecture.into();
        manifest.task = if files.contains(&"tokenizer.json") { Task::Embed } else { Task::Classify };
        let chosen = choose(&manifest, asked, &|| found).map(|(chosen, _)| chosen).ok();
        assert_eq!(chosen, want, "{files:?} {architecture} {asked} {found}");
    }

    #[test]
    fn the_faster_backend_that_can_is_chosen() {
        let both = ["tokenizer.json", "m.safetensors", "m.onnx"];
        check(&both, "bert", Backend::Auto, true, Some(Chosen::Onnx));
        check(&both, "bert", Backend::Auto, false, Some(Chosen::Candle));
        check(&both, "onnx", Backend::Auto, false, Some(Chosen::Onnx));
        check(&both[..2], "bert", Backend::Auto, true, Some(Chosen::Candle));
        check(&both[..2], "other", Backend::Auto, true, None);
        check(&["m.onnx", "m.safetensors"], "mlp", Backend::Auto, false, Some(Chosen::Onnx));
        check(&["m.safetensors"], "mlp", Backend::Auto, false, Some(Chosen::Candle));
    }

    #[test]
    fn an_asked_backend_is_used_or_refused_never_replaced() {
        check(&["m.onnx", "m.safetensors"], "mlp", Backend::Candle, true, Some(Chosen::Candle));
        check(&["m.onnx"], "mlp", Backend::Candle, true, None);
        check(&["m.safetensors"], "mlp", Backend::Onnx, true, None);
        check(&["m.onnx", "m.safetensors"], "other", Backend::Candle, true, None);
    }
}
