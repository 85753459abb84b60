//! The ops' CUDA code: nothing comes in, PTX and the names in it go out. Only with the feature `cuda`, for which
//! `build.rs` compiles every `cuda.cu` with nvcc. Never a driver call: whoever owns a device loads the PTX and launches it
//! as the head of each `cuda.cu` says.

/// The oldest compute capability that there is PTX for. Candle's own kernels are compiled for the same (`CUDA_COMPUTE_CAP`).
pub const COMPUTE_CAPABILITY_MIN: (u32, u32) = include!(concat!(env!("OUT_DIR"), "/compute_capability.rs"));

/// PTX for the cards of one compute capability and all newer ones. The driver compiles it for the device that it is loaded on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ptx {
    /// The oldest that it runs on, such as (7, 5).
    pub compute_capability: (u32, u32),
    /// The code.
    pub text: &'static str,
}

/// One op's compiled CUDA code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// The op's name in the table [`crate::OPS`].
    pub op: &'static str,
    /// The same functions for cards of different generations, the oldest first.
    pub ptx: &'static [Ptx],
    /// The functions in it that can be launched, one per type; of attention one per type and width of heads, and of what it does in
    /// steps one per step.
    pub functions: &'static [&'static str],
}

impl Module {
    /// The code for a card: of those that it can run the newest. `None` for a card that is older than all.
    pub fn ptx_for(&self, compute_capability: (u32, u32)) -> Option<&'static str> {
        self.ptx.iter().rev().find(|ptx| ptx.compute_capability <= compute_capability).map(|ptx| ptx.text)
    }
}

/// An op with its PTX, and a function for each type.
macro_rules! module {
    ($op:literal, $($function:literal),+) => {
        Module {
            op: $op,
            ptx: include!(concat!(env!("OUT_DIR"), "/", $op, ".rs")),
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
    module!("embed", "f32", "f16", "bf16"),
    module!("glu", "f32", "f16", "bf16"),
    module!("layer_norm", "f32", "f16", "bf16"),
    module!("linear", "f32", "f16", "bf16"),
    module!("pool", "f32", "f16", "bf16"),
    module!("rms_norm", "f32", "f16", "bf16"),
    module!("rotary", "f32", "f16", "bf16"),
    module!("sample", "f32"),
];

#[cfg(test)]
mod tests {
    use super::{COMPUTE_CAPABILITY_MIN, MODULES, Module, Ptx};
    use crate::OPS;

    #[test]
    fn the_ptx_is_for_the_compute_capability_that_is_told() {
        for module in MODULES {
            assert_eq!(module.ptx[0].compute_capability, COMPUTE_CAPABILITY_MIN, "{}", module.op);
            for Ptx { compute_capability: (major, minor), text } in module.ptx {
                assert!(text.contains(&format!(".target sm_{major}{minor}")), "{}", module.op);
            }
        }
    }

    #[test]
    fn a_card_gets_the_newest_code_that_it_can_run() {
        const CODE: [Ptx; 2] =
            [Ptx { compute_capability: (7, 5), text: "old" }, Ptx { compute_capability: (8, 0), text: "new" }];
        let module = Module { op: "linear", ptx: &CODE, functions: &[] };
        for (card, expected) in [
            ((7, 0), None),
            ((7, 5), Some("old")),
            ((8, 0), Some("new")),
            ((8, 6), Some("new")),
            ((12, 0), Some("new")),
        ] {
            assert_eq!(module.ptx_for(card), expected, "{card:?}");
        }
    }

    #[test]
    fn every_op_with_a_cuda_backend_has_its_functions_in_the_ptx() {
        let with_cuda: Vec<&str> = OPS.iter().filter(|op| op.backends.contains(&"cuda")).map(|op| op.name).collect();
        assert_eq!(MODULES.iter().map(|module| module.op).collect::<Vec<_>>(), with_cuda);
        for module in MODULES {
            for (function, ptx) in
                module.functions.iter().flat_map(|function| module.ptx.iter().map(move |ptx| (function, ptx)))
            {
                assert!(ptx.text.contains(&format!(".entry {function}(")), "{function} in {}", module.op);
            }
        }
    }
}
