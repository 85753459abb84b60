//! Vectors of unsigned bytes times signed bytes, for weights of a few bits. A [`Kernel`] (a loop over any width) and an [`Isa`]
//! come in, the loop compiled for that instruction set runs. Never a sum that could be another on another instruction set: whole
//! numbers are exact, and f32 are multiplied and added one after the other, never in one step.
//!
//! As with [`super::lanes`], a value that implements [`Bytes`] is a proof that the CPU has its instructions. The form for NEON
//! has run in an emulator only; where tests run on a CPU that has it, they try it.

use half::f16;

use super::Isa;
use super::amx::Tiles;

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

/// An instruction set's products of bytes. A vector of whole numbers has a lane of 32 bits for each of [`Bytes::WIDTH`] outputs; four
/// inputs of an output are the four bytes of its lane.
///
/// Every method is `#[inline(always)]`, and so must be everything between it and [`run`].
pub(crate) trait Bytes: Copy {
    /// Whole numbers, a lane of 32 bits for each output.
    type I: Copy;
    /// f32, one for each output.
    type F: Copy;
    /// How many outputs a vector has.
    const WIDTH: usize;
    /// Rows of a tile of two vectors of sums.
    const TILE_ROWS: usize;
    /// Whether sums of products of bytes are two of 16 bits in each lane, which hold little; else one of 32.
    const IS_NARROW: bool;
    /// How much weights with a sign must be above what they stand for when [`Bytes::add_signed`] takes them: what makes them unsigned,
    /// where there are no products of two signs, or 0.
    const EXCESS: i16;

    /// Asks for the cache line of an address, which need not be readable. A hint: nothing where the CPU has none.
    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}
    /// A vector.
    ///
    /// # Safety
    /// `4 · WIDTH` bytes can be read.
    unsafe fn load(self, from: *const u8) -> Self::I;
    /// Writes a vector.
    ///
    /// # Safety
    /// `4 · WIDTH` bytes can be written by nobody else.
    unsafe fn store(self, v: Self::I, to: *mut u8);
    /// The same 32 bits in every lane.
    fn splat(self, word: u32) -> Self::I;
    /// The lower four bits of every byte.
    fn low(self, v: Self::I) -> Self::I;
    /// The upper four bits of every byte.
    fn high(self, v: Self::I) -> Self::I;
    /// `nibbles`, and the bits of `v` that `mask` has in every byte after `v` is moved to the left by `left` (or to the right, where
    /// that is negative) bits. No bit of the mask may come from another byte, and `left`, a constant, is −4 to 4.
    fn with_bits(self, nibbles: Self::I, v: Self::I, left: i32, mask: u8) -> Self::I;
    /// For every byte, which is below 16, the number of the table at that place.
    fn lookup(self, table: &[i8; 16], places: Self::I) -> Self::I;
    /// `sums + Σ weight · x` over the bytes of each lane, the weights unsigned and below 128, the inputs signed. Where [`Bytes::IS_NARROW`], a
    /// sum over two bytes must stay within 16 bits.
    fn add_unsigned(self, sums: Self::I, weights: Self::I, x: Self::I) -> Self::I;
    /// What [`Bytes::add_unsigned`] has added up, to sums of 32 bits.
    fn add_short(self, sums: Self::I, short: Self::I) -> Self::I;
    /// The same times `scales`.
    fn add_scaled(self, sums: Self::I, short: Self::I, scales: Self::I) -> Self::I;
    /// Every byte plus `byte`, modulo 256.
    fn plus(self, v: Self::I, byte: u8) -> Self::I;
    /// `sums + Σ weight · x` over the bytes of each lane, both signed, to sums of 32 bits, the weights [`Bytes::EXCESS`] above what they
    /// stand for, with which they are multiplied. No input is −128.
    fn add_signed(self, sums: Self::I, weights: Self::I, x: Self::I) -> Self::I;
    /// Two unsigned bytes an output, as two numbers of 16 bits in its lane.
    ///
    /// # Safety
    /// `2 · WIDTH` bytes can be read.
    unsafe fn pairs(self, from: *const u8) -> Self::I;
    /// Two signed bytes an output, as two numbers of 16 bits in its lane.
    ///
    /// # Safety
    /// `2 · WIDTH` bytes can be read.
    unsafe fn signed_pairs(self, from: *const u8) -> Self::I;
    /// The first of pairs as [`Bytes::add_scaled`] takes it.
    fn first(self, pairs: Self::I) -> Self::I;
    /// The second of pairs as [`Bytes::add_scaled`] takes it.
    fn second(self, pairs: Self::I) -> Self::I;
    /// `sums + first · x.first + second · x.second`: pairs of signed numbers of 16 bits, to sums of 32 bits.
    fn add_pairs(self, sums: Self::I, pairs: Self::I, x: Self::I) -> Self::I;
    /// `a − 32 · b`
    fn less_32(self, a: Self::I, b: Self::I) -> Self::I;
    /// The nearest f32.
    fn float(self, v: Self::I) -> Self::F;
    /// f16, widened.
    ///
    /// # Safety
    /// `WIDTH` f16 can be read; they need no alignment.
    unsafe fn load_f16(self, from: *const u8) -> Self::F;
    /// f32.
    ///
    /// # Safety
    /// `WIDTH` f32 can be read.
    unsafe fn load_f32(self, from: *const f32) -> Self::F;
    /// Writes f32.
    ///
    /// # Safety
    /// `WIDTH` f32 can be written by nobody else.
    unsafe fn store_f32(self, v: Self::F, to: *mut f32);
    /// The same f32 in every lane.
    fn splat_f32(self, x: f32) -> Self::F;
    /// `a + b`
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a − b`
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a · b`
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
}

