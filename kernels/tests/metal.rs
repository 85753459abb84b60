//! The ops' Metal sources against their oracles, without a GPU (`grid/mod.rs`, `metal/`), launched by the descriptions that whoever owns
//! a GPU follows, too. What this cannot show is that a compiler for Metal takes them, and a GPU's own arithmetic and speed.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test panics to fail, and says what it skips")]

mod grid;
mod suite;

use grid::Harness;
use half::f16;
use kernels::attention::Reach;
use kernels::launch::metal::{
    Access, Attention, Error, Gelu, Glu, Launch, LayerNorm, Pool, RmsNorm, Rotary, Rows, Type,
};
use kernels::linear::Activation;
use kernels::pool::{Kind, Norm};
use kernels::testing::Fill;
use suite::{Backend, F16, F32};

static HARNESS: Harness = Harness::new("metal");

/// A place in memory.
#[derive(Clone, Copy, Debug)]
struct Place {
    piece: usize,
    /// In bytes.
    offset: usize,
}

/// What a device's memory holds, in pieces.
#[derive(Clone, Default)]
struct Memory(Vec<Vec<u8>>);

impl Memory {
    fn put(&mut self, bytes: Vec<u8>) -> Place {
        self.0.push(bytes);
        Place { piece: self.0.len() - 1, offset: 0 }
    }

    /// Does a launch, and gives the memory behind it.
    fn after(&self, launch: &Launch<Place>) -> Option<Self> {
        assert_eq!(launch.buffers.len(), launch.module.buffers.len(), "{}", launch.function);
        let mut input = launch.groups.to_vec();
        input.extend([launch.threads, launch.params.len() as u32]);
        input.extend(&launch.params);
        input.push(self.0.len() as u32);
        let mut input: Vec<u8> = input.iter().flat_map(|word| word.to_le_bytes()).collect();
        let words = |words: &[usize]| words.iter().flat_map(|word| (*word as u32).to_le_bytes()).collect::<Vec<u8>>();
        for piece in &self.0 {
            input.extend(words(&[piece.len()]));
            input.extend(piece);
        }
        input.extend(words(&[launch.buffers.len()]));
        let is_written = |access: &Access| usize::from(*access == Access::Write);
        for (place, access) in launch.buffers.iter().zip(launch.module.buffers) {
            input.extend(words(&[place.piece, place.offset, is_written(access)]));
        }
        let answer = HARNESS.run(&[launch.function.to_owned()], &input)?;
        let mut rest = answer.as_slice();
        let after = self.0.iter().map(|piece| {
            let (own, others) = rest.split_at(piece.len());
            rest = others;
            own.to_vec()
        });
        let after = Self(after.collect());
        for (index, (piece, before)) in after.0.iter().zip(&self.0).enumerate() {
            let of_piece = launch.buffers.iter().zip(launch.module.buffers).filter(|(place, _)| place.piece == index);
            let may_change = of_piece.into_iter().any(|(_, access)| *access == Access::Write);
            assert!(may_change || piece == before, "{}: buffer {index} is only read", launch.function);
        }
        Some(after)
    }

