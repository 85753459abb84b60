//! The dense layer over blocks: blocks are read and written as the format says, sums are those of the oracle on every instruction set,
//! and what does not fit is refused.

use half::f16;
use proptest::prelude::*;

use super::*;
use crate::launch::Isa;
use crate::testing::{Fill, Numbers, Tolerance, compare, isas_aloud, normal};

/// Weights of a size that keeps sums near 1.
fn numbers(seed: u64, n: usize, k: usize) -> Vec<f32> {
    normal(seed, n * k).iter().map(|w| w / (k as f32).sqrt()).collect()
}

/// Blocks of any bytes, but for their scales `d` and `dmin`, which are these, one after the other.
fn any_bytes(blocks: Blocks, seed: u64, count: usize, scales: &[f16]) -> Vec<u8> {
    let mut numbers = Numbers::new(seed);
    let mut bytes: Vec<u8> = (0..count * blocks.bytes()).map(|_| (numbers.bits() >> 56) as u8).collect();
    for (index, block) in bytes.chunks_exact_mut(blocks.bytes()).enumerate() {
        let d = scales[index % scales.len()];
        let at = if blocks == Blocks::Q6_K { 208 } else { 0 };
        block[at..at + 2].copy_from_slice(&d.to_le_bytes());
        if blocks.has_minimums() {
            block[2..4].copy_from_slice(&f16::from_bits(d.to_bits() + 1).to_le_bytes());
        }
    }
    bytes
}

fn packed(isa: Isa, blocks: Blocks, bytes: &[u8], k: usize) -> Quantized {
    Quantized::new_on(isa, blocks, &[bytes], k).unwrap()
}

/// Types whose rows need not be multiples of 256.
fn small_blocks() -> impl Iterator<Item = Blocks> {
    Blocks::ALL.iter().copied().filter(|blocks| blocks.elements() == 32)
}

fn rows(x: &[f32], weights: &Quantized) -> Rows {
    let mut rows = Rows::default();
    rows.quantize(x, weights).unwrap();
    rows
}

fn dequantized(blocks: Blocks, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; bytes.len() / blocks.bytes() * blocks.elements()];
    dequantize(blocks, bytes, &mut out).unwrap();
    out
}

/// How far each sum may be from the oracle's: each block's is rounded five times (whole numbers to f32, twice; two products; a
/// difference), then the sum of all as often as there are blocks, by 2⁻²⁴ of what is there then, which is at most the sum of the
/// magnitudes of all that it is made of. Below the smallest normal number it is that number's last digit.
fn allowed(x: &Rows, weights: &Quantized) -> Vec<f64> {
    let (blocks, count, elements) = (weights.blocks(), weights.blocks_a_row(), weights.blocks().elements());
    // What is taken away for minimums, and for the 32 of 6 bits, is not more than twice the greatest weight of a block.
    let most = |j: usize, index: usize| {
        let block = weights.block(j, index);
        (0..elements).map(|p| block.weight(blocks, p).abs()).fold(0.0, f64::max) * 2.0
    };
    let of_row = |row: usize, index: usize| {
        let q: f64 = (0..elements).map(|p| f64::from(x.get(row, index * elements + p).unsigned_abs())).sum();
        f64::from(x.scale(row, index)) * q
    };
    let table = |rows: usize, f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        (0..rows * count).map(|i| f(i / count, i % count)).collect()
    };
    let (most, of_row) = (table(weights.outputs(), &most), table(x.len(), &of_row));
    let each = of_row.chunks(count).flat_map(|x| most.chunks(count).map(move |w| (x, w)));
    each.map(|(x, w)| {
        let magnitude: f64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
        magnitude * (count + 6) as f64 * 2.0_f64.powi(-24) + count as f64 * 1e-44
    })
    .collect()
}