/// What it takes to make weights ready for tiles (see [`super::amx`]), on CPUs that have them.
pub(crate) trait BesideTiles: Bytes {
    /// Three bits of the number in every lane, from bit `at` on, in each of its bytes.
    fn digit(self, v: Self::I, at: u32) -> Self::I;
    /// Every byte times that of `factors`, which are the same in both bytes of 16 bits; a product is below 256.
    fn times(self, v: Self::I, factors: Self::I) -> Self::I;
    /// The bits in which they differ.
    fn xor(self, a: Self::I, b: Self::I) -> Self::I;
    /// Every byte of `a` less that of `b`, modulo 256.
    fn minus(self, a: Self::I, b: Self::I) -> Self::I;
    /// `8 · a + b`, in 32 bits.
    fn eightfold(self, a: Self::I, b: Self::I) -> Self::I;
}

/// The instruction set whose products of bytes are used on another one: itself or a lesser one.
pub(crate) const fn form(isa: Isa) -> Isa {
    match isa {
        Isa::Avx512Vnni | Isa::Avx512Amx | Isa::NeonDotprod => isa,
        Isa::Avx2Fma | Isa::Avx512 => Isa::Avx2Fma,
        Isa::Scalar | Isa::Neon => Isa::Scalar,
    }
}

/// A loop, written once over any instruction set.
pub(crate) trait Kernel {
    /// Runs it. Implementations must be `#[inline(always)]`.
    fn run<B: Bytes>(self, bytes: B);
}

/// Runs the kernel compiled for `isa`, one that [`form`] gives, or for plain Rust when this CPU has not got it.
pub(crate) fn run<K: Kernel>(isa: Isa, kernel: K) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2Fma if super::available().contains(&Isa::Avx2Fma) => {
            // SAFETY: the guard has just asked the CPU for the features that the function is compiled with.
            unsafe { x86::run_avx2(kernel) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni | Isa::Avx512Amx if super::available().contains(&Isa::Avx512Vnni) => {
            // SAFETY: as above; what has AVX-512 has AVX2 and F16C here.
            unsafe { x86::run_vnni(kernel) }
        }
        #[cfg(target_arch = "aarch64")]
        Isa::NeonDotprod if super::available().contains(&Isa::NeonDotprod) => {
            // SAFETY: as above.
            unsafe { neon::run_dotprod(kernel) }
        }
        _ => kernel.run(Scalar),
    }
}

