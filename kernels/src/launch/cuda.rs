//! The ops' CUDA code: nothing comes in, PTX and the names in it go out. Only with the feature `cuda`, for which
//! `build.rs` compiles every `cuda.cu` with nvcc. Never a driver call: whoever owns a device loads the PTX and launches it
//! as the head of each `cuda.cu` says.

/// One op's compiled CUDA code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// The op's name in the table [`crate::OPS`].
    pub op: &'static str,
    /// PTX, which the driver compiles for the device that it is loaded on.
    pub ptx: &'static str,
    /// The functions in it that can be launched, one per type.
    pub functions: &'static [&'static str],
}

/// Every op that has CUDA code.
pub const MODULES: &[Module] = &[
    Module {
        op: "gelu",
        ptx: include_str!(concat!(env!("OUT_DIR"), "/gelu.ptx")),
        functions: &["gelu_f32", "gelu_f16"],
    },
    Module {
        op: "layer_norm",
        ptx: include_str!(concat!(env!("OUT_DIR"), "/layer_norm.ptx")),
        functions: &["layer_norm_f32", "layer_norm_f16"],
    },
    Module {
        op: "mean_pool",
        ptx: include_str!(concat!(env!("OUT_DIR"), "/mean_pool.ptx")),
        functions: &["mean_pool_f32", "mean_pool_f16"],
    },
];

#[cfg(test)]
mod tests {
    use super::MODULES;
    use crate::OPS;

    #[test]
    fn every_op_with_a_cuda_backend_has_its_functions_in_the_ptx() {
        let with_cuda: Vec<&str> = OPS.iter().filter(|op| op.backends.contains(&"cuda")).map(|op| op.name).collect();
        assert_eq!(MODULES.iter().map(|module| module.op).collect::<Vec<_>>(), with_cuda);
        for module in MODULES {
            for function in module.functions {
                assert!(module.ptx.contains(&format!(".entry {function}(")), "{function} in {}", module.op);
            }
        }
    }
}