    /// The same where the function strides over rows, also with fewer threadgroups than there are rows.
    fn after_rows(&self, mut launch: Launch<Place>) -> Option<Self> {
        let after = self.after(&launch)?;
        launch.groups[1] = launch.groups[1].min(2);
        assert!(self.after(&launch)?.0 == after.0, "{}: with two rows of threadgroups", launch.function);
        Some(after)
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn words(values: &[usize]) -> Vec<u8> {
    values.iter().flat_map(|x| u32::try_from(*x).unwrap().to_le_bytes()).collect()
}

fn elements(of: Type, values: &[f32]) -> Vec<u8> {
    match of {
        Type::F32 => floats(values),
        Type::F16 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
    }
}

fn values(of: Type, bytes: &[u8]) -> Vec<f32> {
    match of {
        Type::F32 => bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect(),
        Type::F16 => bytes.chunks_exact(2).map(|x| f16::from_le_bytes(x.try_into().unwrap()).to_f32()).collect(),
    }
}

/// What is to be written holds this before.
fn unwritten(of: Type, count: usize) -> Vec<u8> {
    elements(of, &vec![7.0; count])
}

/// Some columns of rows as a matrix of their own: `first` elements that belong to nobody, and then rows of `own_stride`.
fn columns(x: &[f32], stride: usize, from: usize, width: usize, first: usize, own_stride: usize) -> Vec<f32> {
    let rows = x.chunks_exact(stride).map(|row| &row[from..from + width]);
    let padded = rows.flat_map(|row| [row, &vec![7.0; own_stride - width]].concat());
    std::iter::repeat_n(7.0, first).chain(padded).collect()
}

/// Numbers and arrays as the suite describes them at each op.
fn run(function: &str, scalar: f32, numbers: &[usize], arrays: &[&[f32]]) -> Option<Vec<f32>> {
    let (of, op) = match function.split_once("_f32") {
        Some((op, _)) => (Type::F32, op),
        None => (Type::F16, function.split_once("_f16").unwrap().0),
    };
    let memory = &mut Memory::default();
    let width = if of == Type::F32 { 4 } else { 2 };
    let put = |memory: &mut Memory, values: &[f32]| memory.put(elements(of, values));
    let make = |launch: Result<Launch<Place>, Error>| {
        let launch = launch.unwrap();
        assert_eq!(launch.function, function);
        launch
    };
    let written = match (op, arrays) {
        ("attention", &[x, bias]) => {
            let &[heads, kv_heads, head_dim, stride, behind, ahead, span, has_bias, ref cu_seqlens @ ..] = numbers
            else {
                panic!()
            };
            let (q, kv, sequences) = (heads * head_dim, kv_heads * head_dim, cu_seqlens.len() - 1);
            let first = put(memory, x);
            let [k, v] = [(q, 8), (q + kv, 16)].map(|(from, gap)| match stride > q + 2 * kv {
                // Keys and values lie elsewhere, each at a stride of its own.
                true => {
                    let own = put(memory, &columns(x, stride, from, kv, gap, kv + gap));
                    Rows { first: Place { offset: gap * width, ..own }, stride: kv + gap }
                }
                // All in one place, side by side.
                false => Rows { first: Place { offset: from * width, ..first }, stride },
            });
            let far = |distance: usize| if distance == u32::MAX as usize { usize::MAX } else { distance };
            let bias = (has_bias == 1).then(|| (memory.put(floats(bias)), span));
            let launch = Attention {
                sequences,
                longest: cu_seqlens.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap(),
                heads,
                kv_heads,
                head_dim,
                scale: scalar,
                reach: Reach { behind: far(behind), ahead: far(ahead) },
                q: Rows { first, stride },
                k,
                v,
                cu_seqlens: memory.put(words(cu_seqlens)),
                bias,
                out: memory.put(unwritten(of, cu_seqlens[sequences] * q)),
            };
            let after = memory.after(&make(launch.launch(of)))?;
            vec![values(of, after.0.last().unwrap())]
        }
        ("gelu", &[x, bias]) => {
            let &[rows, dim, has_bias] = numbers else { panic!() };
            let x = put(memory, x);
            let bias = (has_bias == 1).then(|| put(memory, bias));
            let after = memory.after_rows(make(Gelu { rows, dim, x, bias }.launch(of)))?;
            vec![values(of, &after.0[x.piece])]
        }
        ("glu", &[x]) => {
            use Activation::{Gelu, GeluTanh, None, Relu, Silu, Tanh};
            let &[rows, dim, activation] = numbers else { panic!() };
            let activation = [None, Gelu, GeluTanh, Silu, Relu, Tanh].into_iter().find(|a| *a as usize == activation);
            let activation = activation.unwrap();
            let (x, out) = (put(memory, x), memory.put(unwritten(of, rows * dim)));
            let after = memory.after_rows(make(Glu { rows, dim, activation, x, out }.launch(of)))?;
            vec![values(of, &after.0[out.piece])]
        }
        ("layer_norm", &[x, residual, weight, bias]) => {
            let &[rows, dim, has_residual] = numbers else { panic!() };
            let x = put(memory, x);
            let residual = (has_residual == 1).then(|| put(memory, residual));
            let (weight, bias) = (put(memory, weight), put(memory, bias));
            let out = memory.put(unwritten(of, rows * dim));
            let launch = LayerNorm { rows, dim, eps: scalar, x, residual, weight, bias, out };
            let after = memory.after(&make(launch.launch(of)))?;
            vec![values(of, &after.0[out.piece])]
        }
        ("rms_norm", &[x, residual, weight]) => {
            let &[rows, dim, has_residual] = numbers else { panic!() };
            let x = put(memory, x);
            let residual = (has_residual == 1).then(|| put(memory, residual));
            let weight = put(memory, weight);
            // In place: the result where x was, the sum where the residual was.
            let launch = RmsNorm { rows, dim, eps: scalar, x, residual, weight, sum: residual, out: x };
            let after = memory.after(&make(launch.launch(of)))?;
            let mut results = vec![values(of, &after.0[x.piece])];
            if let Some(residual) = residual {
                results.push(values(of, &after.0[residual.piece]));
                // Where nobody wants the sum, what stands for it stays as it is, and the result is the same elsewhere.
                let (out, nobodys) = (memory.put(unwritten(of, rows * dim)), memory.put(unwritten(of, rows * dim)));
                let mut apart = make(RmsNorm { sum: None, out, ..launch }.launch(of));
                apart.buffers[3] = nobodys;
                let apart = memory.after(&apart)?;
                assert!(apart.0[out.piece] == after.0[x.piece], "{function} without a place for the sum");
                assert!(apart.0[nobodys.piece] == memory.0[nobodys.piece], "{function} writes a sum that nobody wants");
            }
            results
        }
        ("pool", &[x]) => {
            let &[dim, kind, normalise, ref cu_seqlens @ ..] = numbers else { panic!() };
            let kind = [Kind::Mean, Kind::Cls, Kind::Last].into_iter().find(|k| *k as usize == kind).unwrap();
            let norm = if normalise == 1 { Norm::L2 } else { Norm::None };
            let sequences = cu_seqlens.len() - 1;
            let (x, cu_seqlens) = (put(memory, x), memory.put(words(cu_seqlens)));
            let out = memory.put(unwritten(Type::F32, sequences * dim));
            let launch = Pool { sequences, dim, kind, norm, x, cu_seqlens, out };
            let after = memory.after(&make(launch.launch(of)))?;
            vec![values(Type::F32, &after.0[out.piece])]
        }
        ("rotary", &[x, cos, sin]) => {
            let &[stride, width, half, _, ref positions @ ..] = numbers else { panic!() };
            let x = put(memory, x);
            let (cos, sin) = (memory.put(floats(cos)), memory.put(floats(sin)));
            let (rows, positions) = (positions.len(), memory.put(words(positions)));
            let launch = Rotary { rows, stride, width, head_dim: 2 * half, x, positions, cos, sin };
            let after = memory.after_rows(make(launch.launch(of)))?;
            vec![values(of, &after.0[x.piece])]
        }
        (other, arrays) => panic!("{other} with {} arrays", arrays.len()),
    };
    Some(written.concat())
}

const METAL: Backend = Backend {
    types: &[F32, F16],
    fills: &[Fill::Normal, Fill::Offset, Fill::Constant, Fill::Nan, Fill::Infinite],
    run,
};

#[test]
fn attention_agrees_with_the_oracle_on_lengths_and_heads_of_all_sizes() {
    METAL.attention();
}

#[test]
fn attention_agrees_with_the_oracle_where_not_every_key_is_seen() {
    METAL.attention_reach();
}

#[test]
fn attention_agrees_with_the_oracle_with_a_bias() {
    METAL.attention_bias();
}

#[test]
fn attention_agrees_with_the_oracle_on_unusual_data() {
    METAL.attention_data();
}

#[test]
fn attention_of_a_sequence_is_the_same_alone_and_among_others() {
    METAL.attention_alone();
}

#[test]
fn gelu_agrees_with_the_oracle() {
    METAL.gelu();
}

#[test]
fn glu_agrees_with_the_oracle() {
    METAL.glu();
}

#[test]
fn layer_norm_agrees_with_the_oracle() {
    METAL.layer_norm();
}

#[test]
fn pool_agrees_with_the_oracle() {
    METAL.pool();
}

#[test]
fn rms_norm_agrees_with_the_oracle() {
    METAL.rms_norm();
}

#[test]
fn rotary_agrees_with_the_oracle() {
    METAL.rotary();
}
