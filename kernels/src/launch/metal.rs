//! The ops' Metal code: sizes and whatever stands for buffers come in, sources, the names in them and descriptions of launches go out.
//! Only with the feature `metal`. Never a device: whoever owns one compiles a source, with fast math off, and does what a [`Launch`] says.

mod launches;

pub use launches::{
    Attention, Error, Gelu, Glu, Launch, LayerNorm, Pool, RmsNorm, Rotary, Rows, Type, attention_takes_heads_of,
};

/// One op's Metal code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// The op's name in the table [`crate::OPS`].
    pub op: &'static str,
    /// The whole source.
    pub source: &'static str,
    /// What the buffers are to every function, from index 0 on. The struct of parameters is at the index behind them.
    pub buffers: &'static [Access],
    /// The functions in it that can be launched, one per type; of attention one per type and width of heads.
    pub functions: &'static [&'static str],
}

/// What a buffer is to a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Is read.
    Read,
    /// Is written, and maybe read.
    Write,
}

use Access::{Read, Write};

/// An op with its source, its buffers, and a function for each type.
macro_rules! module {
    ($op:literal, $buffers:expr, $($function:literal),+) => {
        Module {
            op: $op,
            source: concat!(include_str!("prelude.metal"), include_str!(concat!("../", $op, "/metal.metal"))),
            buffers: &$buffers,
            functions: &[$(concat!($op, "_", $function)),+],
        }
    };
}

/// Every op that has Metal code.
#[rustfmt::skip]
pub const MODULES: &[Module] = &[
    module!(
        "attention", [Read, Read, Read, Read, Read, Write],
        "f32_32", "f32_64", "f32_128", "f32_256",
        "f16_32", "f16_64", "f16_128", "f16_256"
    ),
    module!("gelu", [Write, Read], "f32", "f16"),
    module!("glu", [Read, Write], "f32", "f16"),
    module!("layer_norm", [Read, Read, Read, Read, Write], "f32", "f16"),
    module!("pool", [Read, Read, Write], "f32", "f16"),
    module!("rms_norm", [Read, Read, Read, Write, Write], "f32", "f16"),
    module!("rotary", [Write, Read, Read, Read], "f32", "f16"),
];

#[cfg(test)]
mod tests {
    use super::{Access, MODULES};
    use crate::OPS;

    #[test]
    fn every_op_with_a_metal_backend_has_its_functions_in_the_source() {
        let with_metal: Vec<&str> = OPS.iter().filter(|op| op.backends.contains(&"metal")).map(|op| op.name).collect();
        assert_eq!(MODULES.iter().map(|module| module.op).collect::<Vec<_>>(), with_metal);
        for module in MODULES {
            assert_eq!(module.source.matches("#include <metal_stdlib>").count(), 1, "{}", module.op);
            for function in module.functions {
                // The sources make their functions with a macro: `GELU(f32, float)`, `ATTENTION(f16, half, 64)`.
                let endings: Vec<&str> = function[module.op.len() + 1..].split('_').collect();
                let name = if endings[0] == "f16" { "half" } else { "float" };
                let widths: String = endings[1..].iter().map(|width| format!(", {width}")).collect();
                let made = format!("\n{}({}, {name}{widths})\n", module.op.to_uppercase(), endings[0]);
                assert!(module.source.contains(&made), "{function}: {made}");
            }
        }
    }

    #[test]
    fn buffers_stand_at_their_indices_and_the_parameters_behind_them() {
        for module in MODULES {
            let (declarations, _) = module.source.split_once("[[thread").expect("a function asks where it is");
            let (_, declarations) = declarations.split_once("kernel void").expect("there is a function");
            // `device const T *x [[buffer(0)]], `, and last `constant Params &params [[buffer(1)]], uint2 position `.
            let declared: Vec<&str> = declarations.split("[[buffer(").collect();
            assert_eq!(declared.len(), module.buffers.len() + 2, "{}", module.op);
            for (index, declared) in declared[1..].iter().enumerate() {
                assert!(declared.starts_with(&format!("{index})]]")), "{}: {declared} is not {index}", module.op);
            }
            for (declared, access) in declared.iter().zip(module.buffers) {
                let own = &declared[declared.rfind("device ").expect("a buffer is the device's")..];
                assert_eq!(own.starts_with("device const "), *access == Access::Read, "{}: {own}", module.op);
            }
            assert!(declared[module.buffers.len()].ends_with("constant Params &params "), "{}", module.op);
        }
    }
}