/// A loop around tiles.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other CPU has tiles"))]
pub(crate) trait TiledKernel {
    /// Runs it. Implementations must be `#[inline(always)]`.
    fn run<B: BesideTiles>(self, bytes: B);
}

/// Runs the kernel compiled for the vectors that a CPU with tiles has.
pub(crate) fn run_tiled<const INPUTS: usize, K: TiledKernel>(_proof: &Tiles<INPUTS>, kernel: K) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: what has tiles has AVX-512 with VNNI here (see `Isa::is_available`), and AVX2 and F16C.
    unsafe {
        x86::run_tiled(kernel);
    }
    #[cfg(not(target_arch = "x86_64"))]
    unreachable!("there are no tiles: {}", size_of_val(&kernel));
}

/// Plain Rust, four outputs wide, on any CPU.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

/// Applies a function of two bytes to each byte of two vectors.
#[inline(always)]
fn each_byte(a: [u32; 4], b: [u32; 4], f: impl Fn(u8, u8) -> u8) -> [u32; 4] {
    let mut out = [0; 4];
    for lane in 0..4 {
        let (a, b) = (a[lane].to_le_bytes(), b[lane].to_le_bytes());
        out[lane] = u32::from_le_bytes([f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]);
    }
    out
}

/// `sums + Σ weight · x` over the bytes of each lane, of which `weight` makes a number.
#[inline(always)]
fn add_products(mut sums: [u32; 4], weights: [u32; 4], x: [u32; 4], weight: impl Fn(u8) -> i32) -> [u32; 4] {
    for lane in 0..4 {
        let (weights, x) = (weights[lane].to_le_bytes(), x[lane].to_le_bytes());
        for byte in 0..4 {
            let product = weight(weights[byte]) * i32::from(x[byte].cast_signed());
            sums[lane] = sums[lane].wrapping_add_signed(product);
        }
    }
    sums
}

/// Two numbers of 16 bits in a lane.
#[inline(always)]
fn halves(lane: u32) -> (i32, i32) {
    (i32::from(lane as i16), i32::from((lane >> 16) as i16))
}

impl Bytes for Scalar {
    type I = [u32; 4];
    type F = [f32; 4];
    const WIDTH: usize = 4;
    const TILE_ROWS: usize = 4;
    const IS_NARROW: bool = false;
    const EXCESS: i16 = 0;