/// One product, held against the oracle's.
fn check_product(isa: Isa, blocks: Blocks, bytes: &[u8], k: usize, x: &[f32]) {
    let weights = packed(isa, blocks, bytes, k);
    let x = rows(x, &weights);
    let (m, n) = (x.len(), weights.outputs());
    let (mut found, mut expected) = (vec![7.0; m * n], vec![0.0; m * n]);
    linear_quantized(&x, &weights, &Epilogue::default(), &mut found).unwrap();
    cpu::linear_quantized(&x, &weights, &Epilogue::default(), &mut expected).unwrap();
    let allowed = allowed(&x, &weights);
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let (off, allowed) = ((f64::from(*found) - f64::from(*expected)).abs(), allowed[index]);
        let same = found.is_nan() && expected.is_nan() || found == expected || off <= allowed;
        assert!(same, "{isa} {blocks:?} {m}x{k}x{n}: element {index} is {found:e}, not {expected:e} ± {allowed:e}");
    }
}

#[test]
#[expect(clippy::excessive_precision, reason = "the numbers as they are, to the last bit")]
fn blocks_are_read_as_the_reference_reader_reads_them() {
    // Three blocks of splitmix64's bytes (seed 5), `d` (and `dmin` above it) as below, as gguf 0.19.0's `quants.dequantize` reads them:
    // Σ i · w_i with i from 1, Σ |w_i|, and some weights of the first block.
    type Expected<'a> = (Blocks, f64, f64, &'a [(usize, f32)]);
    #[rustfmt::skip]
    let expected: [Expected<'_>; 9] = [
        (Blocks::Q4_0, -10.381857335567474, 14.445120513439178,
            &[(0, 0.2999267578125), (1, 0.0999755859375), (15, -0.199951171875), (16, -0.4998779296875), (31, -0.0999755859375)]),
        (Blocks::Q4_1, 509.4388352036476, 26.416669070720673,
            &[(0, 0.10003662109375), (1, 0.20001220703125), (15, 0.49993896484375), (16, 0.39996337890625), (31, 0.79986572265625)]),
        (Blocks::Q5_0, -107.95010036230087, 21.763387262821198,
            &[(0, 1.19970703125), (1, 0.199951171875), (15, -0.39990234375), (16, -0.0999755859375), (31, -0.0999755859375)]),
        (Blocks::Q5_1, 949.4021801948547, 50.52520179748535,
            &[(0, 1.39971923828125), (1, 1.09979248046875), (15, 0.10003662109375), (16, 0.69989013671875), (31, 3.09930419921875)]),
        (Blocks::IQ4_NL, 83.46823471784592, 204.5102024078369,
            &[(0, 3.799072265625), (1, 1.2996826171875), (15, -2.199462890625), (16, -6.4984130859375), (31, -0.999755859375)]),
        (Blocks::Q8_0, 1574.3128424286842, 194.96501702070236,
            &[(0, 5.8985595703125), (1, 2.4993896484375), (15, 11.797119140625), (16, 3.9990234375), (31, 9.99755859375)]),
        (Blocks::Q4_K, 763126.8801622391, 5932.702451169491,
            &[(0, 14.69366455078125), (31, 43.48663330078125), (63, 46.886962890625), (127, -2.2015380859375), (200, 74.87982177734375), (255, -1.50054931640625)]),
        (Blocks::Q5_K, 1821706.2747018337, 13473.543940782547,
            &[(0, 14.69366455078125), (31, 62.68194580078125), (63, 69.9813232421875), (127, 2.5972900390625), (200, 59.28363037109375), (255, 88.07757568359375)]),
        (Blocks::Q6_K, -645779.569914043, 27557.891373217106,
            &[(0, -255.1376953125), (16, 246.33984375), (63, -62.384765625), (127, -95.9765625), (200, -79.98046875), (255, -29.6927490234375)]),
    ];
    let scales = [0x2e66, 0x1bcd, 0x0003].map(f16::from_bits);
    for (blocks, weighted, magnitude, some) in expected {
        let w = dequantized(blocks, &any_bytes(blocks, 5, 3, &scales));
        some.iter().for_each(|(p, value)| assert_eq!(w[*p], *value, "{blocks:?}: weight {p}"));
        // The reference adds up in f32 here and there, so that the last digits differ.
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-6;
        let found: f64 = w.iter().enumerate().map(|(i, w)| (i + 1) as f64 * f64::from(*w)).sum();
        assert!(near(found, weighted), "{blocks:?}: {found} is not {weighted}");
        let found: f64 = w.iter().map(|w| f64::from(w.abs())).sum();
        assert!(near(found, magnitude), "{blocks:?}: {found} is not {magnitude}");
    }
}

