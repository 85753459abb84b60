//! The ops' CUDA code: nothing comes in, PTX and the names in it go out. Only with the feature `cuda`, for which
//! `build.rs` compiles every `cuda.cu` with nvcc. Never a driver call: whoever owns a device loads the PTX and launches it
//! as the head of each `cuda.cu` says.

/// The oldest compute capability that the PTX is for. Candle's own kernels are compiled for the same (`CUDA_COMPUTE_CAP`).
pub const COMPUTE_CAPABILITY_MIN: (u32, u32) = include!(concat!(env!("OUT_DIR"), "/compute_capability.rs"));

/// One op's compiled CUDA code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// The op's name in the table [`crate::OPS`].
    pub op: &'static str,
    /// PTX, which the driver compiles for the device that it is loaded on.
    pub ptx: &'static str,
    /// The functions in it that can be launched, one per type; of attention one per type and width of heads, and of what it does in
    /// steps one per step.
    pub functions: &'static [&'static str],
}

/// An op with its PTX, and a function for each type.
macro_rules! module {
    ($op:literal, $($function:literal),+) => {
        Module {
            op: $op,
            ptx: include_str!(concat!(env!("OUT_DIR"), "/", $op, ".ptx")),
            functions: &[$(concat!($op, "_", $function)),+],
        }
    };
}

/// Every op that has CUDA code.
#[rustfmt::skip]
pub const MODULES: &[Module] = &[
    module!(
        "attention",
        "f32_32", "f32_64", "f32_128", "f32_256",
        "f16_32", "f16_64", "f16_128", "f16_256",
        "bf16_32", "bf16_64", "bf16_128", "bf16_256"
    ),
    module!(
        "attention_paged",
        "keep_f32", "merge_f32",
        "keep_f16", "merge_f16",
        "keep_bf16", "merge_bf16",
        "prefill_f32_32", "decode_f32_32_1", "decode_f32_32_4", "decode_f32_32_8",
        "prefill_f32_64", "decode_f32_64_1", "decode_f32_64_4", "decode_f32_64_8",
        "prefill_f32_128", "decode_f32_128_1", "decode_f32_128_4", "decode_f32_128_8",
        "prefill_f32_256", "decode_f32_256_1", "decode_f32_256_4", "decode_f32_256_8",
        "prefill_f16_32", "decode_f16_32_1", "decode_f16_32_4", "decode_f16_32_8",
        "prefill_f16_64", "decode_f16_64_1", "decode_f16_64_4", "decode_f16_64_8",
        "prefill_f16_128", "decode_f16_128_1", "decode_f16_128_4", "decode_f16_128_8",
        "prefill_f16_256", "decode_f16_256_1", "decode_f16_256_4", "decode_f16_256_8",
        "prefill_bf16_32", "decode_bf16_32_1", "decode_bf16_32_4", "decode_bf16_32_8",
        "prefill_bf16_64", "decode_bf16_64_1", "decode_bf16_64_4", "decode_bf16_64_8",
        "prefill_bf16_128", "decode_bf16_128_1", "decode_bf16_128_4", "decode_bf16_128_8",
        "prefill_bf16_256", "decode_bf16_256_1", "decode_bf16_256_4", "decode_bf16_256_8"
    ),
    module!("gelu", "f32", "f16", "bf16"),
    module!("glu", "f32", "f16", "bf16"),
    module!("layer_norm", "f32", "f16", "bf16"),
    module!("pool", "f32", "f16", "bf16"),
    module!("rms_norm", "f32", "f16", "bf16"),
    module!("rotary", "f32", "f16", "bf16"),
    module!("sample", "f32"),
];

#[cfg(test)]
mod tests {
    use super::MODULES;
    use crate::OPS;

    #[test]
    fn the_ptx_is_for_the_compute_capability_that_is_told() {
        let (major, minor) = super::COMPUTE_CAPABILITY_MIN;
        for module in MODULES {
            assert!(module.ptx.contains(&format!(".target sm_{major}{minor}")), "{}", module.op);
        }
    }

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
