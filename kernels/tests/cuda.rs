//! The ops' CUDA sources against their oracles, without a GPU (`grid/mod.rs`, `cuda/`). What this cannot show is a GPU's own
//! arithmetic and speed, and that the instructions for its tensor cores are what the header here says they are.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test panics to fail, and says what it skips")]

mod grid;
mod suite;

use grid::Harness;
use kernels::testing::Fill;
use suite::{BF16, Backend, F16, F32, Type};

static HARNESS: Harness = Harness::new("cuda");

const FILLS: &[Fill] = &[Fill::Normal, Fill::Offset, Fill::Constant, Fill::Nan, Fill::Infinite];

/// See `grid/io.h`.
fn run(function: &str, scalar: f32, numbers: &[usize], arrays: &[&[f32]]) -> Option<Vec<f32>> {
    let mut arguments = vec![function.to_owned(), scalar.to_string()];
    arguments.extend(numbers.iter().map(usize::to_string));
    let bytes: Vec<u8> = arrays.iter().flat_map(|array| array.iter().flat_map(|x| x.to_le_bytes())).collect();
    let answer = HARNESS.run(&arguments, &bytes)?;
    Some(answer.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect())
}

const CUDA: Backend = Backend { types: &[F32, F16, BF16], fills: FILLS, run };

/// With the form that bf16 has on a GPU whose tensor cores do not know it.
const ATTENTION: Backend = Backend { types: &[F32, F16, BF16, Type { ending: "plain-bf16", ..BF16 }], ..CUDA };

#[test]
fn attention_agrees_with_the_oracle_on_lengths_and_heads_of_all_sizes() {
    ATTENTION.attention();
}

#[test]
fn attention_agrees_with_the_oracle_where_not_every_key_is_seen() {
    ATTENTION.attention_reach();
}

#[test]
fn attention_agrees_with_the_oracle_with_a_bias() {
    ATTENTION.attention_bias();
}

#[test]
fn attention_agrees_with_the_oracle_where_something_is_added_to_its_operands() {
    ATTENTION.attention_shift();
}

#[test]
fn attention_agrees_with_the_oracle_on_unusual_data() {
    ATTENTION.attention_data();
}

#[test]
fn attention_of_a_sequence_is_the_same_alone_and_among_others() {
    ATTENTION.attention_alone();
}

#[test]
fn what_paged_attention_keeps_agrees_with_the_oracle() {
    CUDA.attention_paged_keep();
}

#[test]
fn paged_attention_of_single_queries_agrees_with_the_oracle() {
    CUDA.attention_paged_decode();
}

#[test]
fn paged_attention_of_chunks_agrees_with_the_oracle() {
    ATTENTION.attention_paged_prefill();
}

#[test]
fn paged_attention_agrees_with_the_oracle_where_not_every_key_is_seen() {
    ATTENTION.attention_paged_reach();
}

#[test]
fn paged_attention_agrees_with_the_oracle_on_unusual_data() {
    ATTENTION.attention_paged_data();
}

#[test]
fn paged_attention_of_a_sequence_is_the_same_alone_and_among_others() {
    CUDA.attention_paged_alone();
}

#[test]
fn bias_and_activation_behind_a_product_agree_with_the_oracle() {
    CUDA.linear();
}

#[test]
fn norms_behind_a_bias_agree_with_the_oracle() {
    CUDA.norms_behind_a_bias();
}

#[test]
fn glu_agrees_with_the_oracle() {
    CUDA.glu();
}

#[test]
fn embed_agrees_with_the_oracle() {
    CUDA.embed();
}

#[test]
fn layer_norm_agrees_with_the_oracle() {
    CUDA.layer_norm();
}

#[test]
fn pool_agrees_with_the_oracle() {
    CUDA.pool();
}

#[test]
fn rms_norm_agrees_with_the_oracle() {
    CUDA.rms_norm();
}

#[test]
fn rotary_agrees_with_the_oracle() {
    CUDA.rotary();
}

#[test]
fn sample_chooses_as_the_oracle_does() {
    CUDA.sample();
}

#[test]
fn sample_says_where_nothing_can_be_chosen() {
    CUDA.sample_refused();
}