#[test]
fn packed_weights_are_those_of_the_file() {
    for isa in isas_aloud() {
        for blocks in Blocks::ALL {
            let k = 3 * 256;
            let bytes = any_bytes(*blocks, 1, 21 * k / blocks.elements(), &[f16::ONE, f16::from_f32(-0.3)]);
            let weights = packed(isa, *blocks, &bytes, k);
            let expected = dequantized(*blocks, &bytes);
            for (index, expected) in expected.iter().enumerate() {
                let (j, p) = (index / k, index % k);
                let found = weights.block(j, p / blocks.elements()).weight(*blocks, p % blocks.elements());
                assert_eq!(found as f32, *expected, "{isa} {blocks:?}: weight {p} of output {j}");
            }
        }
    }
}

#[test]
fn packed_weights_need_hardly_more_memory_than_the_file() {
    for blocks in Blocks::ALL {
        let (n, k) = (64, 1024);
        let bytes = quantize(*blocks, &numbers(1, n, k)).unwrap();
        for isa in isas_aloud() {
            let bits = 8.0 * packed(isa, *blocks, &bytes, k).bytes() as f64 / (n * k) as f64;
            let expected = match blocks {
                Blocks::Q4_K => 4.625,
                Blocks::Q5_K => 5.625,
                _ => 8.0 * blocks.bytes() as f64 / blocks.elements() as f64,
            };
            assert_eq!(bits, expected, "{isa} {blocks:?}");
        }
    }
}

#[test]
fn every_isa_agrees_with_the_oracle_on_shapes_around_every_block() {
    for isa in isas_aloud() {
        for blocks in Blocks::ALL {
            for m in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 33, 50] {
                for (n, steps) in [(1, 1), (7, 3), (8, 1), (16, 3), (17, 2), (33, 1), (64, 1)] {
                    let k = 256 * steps;
                    let bytes = quantize(*blocks, &numbers(2, n, k)).unwrap();
                    check_product(isa, *blocks, &bytes, k, &normal(1, m * k));
                }
            }
        }
        for blocks in small_blocks() {
            for (m, k) in [(6, 32), (1, 96), (4, 288), (9, 576), (16, 32), (35, 96), (18, 288), (64, 576)] {
                let bytes = quantize(blocks, &numbers(2, 19, k)).unwrap();
                check_product(isa, blocks, &bytes, k, &normal(1, m * k));
            }
        }
    }
}

#[test]
fn many_rows_agree_with_the_oracle() {
    for isa in isas_aloud() {
        for blocks in Blocks::ALL {
            // More than are taken at a time, and so many inputs that fewer are taken.
            for (m, k) in [(131, 256), (67, 8192), (259, 256), (150, 8192)] {
                let bytes = quantize(*blocks, &numbers(2, 17, k)).unwrap();
                check_product(isa, *blocks, &bytes, k, &normal(1, m * k));
            }
        }
    }
}

#[test]
fn every_isa_agrees_with_the_oracle_on_every_kind_of_data() {
    for isa in isas_aloud() {
        for blocks in Blocks::ALL {
            // But for the largest numbers, whose sums f32 does not hold.
            for fill in Fill::ALL.iter().filter(|fill| **fill != Fill::Largest) {
                let (m, n, k) = (21, 18, 512);
                let x = fill.numbers(1, m * k);
                let bytes = quantize(*blocks, &numbers(2, n, k)).unwrap();
                check_product(isa, *blocks, &bytes, k, &x);
                let weights = packed(isa, *blocks, &bytes, k);
                let mut found = vec![0.0; m * n];
                linear_quantized(&rows(&x, &weights), &weights, &Epilogue::default(), &mut found).unwrap();
                for (x, y) in x.chunks(k).zip(found.chunks(n)) {
                    let is_number = x.iter().all(|x| x.is_finite());
                    assert!(y.iter().all(|y| y.is_nan() != is_number), "{isa} {blocks:?} {fill:?}: {y:?}");
                }
            }
        }
    }
}

