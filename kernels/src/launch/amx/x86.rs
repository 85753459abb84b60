//! AMX's instructions, written out, because Rust has no stable functions for them. Addresses come in, tiles are loaded, multiplied and
//! stored. Never a choice whether to use them: `super::Tiles` makes it.
//!
//! # Source
//! How a process asks for the tiles: Linux, Documentation/arch/x86/xstate.rst.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};

use super::{Rows, SIGNED, Sums, TILE, UNSIGNED};

/// Bytes of a row of a tile.
const ROW: usize = 64;

/// `ARCH_REQ_XCOMP_PERM`, and what is asked for: the tiles' data.
const ASK_FOR_STATE: libc::c_int = 0x1023;
const TILE_DATA: libc::c_int = 18;

/// AMX-TILE and AMX-INT8 of `edx` of leaf 7.
const HAS_TILES_OF_BYTES: u32 = 0b11 << 24;

pub(super) fn is_available() -> bool {
    let has_tiles = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & HAS_TILES_OF_BYTES == HAS_TILES_OF_BYTES;
    // SAFETY: the call takes two numbers and touches no memory of ours.
    has_tiles && unsafe { libc::syscall(libc::SYS_arch_prctl, ASK_FOR_STATE, TILE_DATA) } == 0
}

/// What `ldtilecfg` reads and `sttilecfg` writes; zeros where tiles are in use by nobody.
#[derive(Default)]
#[repr(C, align(64))]
pub(super) struct Configuration {
    palette: u8,
    first_row: u8,
    nothing: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Configuration {
    /// Sums in tiles 0 to 3, rows in 4 and 5, weights in 6 and 7.
    const fn new(inputs: usize) -> Self {
        assert!(inputs > 0 && inputs <= ROW && inputs.is_multiple_of(4), "what a row of a tile holds");
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            row_bytes[tile] = if tile == 4 || tile == 5 { inputs as u16 } else { ROW as u16 };
            rows[tile] = if tile < 6 { TILE as u8 } else { inputs as u8 / 4 };
            tile += 1;
        }
        Self { palette: 1, first_row: 0, nothing: [0; 14], row_bytes, rows }
    }
}

/// Gives what this thread's tiles were set up for before.
///
/// # Safety
/// The CPU has tiles, and the system lends them.
pub(super) unsafe fn set_up<const INPUTS: usize>() -> Configuration {
    let mut before = Configuration::default();
    static OF_64: Configuration = Configuration::new(64);
    static OF_32: Configuration = Configuration::new(32);
    let configuration = const {
        match INPUTS {
            64 => &OF_64,
            32 => &OF_32,
            _ => panic!("tiles are set up for 64 inputs or 32"),
        }
    };
    // SAFETY: the caller vouches for the tiles. The configuration is one that the manual allows: palette 1 has eight of 16 rows of 64
    // bytes.
    unsafe {
        asm!("sttilecfg [{}]", in(reg) &raw mut before, options(nostack));
        asm!("ldtilecfg [{}]", in(reg) &raw const *configuration, options(nostack));
    }
    before
}

/// Sets the tiles up as they were. Zeros release them; else the system would go on saving 8 KB whenever it changes threads.
///
/// # Safety
/// The CPU has tiles, which were set up like that once.
pub(super) unsafe fn restore(before: &Configuration) {
    // SAFETY: the caller vouches for the tiles and the configuration.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const *before, options(nostack)) };
}

/// The instructions of a product, of which `$dot` multiplies tiles.
macro_rules! multiply {
    ($dot:literal, $inputs:ident, $x:ident, $weights:ident, $steps:ident, $sums:ident) => {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "test {steps}, {steps}",
            "jz 3f",
            "2:",
            "tileloadd tmm6, [{weights} + {line}]",
            "tileloadd tmm4, [{upper} + {stride}]",
            concat!($dot, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{weights} + {line} + 64]",
            concat!($dot, " tmm1, tmm4, tmm7"),
            "test {lower}, {lower}",
            "jz 4f",
            "tileloadd tmm5, [{lower} + {stride}]",
            concat!($dot, " tmm2, tmm5, tmm6"),
            concat!($dot, " tmm3, tmm5, tmm7"),
            "add {lower}, {inputs}",
            "4:",
            "add {upper}, {inputs}",
            "add {weights}, {of_weights}",
            "dec {steps}",
            "jnz 2b",
            "3:",
            "tilestored [{sums} + {line}], tmm0",
            "tilestored [{sums} + {line} + 64], tmm1",
            "test {lower}, {lower}",
            "jz 5f",
            "tilestored [{sums} + {line} + 2048], tmm2",
            "tilestored [{sums} + {line} + 2112], tmm3",
            "5:",
            upper = inout(reg) $x.tiles[0] => _,
            lower = inout(reg) $x.tiles[1] => _,
            stride = in(reg) $x.stride,
            weights = inout(reg) $weights => _,
            // Both the weights of four inputs and the sums of a row: two tiles side by side.
            line = in(reg) 2 * ROW,
            steps = inout(reg) $steps => _,
            sums = in(reg) &raw mut *$sums,
            inputs = const $inputs,
            of_weights = const $inputs / 4 * 2 * ROW,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// # Safety
/// The tiles are set up for so many inputs; the rest as `super::Tiles::multiply`.
#[inline(always)]
pub(super) unsafe fn multiply<const INPUTS: usize, const X: bool, const W: bool>(
    x: Rows,
    weights: *const u8,
    steps: usize,
    sums: &mut Sums,
) {
    // SAFETY: as the caller vouches; `sums` is what is written.
    unsafe {
        match (X, W) {
            (SIGNED, SIGNED) => multiply!("tdpbssd", INPUTS, x, weights, steps, sums),
            (SIGNED, UNSIGNED) => multiply!("tdpbsud", INPUTS, x, weights, steps, sums),
            (UNSIGNED, SIGNED) => multiply!("tdpbusd", INPUTS, x, weights, steps, sums),
            (UNSIGNED, UNSIGNED) => multiply!("tdpbuud", INPUTS, x, weights, steps, sums),
        }
    }
}
