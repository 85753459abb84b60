//! Which instruction set the ops run on. Nothing comes in but the CPU that we run on and an operator's wish ([`force`]); an
//! [`Isa`] goes out. Never here: an op's arithmetic.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

pub mod aligned;
pub(crate) mod amx;
pub(crate) mod bytes;
pub mod columns;
#[cfg(feature = "cuda")]
pub mod cuda;
pub(crate) mod dots;
pub(crate) mod lanes;
pub(crate) mod math;
#[cfg(feature = "metal")]
pub mod metal;
pub mod panels;
pub mod probe;
pub(crate) mod tile;
#[cfg(feature = "wgsl")]
pub mod wgsl;

/// An instruction set that the vector code can use. Later ones are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Isa {
    /// Plain Rust, four lanes wide, on any CPU.
    Scalar = 1,
    /// aarch64 with NEON (every aarch64 has it): 4 f32 lanes.
    Neon,
    /// NEON with the int8 dot products that newer cores have. The f32 ops run on it exactly as on [`Isa::Neon`].
    NeonDotprod,
    /// x86-64 with AVX2, FMA and F16C: 8 f32 lanes.
    Avx2Fma,
    /// x86-64 with AVX-512 F, BW, DQ and VL: 16 f32 lanes.
    Avx512,
    /// AVX-512 with the int8 dot products of VNNI. The f32 ops run on it exactly as on [`Isa::Avx512`].
    Avx512Vnni,
    /// AVX-512 VNNI with the tiles of bytes of AMX, which products of whole numbers use where there are rows enough.
    Avx512Amx,
}

/// An instruction set was asked for that this CPU has not.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("this CPU has no {wanted}; it has {}; choose one of those or leave the choice to the program", names(.available))]
pub struct Unavailable {
    /// What was asked for.
    pub wanted: Isa,
    /// What there is.
    pub available: Vec<Isa>,
}

/// No instruction set has this name.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name:?} is not an instruction set; known are {}", names(Isa::ALL))]
pub struct UnknownIsa {
    /// What was written.
    pub name: String,
}

impl Isa {
    /// All of them, from the least to the most preferred.
    pub const ALL: &[Isa] =
        &[Isa::Scalar, Isa::Neon, Isa::NeonDotprod, Isa::Avx2Fma, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Amx];

    /// How many f32 a vector holds.
    pub(crate) const fn width(self) -> usize {
        match self {
            Isa::Scalar | Isa::Neon | Isa::NeonDotprod => 4,
            Isa::Avx2Fma => 8,
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Amx => 16,
        }
    }

    /// The one whose f32 instructions it uses: itself, but for those that add dot products of whole numbers. Two with the
    /// same one give the same results to the last bit, also in 8 bits, where sums are exact.
    pub const fn float(self) -> Self {
        match self {
            Isa::NeonDotprod => Isa::Neon,
            Isa::Avx512Vnni | Isa::Avx512Amx => Isa::Avx512,
            other => other,
        }
    }

    /// The name that operators read and write: `avx512`.
    pub const fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::NeonDotprod => "neon+dotprod",
            Isa::Avx2Fma => "avx2+fma",
            Isa::Avx512 => "avx512",
            Isa::Avx512Vnni => "avx512-vnni",
            Isa::Avx512Amx => "avx512-amx",
        }
    }

    /// Whether the CPU that we run on has it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2Fma => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2Fma.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Isa::Avx512.is_available() && is_x86_feature_detected!("avx512vnni"),
            Isa::Avx512Amx => Isa::Avx512Vnni.is_available() && amx::is_available(),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => Isa::Neon.is_available() && std::arch::is_aarch64_feature_detected!("dotprod"),
            #[allow(unreachable_patterns, reason = "which are left depends on the architecture compiled for")]
            _ => false,
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Isa {
    type Err = UnknownIsa;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| UnknownIsa { name: name.to_owned() })
    }
}

fn names(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

/// Every instruction set that this CPU has, from the least to the most preferred. Asked once per process.
pub fn available() -> &'static [Isa] {
    static AVAILABLE: OnceLock<Vec<Isa>> = OnceLock::new();
    AVAILABLE.get_or_init(|| Isa::ALL.iter().copied().filter(|isa| isa.is_available()).collect())
}

/// The best instruction set of this CPU.
pub fn detect() -> Isa {
    available().last().copied().expect("every CPU runs the scalar code")
}

/// What [`force`] chose; 0 is "nothing".
static FORCED: AtomicU8 = AtomicU8::new(0);

/// The instruction set that ops called from now on use: what [`force`] chose, else the best there is.
pub fn isa() -> Isa {
    let forced = FORCED.load(Ordering::Relaxed);
    Isa::ALL.iter().copied().find(|isa| *isa as u8 == forced).unwrap_or_else(detect)
}

/// Makes every op of this process use `isa`, or with `None` the best there is again. For machines that must agree to the
/// last bit with others, for benches and for tests.
///
/// # Errors
/// [`Unavailable`] when this CPU has not got it; the choice stays as it was.
pub fn force(isa: Option<Isa>) -> Result<(), Unavailable> {
    if let Some(wanted) = isa
        && !wanted.is_available()
    {
        return Err(Unavailable { wanted, available: available().to_vec() });
    }
    FORCED.store(isa.map_or(0, |isa| isa as u8), Ordering::Relaxed);
    Ok(())
}

/// Which instruction set each op runs on in this process, in the order of the table.
pub fn isa_by_op() -> Vec<(&'static str, Isa)> {
    // Every op's vector code is written once over all instruction sets; only two use products of whole numbers.
    let of = |op: &str| match op {
        "linear_int8" => isa(),
        "linear_quantized" => bytes::form(isa()),
        _ => isa().float(),
    };
    crate::OPS.iter().map(|op| (op.name, of(op.name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_is_always_there_and_the_best_is_the_last() {
        assert_eq!(available().first(), Some(&Isa::Scalar));
        assert_eq!(available().last(), Some(&detect()));
        assert!(available().is_sorted());
    }

    #[test]
    fn names_read_back() {
        for isa in Isa::ALL {
            assert_eq!(isa.name().parse(), Ok(*isa));
        }
        assert_eq!("avx9".parse::<Isa>(), Err(UnknownIsa { name: "avx9".to_owned() }));
    }

    #[test]
    fn a_forced_choice_is_used_and_a_missing_one_refused() {
        force(Some(Isa::Scalar)).unwrap();
        assert_eq!(isa(), Isa::Scalar);
        assert!(isa_by_op().iter().all(|(_, isa)| *isa == Isa::Scalar));
        for missing in Isa::ALL.iter().filter(|isa| !isa.is_available()) {
            let refused = force(Some(*missing)).unwrap_err();
            assert!(refused.to_string().contains(missing.name()), "{refused}");
            assert_eq!(isa(), Isa::Scalar, "a refusal changes nothing");
        }
        force(None).unwrap();
        assert_eq!(isa(), detect());
    }
}