#[test]
fn every_isa_agrees_with_the_oracle_on_any_bytes_and_extremes_of_scales() {
    let smallest = f16::from_bits(1);
    for isa in isas_aloud() {
        for blocks in Blocks::ALL {
            for d in [f16::ZERO, smallest, f16::MIN_POSITIVE, f16::ONE, f16::from_bits(f16::MAX.to_bits() - 1)] {
                for sign in [1.0, -1.0] {
                    let d = f16::from_f32(d.to_f32() * sign);
                    let bytes = any_bytes(*blocks, 3, 18 * 512 / blocks.elements(), &[d, f16::from_f32(0.01)]);
                    [6, 16].iter().for_each(|m| check_product(isa, *blocks, &bytes, 512, &normal(1, m * 512)));
                }
            }
        }
    }
}

#[test]
fn the_greatest_sums_do_not_overflow() {
    // Every bit of the scales and the elements set, and rows of the greatest elements.
    for isa in isas_aloud() {
        for blocks in Blocks::ALL {
            for (fill, scale) in [(0xff, 0x7f), (0xff, 0x80), (0x00, 0x80)] {
                let mut bytes = vec![fill; 9 * 512 / blocks.elements() * blocks.bytes()];
                for block in bytes.chunks_exact_mut(blocks.bytes()) {
                    let half = f16::ONE.to_le_bytes();
                    match blocks {
                        Blocks::Q6_K => {
                            block[192..208].fill(scale);
                            block[208..].copy_from_slice(&half);
                            continue;
                        }
                        Blocks::Q8_0 => block.fill(scale),
                        _ => {}
                    }
                    block[..2].copy_from_slice(&half);
                    if blocks.has_minimums() {
                        block[2..4].copy_from_slice(&half);
                    }
                }
                for x in [3.0, -3.0] {
                    [5, 17].iter().for_each(|m| check_product(isa, *blocks, &bytes, 512, &vec![x; m * 512]));
                }
            }
        }
    }
}

#[test]
fn numbers_that_have_a_form_in_8_bits_give_exact_results() {
    for isa in isas_aloud() {
        for blocks in Blocks::ALL {
            // Whole numbers whose greatest is 127: the step is 1. Weights are whole numbers, too: any bytes, and scales of 1.
            let (n, k) = (5, 512);
            let mut x: Vec<f32> = (0..k).map(|p| (p * 7 % 255) as f32 - 127.0).collect();
            x.chunks_mut(32).for_each(|x| x[3] = 127.0);
            let bytes = any_bytes(*blocks, 4, n * k / blocks.elements(), &[f16::ONE]);
            // `dmin` is not 1 but the next f16, so that products stay exact in 24 bits only where there is none.
            let weights = dequantized(*blocks, &bytes);
            let packed = packed(isa, *blocks, &bytes, k);
            let mut found = vec![0.0; n];
            linear_quantized(&rows(&x, &packed), &packed, &Epilogue::default(), &mut found).unwrap();
            for (found, w) in found.iter().zip(weights.chunks(k)) {
                let expected: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                let most = if blocks.has_minimums() { 1e-5 * expected.abs().max(1e5) } else { 0.0 };
                let rounded = f64::from(expected as f32);
                assert!((f64::from(*found) - rounded).abs() <= most, "{isa} {blocks:?}: {found} is not {expected}");
            }
        }
    }
}

#[test]
fn every_isa_gives_the_same_bits() {
    for blocks in Blocks::ALL {
        for m in [1, 4, 7, 16, 39, 70] {
            let (n, k) = (40, 768);
            let bytes = quantize(*blocks, &numbers(2, n, k)).unwrap();
            let on = |isa| {
                let weights = packed(isa, *blocks, &bytes, k);
                let mut out = vec![0.0; m * n];
                linear_quantized(&rows(&normal(1, m * k), &weights), &weights, &Epilogue::default(), &mut out).unwrap();
                out
            };
            let scalar = on(Isa::Scalar);
            isas_aloud().into_iter().for_each(|isa| assert_eq!(on(isa), scalar, "{isa} {blocks:?}"));
        }
    }
}