    #[inline(always)]
    unsafe fn load(self, from: *const u8) -> [u32; 4] {
        // SAFETY: the caller vouches for 16 bytes, which need no alignment.
        unsafe { from.cast::<[u32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, v: [u32; 4], to: *mut u8) {
        // SAFETY: the caller vouches for 16 bytes, which need no alignment.
        unsafe { to.cast::<[u32; 4]>().write_unaligned(v) }
    }

    #[inline(always)]
    fn splat(self, word: u32) -> [u32; 4] {
        [word; 4]
    }

    #[inline(always)]
    fn low(self, v: [u32; 4]) -> [u32; 4] {
        each_byte(v, v, |v, _| v & 0x0f)
    }

    #[inline(always)]
    fn high(self, v: [u32; 4]) -> [u32; 4] {
        each_byte(v, v, |v, _| v >> 4)
    }

    #[inline(always)]
    fn with_bits(self, nibbles: [u32; 4], v: [u32; 4], left: i32, mask: u8) -> [u32; 4] {
        each_byte(nibbles, v, |nibble, v| nibble | (if left >= 0 { v << left } else { v >> -left }) & mask)
    }

    #[inline(always)]
    fn add_unsigned(self, sums: [u32; 4], weights: [u32; 4], x: [u32; 4]) -> [u32; 4] {
        add_products(sums, weights, x, i32::from)
    }

    #[inline(always)]
    fn lookup(self, table: &[i8; 16], places: [u32; 4]) -> [u32; 4] {
        each_byte(places, places, |place, _| table[usize::from(place & 0x0f)].cast_unsigned())
    }

    #[inline(always)]
    fn add_short(self, mut sums: [u32; 4], short: [u32; 4]) -> [u32; 4] {
        for lane in 0..4 {
            sums[lane] = sums[lane].wrapping_add(short[lane]);
        }
        sums
    }

    #[inline(always)]
    fn add_scaled(self, mut sums: [u32; 4], short: [u32; 4], scales: [u32; 4]) -> [u32; 4] {
        for lane in 0..4 {
            sums[lane] = sums[lane].wrapping_add(short[lane].wrapping_mul(scales[lane]));
        }
        sums
    }

    #[inline(always)]
    fn plus(self, v: [u32; 4], byte: u8) -> [u32; 4] {
        each_byte(v, v, |v, _| v.wrapping_add(byte))
    }

    #[inline(always)]
    fn add_signed(self, sums: [u32; 4], weights: [u32; 4], x: [u32; 4]) -> [u32; 4] {
        add_products(sums, weights, x, |w| i32::from(w.cast_signed()))
    }

    #[inline(always)]
    unsafe fn pairs(self, from: *const u8) -> [u32; 4] {
        // SAFETY: the caller vouches for 8 bytes, which need no alignment.
        let bytes = unsafe { from.cast::<[[u8; 2]; 4]>().read() };
        let mut out = [0; 4];
        for lane in 0..4 {
            out[lane] = u32::from(bytes[lane][0]) | u32::from(bytes[lane][1]) << 16;
        }
        out
    }

    #[inline(always)]
    unsafe fn signed_pairs(self, from: *const u8) -> [u32; 4] {
        // SAFETY: the caller vouches for 8 bytes, which need no alignment.
        let bytes = unsafe { from.cast::<[[i8; 2]; 4]>().read() };
        let mut out = [0; 4];
        for lane in 0..4 {
            let [first, second] = bytes[lane].map(|x| u32::from(i16::from(x).cast_unsigned()));
            out[lane] = first | second << 16;
        }
        out
    }

    #[inline(always)]
    fn first(self, pairs: [u32; 4]) -> [u32; 4] {
        pairs.map(|pair| halves(pair).0.cast_unsigned())
    }

    #[inline(always)]
    fn second(self, pairs: [u32; 4]) -> [u32; 4] {
        pairs.map(|pair| halves(pair).1.cast_unsigned())
    }

    #[inline(always)]
    fn add_pairs(self, mut sums: [u32; 4], pairs: [u32; 4], x: [u32; 4]) -> [u32; 4] {
        for lane in 0..4 {
            let ((a, b), (x, y)) = (halves(pairs[lane]), halves(x[lane]));
            sums[lane] = sums[lane].wrapping_add_signed(a * x + b * y);
        }
        sums
    }

    #[inline(always)]
    fn less_32(self, a: [u32; 4], b: [u32; 4]) -> [u32; 4] {
        let mut out = [0; 4];
        for lane in 0..4 {
            out[lane] = a[lane].wrapping_sub(b[lane].wrapping_mul(32));
        }
        out
    }

    #[inline(always)]
    fn float(self, v: [u32; 4]) -> [f32; 4] {
        v.map(|v| v.cast_signed() as f32)
    }

    #[inline(always)]
    unsafe fn load_f16(self, from: *const u8) -> [f32; 4] {
        // SAFETY: the caller vouches for 8 bytes, which need no alignment.
        let halves = unsafe { from.cast::<[[u8; 2]; 4]>().read() };
        halves.map(|half| f16::from_le_bytes(half).to_f32())
    }

    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> [f32; 4] {
        // SAFETY: the caller vouches for four f32.
        unsafe { from.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store_f32(self, v: [f32; 4], to: *mut f32) {
        // SAFETY: the caller vouches for four f32.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(v) }
    }

    #[inline(always)]
    fn splat_f32(self, x: f32) -> [f32; 4] {
        [x; 4]
    }

    #[inline(always)]
    fn add(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]]
    }

    #[inline(always)]
    fn sub(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]]
    }

