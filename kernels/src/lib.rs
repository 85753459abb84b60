//! Numeric kernels: plain slices come in, plain slices go out, one folder per op. Never here: a tensor library, a model, a
//! file, a clock, a thread.
//!
//! Every op has a plain form with f64 accumulation (`cpu.rs`), which is what the op *means*, and fast forms that are held
//! against it: vector code for the CPU it runs on (`simd.rs`, chosen at run time, see [`launch`]), by the suite in [`testing`]; and for
//! GPUs CUDA C (`cuda.cu`, compiled to PTX with the feature `cuda`), Metal (`metal.metal`) and WGSL (`wgsl.wgsl`), by the suite in
//! `tests/suite`. Nothing here owns a GPU: [`launch`] has the forms for it as data, each with a feature of its own.
//!
//! A call uses the calling thread alone. Rows are independent of each other, so a caller with a pool splits the rows; a
//! row's result does not depend on which other rows are beside it.

#![warn(missing_docs)]

pub mod attention;
pub mod attention_paged;
pub mod dot;
pub mod embed;
pub mod gelu;
pub mod glu;
pub mod launch;
pub mod layer_norm;
pub mod linear;
pub mod linear_int8;
pub mod linear_quantized;
pub mod pool;
pub mod rms_norm;
pub mod rotary;
pub mod sample;
pub mod sequences;
pub mod softmax;
pub mod stored;
pub mod testing;
pub mod top_k;

pub use attention::attention;
pub use attention_paged::attention_paged;
pub use dot::dot_scores;
pub use embed::embed;
pub use gelu::gelu;
pub use glu::glu;
pub use layer_norm::layer_norm;
pub use linear::linear;
pub use linear_int8::linear_int8;
pub use linear_quantized::linear_quantized;
pub use pool::pool;
pub use rms_norm::rms_norm;
pub use rotary::rotary;
pub use sample::sample;
pub use softmax::softmax;
pub use top_k::top_k;

/// One line of the op table: an op and the backends that it is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// The op's name, which is also its folder under `src/`.
    pub name: &'static str,
    /// The backends, each of which is a file in the folder: `cpu` is `cpu.rs` (the oracle), `simd` is `simd.rs`, `cuda` is
    /// `cuda.cu`, `metal` is `metal.metal`, `wgsl` is `wgsl.wgsl`.
    pub backends: &'static [&'static str],
}

/// Every op, by name, with the backends that it is written for. One op a line: `cargo xtask tidy` reads it.
#[rustfmt::skip]
pub const OPS: &[Op] = &[
    Op { name: "attention", backends: &["cpu", "simd", "cuda", "metal", "wgsl"] },
    Op { name: "attention_paged", backends: &["cpu", "simd", "cuda"] },
    Op { name: "dot", backends: &["cpu", "simd"] },
    Op { name: "embed", backends: &["cpu", "simd", "cuda"] },
    Op { name: "gelu", backends: &["cpu", "simd", "metal", "wgsl"] },
    Op { name: "glu", backends: &["cpu", "simd", "cuda", "metal", "wgsl"] },
    Op { name: "layer_norm", backends: &["cpu", "simd", "cuda", "metal", "wgsl"] },
    Op { name: "linear", backends: &["cpu", "simd", "cuda"] },
    Op { name: "linear_int8", backends: &["cpu", "simd"] },
    Op { name: "linear_quantized", backends: &["cpu", "simd"] },
    Op { name: "pool", backends: &["cpu", "simd", "cuda", "metal", "wgsl"] },
    Op { name: "rms_norm", backends: &["cpu", "simd", "cuda", "metal", "wgsl"] },
    Op { name: "rotary", backends: &["cpu", "simd", "cuda", "metal"] },
    Op { name: "sample", backends: &["cpu", "simd", "cuda"] },
    Op { name: "softmax", backends: &["cpu", "simd"] },
    Op { name: "top_k", backends: &["cpu", "simd"] },
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::OPS;

    const FILES: &[(&str, &str)] =
        &[("cpu", "cpu.rs"), ("simd", "simd.rs"), ("cuda", "cuda.cu"), ("metal", "metal.metal"), ("wgsl", "wgsl.wgsl")];

    #[test]
    fn the_table_names_exactly_the_folders_and_files_that_exist() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut folders: Vec<String> = std::fs::read_dir(&src)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().join("cpu.rs").exists())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        folders.sort();
        let named: Vec<&str> = OPS.iter().map(|op| op.name).collect();
        assert_eq!(folders, named, "folders under kernels/src with an op, and the table OPS in kernels/src/lib.rs");
        for op in OPS {
            let there: Vec<&str> =
                FILES.iter().filter(|(_, file)| src.join(op.name).join(file).exists()).map(|(name, _)| *name).collect();
            assert_eq!(there, op.backends, "backends of {}", op.name);
        }
    }
}