#[test]
fn a_row_is_the_same_in_any_company_and_so_are_parts_of_the_outputs() {
    for isa in isas_aloud() {
        for blocks in Blocks::ALL {
            for m in [3, 8, 20, 70] {
                let (n, k) = (75, 512);
                let (x, bias, residual) = (normal(1, m * k), normal(3, n), normal(4, m * n));
                let weights = packed(isa, *blocks, &quantize(*blocks, &numbers(2, n, k)).unwrap(), k);
                let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Gelu, residual: Some(&residual) };
                let (mut whole, mut parts) = (vec![0.0; m * n], vec![0.0; m * n]);
                let all = rows(&x, &weights);
                linear_quantized(&all, &weights, &epilogue, &mut whole).unwrap();
                let middle = weights.panels() / 2;
                let (left, right) = Columns::whole(&mut parts, n).split_columns(weights.columns(0..middle).end);
                linear_quantized_columns(&all, &weights, middle..weights.panels(), &epilogue, right).unwrap();
                linear_quantized_columns(&all, &weights, 0..middle, &epilogue, left).unwrap();
                assert_eq!(parts, whole, "{isa} {blocks:?}");
                for row in [0, m / 2, m - 1] {
                    let mut one = vec![0.0; n];
                    let epilogue = Epilogue { residual: Some(&residual[row * n..][..n]), ..epilogue };
                    linear_quantized(&rows(&x[row * k..][..k], &weights), &weights, &epilogue, &mut one).unwrap();
                    assert_eq!(one, whole[row * n..][..n], "{isa} {blocks:?} row {row} of {m}");
                }
            }
        }
    }
}

#[test]
fn bias_activation_and_residual_follow_the_sums() {
    use Activation::{Gelu, GeluTanh, None, Relu, Silu, Tanh};
    let (n, k) = (21, 256);
    for isa in isas_aloud() {
        for m in [2, 9] {
            for activation in [None, Gelu, GeluTanh, Silu, Relu, Tanh] {
                let weights = packed(isa, Blocks::Q4_K, &quantize(Blocks::Q4_K, &numbers(2, n, k)).unwrap(), k);
                let (bias, residual) = (normal(3, n), normal(4, m * n));
                let epilogue = Epilogue { bias: Some(&bias), activation, residual: Some(&residual) };
                let (mut found, mut expected) = (vec![7.0; m * n], vec![0.0; m * n]);
                let x = rows(&normal(1, m * k), &weights);
                linear_quantized(&x, &weights, &epilogue, &mut found).unwrap();
                cpu::linear_quantized(&x, &weights, &epilogue, &mut expected).unwrap();
                let compared = compare(&found, &expected, Tolerance::F32);
                assert!(compared.is_ok(), "{isa} {activation:?}: {compared:?}");
            }
        }
    }
}

#[test]
fn rows_serve_every_type_whose_blocks_are_as_long() {
    for isa in isas_aloud() {
        let (n, k) = (9, 512);
        let weights = |blocks| packed(isa, blocks, &quantize(blocks, &numbers(2, n, k)).unwrap(), k);
        let x = normal(1, 3 * k);
        let shared = rows(&x, &weights(Blocks::Q6_K));
        let of_small = rows(&x, &weights(Blocks::Q8_0));
        for blocks in Blocks::ALL {
            let (weights, shared) = (weights(*blocks), if blocks.elements() == 32 { &of_small } else { &shared });
            let (mut found, mut expected) = (vec![0.0; 3 * n], vec![0.0; 3 * n]);
            linear_quantized(shared, &weights, &Epilogue::default(), &mut found).unwrap();
            linear_quantized(&rows(&x, &weights), &weights, &Epilogue::default(), &mut expected).unwrap();
            assert_eq!(found, expected, "{isa} {blocks:?}");
        }
        let error = linear_quantized(&shared, &weights(Blocks::Q8_0), &Epilogue::default(), &mut [0.0; 27]);
        let wanted = Error::Rows { found: k, found_block: 256, wanted: k, wanted_block: 32 };
        assert_eq!(error, Err(wanted));
    }
}