    #[inline(always)]
    fn mul(self, a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        [a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Puts the greatest numbers through every operation.
    struct EveryOperation(Isa);

    impl Kernel for EveryOperation {
        #[inline(always)]
        fn run<B: Bytes>(self, b: B) {
            assert_eq!(B::WIDTH, self.0.width(), "{}", self.0);
            let lanes = |v: B::I| {
                let mut out = vec![0_i32; B::WIDTH];
                // SAFETY: a lane of 32 bits for each output.
                unsafe { b.store(v, out.as_mut_ptr().cast()) };
                out
            };
            let floats = |v: B::F| {
                let mut out = vec![0.0_f32; B::WIDTH];
                // SAFETY: one for each output.
                unsafe { b.store_f32(v, out.as_mut_ptr()) };
                out
            };
            let each = |f: &dyn Fn(i32) -> i32| (0..B::WIDTH as i32).map(f).collect::<Vec<_>>();
            let word = |bytes: [i8; 4]| u32::from_le_bytes(bytes.map(i8::cast_unsigned));
            let vector = |f: &dyn Fn(i32) -> u32| {
                let words: Vec<u32> = (0..B::WIDTH as i32).map(f).collect();
                // SAFETY: a lane of 32 bits for each output.
                unsafe { b.load(words.as_ptr().cast()) }
            };
            let none = b.splat(0);
            let mixed = vector(&|_| 0x1f_e2_a5_07);
            assert_eq!(lanes(b.low(mixed)), each(&|_| 0x0f_02_05_07));
            assert_eq!(lanes(b.high(mixed)), each(&|_| 0x01_0e_0a_00));
            for left in -4..=4 {
                let mask = if left >= 0 { 0x10 } else { 0x01 };
                let bits = b.splat(if left >= 0 { 0x0001_0101 << (4 - left) } else { 0x0001_0101 << -left });
                let expected = i32::from(mask) * 0x0001_0101;
                assert_eq!(lanes(b.with_bits(none, bits, left, mask)), each(&|_| expected), "{left}");
                assert_eq!(lanes(b.with_bits(none, b.splat(!0), left, mask)), each(&|_| i32::from(mask) * 0x0101_0101));
            }
            let x = b.splat(word([127, -127, 127, 127]));
            let unsigned = vector(&|lane| u32::from_le_bytes([63, 3, lane as u8, 63]));
            let pairs = [[-128_i8, 127]; 16];
            // SAFETY: two bytes for each output, of which there are 16 at most.
            let (signed, unsigned_pairs) =
                unsafe { (b.signed_pairs(pairs.as_ptr().cast()), b.pairs(pairs.as_ptr().cast())) };
            let products = b.add_unsigned(b.add_unsigned(none, unsigned, x), unsigned, x);
            let sum = |lane: i32| 2 * 127 * (63 - 3 + lane + 63);
            let scaled = |scales| lanes(b.add_scaled(b.splat(5), products, scales));
            assert_eq!(scaled(b.first(signed)), each(&|lane| 5 - 128 * sum(lane)));
            assert_eq!(scaled(b.second(signed)), each(&|lane| 5 + 127 * sum(lane)));
            assert_eq!(lanes(b.add_short(b.splat(5), products)), each(&|lane| 5 + sum(lane)));
            let table: [i8; 16] = std::array::from_fn(|place| (10 * place as i32 - 100) as i8);
            let looked_up = lanes(b.lookup(&table, vector(&|lane| u32::from_le_bytes([15, 0, lane as u8, 7]))));
            let expected =
                each(&|lane| i32::from_le_bytes([50, -100, (10 * lane - 100) as i8, -30].map(i8::cast_unsigned)));
            assert_eq!(looked_up, expected);
            let weights = vector(&|lane| word([-128, 127, lane as i8, -128]));
            let more = lanes(b.plus(weights, 3));
            assert_eq!(more, each(&|lane| word([-125, -126, lane as i8 + 3, -125]).cast_signed()));
            let above = b.plus(weights, B::EXCESS as u8);
            let sums = b.add_signed(b.splat(7), above, x);
            // Of the inputs, one is negative.
            let excess = i32::from(B::EXCESS) * 2 * 127;
            assert_eq!(lanes(sums), each(&|lane| 7 + excess + 127 * (-128 - 127 + lane - 128)));
            let sums = b.add_short(sums, b.splat((-excess).cast_unsigned()));
            let x = b.splat(u32::from(i16::MAX.cast_unsigned()) | u32::from((-3_i16).cast_unsigned()) << 16);
            let added = |pairs| lanes(b.add_pairs(b.splat(1), pairs, x));
            assert_eq!(added(signed), each(&|_| 1 - 128 * i32::from(i16::MAX) - 3 * 127));
            assert_eq!(added(unsigned_pairs), each(&|_| 1 + 128 * i32::from(i16::MAX) - 3 * 127));
            assert_eq!(lanes(b.less_32(b.splat(9), sums)), each(&|l| 9 - 32 * (7 + 127 * (-128 - 127 + l - 128))));
            let found = floats(b.float(b.splat(((1 << 24) + 3_i32).cast_unsigned())));
            assert_eq!(found, vec![16_777_220.0; B::WIDTH]);
            let halves: Vec<u8> = (0..B::WIDTH as u16).flat_map(|h| f16::from_bits(h + 1).to_le_bytes()).collect();
            let numbers: Vec<f32> = (0..B::WIDTH as u16).map(|h| f16::from_bits(h + 1).to_f32()).collect();
            // SAFETY: one for each output.
            let (widened, loaded) = unsafe { (b.load_f16(halves.as_ptr()), b.load_f32(numbers.as_ptr())) };
            assert_eq!((floats(widened), floats(loaded)), (numbers.clone(), numbers.clone()));
            let (two, of) =
                (b.splat_f32(2.0), |f: &dyn Fn(f32) -> f32| numbers.iter().map(|x| f(*x)).collect::<Vec<_>>());
            assert_eq!(floats(b.add(loaded, two)), of(&|x| x + 2.0));
            assert_eq!(floats(b.sub(loaded, two)), of(&|x| x - 2.0));
            assert_eq!(floats(b.mul(loaded, two)), of(&|x| x * 2.0));
        }
    }

    /// The same for what is done beside tiles.
    struct EveryOperationBesideTiles;

    impl TiledKernel for EveryOperationBesideTiles {
        #[inline(always)]
        fn run<B: BesideTiles>(self, b: B) {
            let check = |v: B::I, expected: u32| {
                let mut lanes = vec![0_u32; B::WIDTH];
                // SAFETY: a lane of 32 bits for each output.
                unsafe { b.store(v, lanes.as_mut_ptr().cast()) };
                assert_eq!(lanes, vec![expected; B::WIDTH]);
            };
            let number = b.splat(0o752_643);
            check(b.digit(number, 0), 0x0303_0303);
            check(b.digit(number, 3), 0x0404_0404);
            check(b.digit(number, 6), 0x0606_0606);
            check(b.times(b.splat(0x3f00_1f3f), b.splat(0x0404_0404)), 0xfc00_7cfc);
            check(b.times(b.splat(0x1f1f_1f1f), b.splat(0x0707_0000)), 0xd9d9_0000);
            check(b.xor(b.splat(0x3f3f_0001), b.splat(0x003f_3f00)), 0x3f00_3f01);
            check(b.minus(b.splat(0x00fc_8000), b.splat(0x0180_ff00)), 0xff7c_8100);
            check(b.eightfold(b.splat(0x0010_0001), b.splat(0xffff_ffff)), 0x0080_0007);
        }
    }

    #[test]
    fn every_operation_beside_tiles_does_what_it_says() {
        for tiles in crate::testing::isas_aloud().into_iter().filter_map(Tiles::<64>::set_up) {
            run_tiled(&tiles, EveryOperationBesideTiles);
        }
    }

    #[test]
    fn every_operation_of_every_available_isa_does_what_it_says() {
        for isa in crate::testing::isas_aloud() {
            assert!(form(isa).is_available(), "{isa}");
            run(form(isa), EveryOperation(form(isa)));
        }
    }
}
