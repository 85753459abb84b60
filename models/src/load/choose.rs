//! A manifest, the asked backend, the device and whether ONNX Runtime is there go in; the backend to use and the reason in
//! words come out. It decides only: nothing is loaded here.

use super::{Backend, Error, architecture, takes_tokens};
use crate::arch::Describe;
use crate::engine::Device;
use crate::manifest::Manifest;

/// A backend that can run the model.
#[derive(Debug, Clone, Copy)]
pub(super) enum Chosen {
    /// Our own ops on its safetensors, from this description.
    Kernels(Describe),
    /// Candle on its safetensors.
    Candle,
    /// The ONNX graph.
    Onnx,
}

/// Chooses by the rules of [the module above](super). `runtime_found` is asked only when it decides.
pub(super) fn choose(
    manifest: &Manifest,
    asked: Backend,
    device: Device,
    runtime_found: &dyn Fn() -> bool,
) -> Result<(Chosen, String), Error> {
    let refuse = |why: String| Err(Error::NoBackend { model: manifest.id(), asked, why });
    let weights = architecture(&manifest.architecture).filter(|_| manifest.has_safetensors());
    let described = weights.and_then(|architecture| architecture.describe);
    let kernels = described.filter(|_| device == Device::Cpu);
    #[cfg(feature = "candle")]
    let candle = weights.is_some_and(|architecture| architecture.describe.is_some() || architecture.build.is_some());
    #[cfg(not(feature = "candle"))]
    let candle = false;
    let onnx = cfg!(feature = "onnx") && manifest.has_onnx();
    let decide = |chosen, why: &str| Ok((chosen, why.to_string()));
    let unknown = || {
        let name = &manifest.architecture;
        format!("architecture {name:?} is not one that it has here; use backend onnx with an ONNX export")
    };
    if let Some(quantization) = manifest.quantization
        && (kernels.is_none() || !matches!(asked, Backend::Auto | Backend::Kernels))
    {
        let name = quantization.name();
        return refuse(format!(
            "it is to run in {name}, which only our own ops do: encoders with safetensors on the CPU, with backend auto or kernels; \
             this is {device}, and its architecture is {:?}",
            manifest.architecture
        ));
    }
    match (asked, kernels) {
        (Backend::Kernels, Some(describe)) => decide(Chosen::Kernels(describe), "kernels was asked for"),
        (Backend::Candle, _) if candle => decide(Chosen::Candle, "Candle was asked for"),
        (Backend::Onnx, _) if onnx => decide(Chosen::Onnx, "ONNX was asked for"),
        (Backend::Candle, _) if !cfg!(feature = "candle") => refuse("this build has no Candle".into()),
        (Backend::Onnx, _) if !cfg!(feature = "onnx") => refuse("this build has no ONNX".into()),
        (Backend::Candle | Backend::Kernels, _) if !manifest.has_safetensors() => {
            refuse("it has no safetensors weights; use backend onnx".into())
        }
        (Backend::Kernels, None) if described.is_some() => {
            refuse(format!("it runs on the CPU, not on {device}; use backend auto"))
        }
        (Backend::Candle | Backend::Kernels, _) => refuse(unknown()),
        (Backend::Onnx, _) => refuse("it has no ONNX graph; export one or use another backend".into()),
        (Backend::Fake, _) => refuse("the fake is not loaded from files".into()),
        (Backend::Auto, Some(describe)) => {
            decide(Chosen::Kernels(describe), "our own ops are the fastest for encoders on a CPU")
        }
        (Backend::Auto, None) => match (candle, onnx, takes_tokens(manifest)) {
            (true, true, true) if runtime_found() => {
                decide(Chosen::Onnx, "ONNX Runtime was found, which is the faster for encoders")
            }
            (true, true, true) => decide(Chosen::Candle, "no ONNX Runtime was found, Candle is the faster of the rest"),
            (true, true, false) if device != Device::Cpu && !runtime_found() => {
                decide(Chosen::Candle, "no ONNX Runtime was found, and what replaces it runs on the CPU only")
            }
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

    /// `want` is the name of the backend.
    fn check(files: &[&str], architecture: &str, asked: Backend, device: Device, found: bool, want: Option<&str>) {
        let file = |path: &&str| File { path: (*path).into(), sha256: "0".repeat(64), bytes: 1 };
        let mut manifest = crate::backend::fake::manifest("m");
        manifest.files = files.iter().map(file).collect();
        manifest.architecture = architecture.into();
        manifest.task = if files.contains(&"tokenizer.json") { Task::Embed } else { Task::Classify };
        let chosen = choose(&manifest, asked, device, &|| found).ok().map(|(chosen, _)| match chosen {
            Chosen::Kernels(_) => "kernels",
            Chosen::Candle => "candle",
            Chosen::Onnx => "onnx",
        });
        assert_eq!(chosen, want, "{files:?} {architecture} {asked} {device} {found}");
    }

    const CPU: Device = Device::Cpu;
    const GPU: Device = Device::Cuda(0);
    const BOTH: [&str; 3] = ["tokenizer.json", "m.safetensors", "m.onnx"];

    #[test]
    fn the_fastest_backend_that_can_is_chosen() {
        check(&BOTH, "bert", Backend::Auto, CPU, true, Some("kernels"));
        check(&BOTH, "bert", Backend::Auto, GPU, true, Some("onnx"));
        check(&BOTH, "bert", Backend::Auto, GPU, false, Some("candle"));
        check(&BOTH, "onnx", Backend::Auto, CPU, false, Some("onnx"));
        check(&BOTH[..2], "bert", Backend::Auto, CPU, true, Some("kernels"));
        check(&BOTH[..2], "bert", Backend::Auto, GPU, true, Some("candle"));
        check(&BOTH[..2], "other", Backend::Auto, CPU, true, None);
        check(&["tokenizer.json", "m.onnx"], "bert", Backend::Auto, CPU, true, Some("onnx"));
        check(&["m.onnx", "m.safetensors"], "mlp", Backend::Auto, CPU, false, Some("onnx"));
        check(&["m.onnx", "m.safetensors"], "mlp", Backend::Auto, GPU, true, Some("onnx"));
        check(&["m.onnx", "m.safetensors"], "mlp", Backend::Auto, GPU, false, Some("candle"));
        check(&["m.safetensors"], "mlp", Backend::Auto, CPU, false, Some("candle"));
    }

    #[test]
    fn int8_runs_on_our_own_ops_or_not_at_all() {
        let mut manifest = crate::backend::fake::manifest("m");
        manifest.files = BOTH.map(|path| File { path: path.into(), sha256: "0".repeat(64), bytes: 1 }).to_vec();
        manifest.quantization = Some(crate::manifest::Quantization::Int8);
        for (architecture, asked, device, runs) in [
            ("bert", Backend::Auto, CPU, true),
            ("bert", Backend::Kernels, CPU, true),
            ("bert", Backend::Auto, GPU, false),
            ("bert", Backend::Onnx, CPU, false),
            ("bert", Backend::Candle, CPU, false),
            ("onnx", Backend::Auto, CPU, false),
        ] {
            manifest.architecture = architecture.into();
            match choose(&manifest, asked, device, &|| true) {
                Ok((Chosen::Kernels(_), _)) => assert!(runs, "{architecture} {asked} {device}"),
                Ok((other, _)) => panic!("{other:?} cannot run in int8"),
                Err(why) => assert!(!runs && why.to_string().contains("int8"), "{architecture} {asked}: {why}"),
            }
        }
    }

    #[test]
    fn an_asked_backend_is_used_or_refused_never_replaced() {
        check(&BOTH, "bert", Backend::Kernels, CPU, true, Some("kernels"));
        check(&BOTH, "bert", Backend::Kernels, GPU, true, None);
        check(&BOTH, "bert", Backend::Candle, CPU, true, Some("candle"));
        check(&BOTH, "bert", Backend::Onnx, CPU, true, Some("onnx"));
        check(&["m.onnx", "m.safetensors"], "mlp", Backend::Candle, CPU, true, Some("candle"));
        check(&["m.onnx", "m.safetensors"], "mlp", Backend::Kernels, CPU, true, None);
        check(&["m.onnx"], "mlp", Backend::Candle, CPU, true, None);
        check(&["m.safetensors"], "mlp", Backend::Onnx, CPU, true, None);
        check(&["m.onnx", "m.safetensors"], "other", Backend::Candle, CPU, true, None);
    }
}