#[test]
fn rows_are_at_most_half_a_step_off_and_their_memory_is_used_again() {
    for isa in isas_aloud() {
        for blocks in [Blocks::Q8_0, Blocks::Q4_K] {
            let (m, k, block) = (3, 512, blocks.elements());
            let weights = packed(isa, blocks, &quantize(blocks, &numbers(2, 1, k)).unwrap(), k);
            let x = Fill::Large.numbers(1, m * k);
            let mut kept = rows(&normal(9, 11 * k), &weights);
            kept.quantize(&x, &weights).unwrap();
            assert_eq!(kept.len(), m);
            for (row, x) in x.chunks(k).enumerate() {
                for (index, x) in x.chunks(block).enumerate() {
                    let step = x.iter().fold(0.0_f32, |most, x| most.max(x.abs())) / 127.0;
                    assert_eq!(kept.scale(row, index), step);
                    for (p, x) in x.iter().enumerate() {
                        let q = f32::from(kept.get(row, index * block + p));
                        assert!((q * step - x).abs() <= step * 0.5001 && q.abs() <= 127.0, "{isa} {blocks:?}");
                    }
                }
            }
            kept.quantize(&[], &weights).unwrap();
            assert!(kept.is_empty());
        }
    }
}

#[test]
fn parts_lie_side_by_side() {
    for blocks in Blocks::ALL {
        let k = 256;
        let (a, b) = (quantize(*blocks, &numbers(1, 3, k)).unwrap(), quantize(*blocks, &numbers(2, 20, k)).unwrap());
        let joined = Quantized::new(*blocks, &[&a, &b], k).unwrap();
        assert_eq!((joined.outputs(), joined.inputs(), joined.blocks()), (23, k, *blocks));
        let x = normal(3, k);
        let y = |parts: &[&[u8]]| {
            let weights = Quantized::new(*blocks, parts, k).unwrap();
            let mut y = vec![0.0; weights.outputs()];
            linear_quantized(&rows(&x, &weights), &weights, &Epilogue::default(), &mut y).unwrap();
            y
        };
        assert_eq!(y(&[&a, &b]), [y(&[&a]), y(&[&b])].concat(), "{blocks:?}");
    }
}

#[test]
fn numbers_in_blocks_are_at_most_a_step_off() {
    // Half a step of the element, and what rounding scale and minimum to so many bits takes of the range.
    // Of Q4_0 and Q5_0 it is a whole step at the end that they do not reach, of IQ4_NL 14 of 127 there.
    for blocks in Blocks::ALL {
        let most = match blocks {
            Blocks::Q4_0 => 0.126,
            Blocks::Q4_1 => 0.068,
            Blocks::Q5_0 => 0.064,
            Blocks::Q5_1 => 0.034,
            Blocks::Q8_0 => 0.0045,
            Blocks::IQ4_NL => 0.112,
            Blocks::Q4_K => 0.091,
            Blocks::Q5_K => 0.057,
            Blocks::Q6_K => 0.025,
        };
        for fill in [Fill::Normal, Fill::Constant, Fill::Zero] {
            let values = fill.numbers(1, 2048);
            let found = dequantized(*blocks, &quantize(*blocks, &values).unwrap());
            for (found, values) in found.chunks(blocks.elements()).zip(values.chunks(blocks.elements())) {
                let range = values.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
                for (found, value) in found.iter().zip(values) {
                    assert!(
                        (found - value).abs() <= most * range,
                        "{blocks:?} {fill:?}: {found} for {value} of {range}"
                    );
                }
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for blocks in Blocks::ALL {
        let k = 256;
        let bytes = quantize(*blocks, &numbers(1, 4, k)).unwrap();
        let row = blocks.row_bytes(k).unwrap();
        let refused = |parts: &[&[u8]], k| Quantized::new(*blocks, parts, k).unwrap_err();
        assert_eq!(refused(&[&bytes], 250), Error::Inputs { inputs: 250, blocks: *blocks });
        assert!(refused(&[&bytes], 250).to_string().contains("whole blocks of"), "{}", refused(&[&bytes], 250));
        let wanted = Error::Bytes { bytes: 4 * row - 1, inputs: k, row, blocks: *blocks };
        assert_eq!(refused(&[&bytes, &bytes[1..]], k), wanted);
        assert!(wanted.to_string().contains(&format!("which have {row} bytes each")), "{wanted}");
        assert!(refused(&[], k).to_string().contains("at least 1"));
        assert!(refused(&[&[]], 0).to_string().contains("at least 1"));
        let damaged = any_bytes(*blocks, 1, 3 * k / blocks.elements(), &[f16::INFINITY]);
        assert_eq!(refused(&[&bytes, &damaged], k), Error::NotFinite { output: 4 });
        assert!(matches!(dequantize(*blocks, &bytes, &mut [0.0; 256]), Err(Error::Bytes { .. })));
        assert!(matches!(dequantize(*blocks, &bytes, &mut [0.0; 250]), Err(Error::Inputs { .. })));
        let mut values = numbers(1, 1, k);
        assert!(matches!(quantize(*blocks, &values[1..]), Err(Error::Inputs { .. })));
        values[200] = 1e30;
        let index = 200 / blocks.elements() * blocks.elements();
        assert_eq!(quantize(*blocks, &values), Err(Error::TooLarge { index, blocks: *blocks }));
        values[100] = f32::NAN;
        assert_eq!(quantize(*blocks, &values), Err(Error::NotANumber { index: 100 }));

        let weights = Quantized::new(*blocks, &[&bytes], k).unwrap();
        let x = rows(&normal(1, 2 * k), &weights);
        let input = linear::Error::Input { elements: 257, inputs: k };
        assert_eq!(Rows::default().quantize(&[0.0; 257], &weights), Err(input.into()));
        let none = Epilogue::default();
        let length = |what, found, wanted| Err(linear::Error::Length { what, found, wanted }.into());
        assert_eq!(linear_quantized(&x, &weights, &none, &mut [0.0; 7]), length("output", 7, 8));
        let bias = Epilogue { bias: Some(&[0.0; 3]), ..none };
        assert_eq!(linear_quantized(&x, &weights, &bias, &mut [0.0; 8]), length("bias", 3, 4));
        let panels = linear::Error::Panels { first: 0, end: 9, panels: weights.panels() };
        let found = linear_quantized_columns(&x, &weights, 0..9, &none, Columns::whole(&mut [0.0; 8], 4));
        assert_eq!(found, Err(panels.into()));
        assert!(matches!(linear_quantized(&Rows::default(), &weights, &none, &mut []), Err(Error::Rows { .. })));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Against the product in f32 of the weights that the file stands for: the error that rounding the rows allows, and no more.
    #[test]
    fn rounding_the_rows_is_all_that_is_lost(m in 1_usize..7, n in 1_usize..40, steps in 1_usize..4, seed in 0_u64..1000) {
        let k = 256 * steps;
        let x = normal(seed, m * k);
        for blocks in Blocks::ALL {
            let bytes = quantize(*blocks, &numbers(seed + 1, n, k)).unwrap();
            let w = dequantized(*blocks, &bytes);
            for isa in isas_aloud() {
                let weights = packed(isa, *blocks, &bytes, k);
                let mut found = vec![0.0; m * n];
                linear_quantized(&rows(&x, &weights), &weights, &Epilogue::default(), &mut found).unwrap();
                for (index, found) in found.iter().enumerate() {
                    let (x, w) = (&x[index / n * k..][..k], &w[index % n * k..][..k]);
                    let exact: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    let parts = x.chunks(blocks.elements()).zip(w.chunks(blocks.elements()));
                    let bound: f64 = parts.map(|(x, w)| {
                        let step = x.iter().fold(0.0_f64, |most, x| most.max(f64::from(x.abs()))) / 127.0;
                        w.iter().map(|w| f64::from(w.abs()) * step / 2.0).sum::<f64>()
                    }).sum();
                    let off = (f64::from(*found) - exact).abs();
                    prop_assert!(off <= bound * 1.001 + 1e-5, "{isa} {blocks:?}: {found} is not {exact} ± {bound}");
                }
            }
        }
    }
}
