// Runs one op's CUDA source on the CPU, or where nvcc builds it on a GPU. What comes in and goes out: see grid/io.h. Launches
// are those that the heads of the
// sources ask for. The suite that calls it is suite/mod.rs.

#include "../../src/launch/numbers.cuh"
#ifndef CUDA_ON_THE_CPU
#include "device.h" // Built by nvcc, it runs them on a GPU.
#endif
#include "../grid/io.h"

// The sources have names in common.
namespace attention_source {
#include "../../src/attention/cuda.cu"
}
namespace gelu_source {
#include "../../src/gelu/cuda.cu"
}
namespace glu_source {
#include "../../src/glu/cuda.cu"
}
namespace layer_norm_source {
#include "../../src/layer_norm/cuda.cu"
}
namespace pool_source {
#include "../../src/pool/cuda.cu"
}
namespace rms_norm_source {
#include "../../src/rms_norm/cuda.cu"
}
namespace rotary_source {
#include "../../src/rotary/cuda.cu"
}

// heads, kv_heads, head_dim, row's stride, behind, ahead, span, whether there is a bias, cu_seqlens; queries, keys and
// values side by side, the bias
template <typename T, auto kernel, unsigned warps> static void attention() {
    const unsigned heads = numbers[0], kv_heads = numbers[1], d = numbers[2], stride = numbers[3], span = numbers[6];
    const std::vector<unsigned> cu_seqlens = numbers_from(8);
    const auto x = read<T>((size_t)cu_seqlens.back() * stride);
    const auto bias = read<float>(numbers[7] ? heads * (2 * span + 1) : 0);
    // Queries stay where they are; keys and values lie elsewhere, each at a stride of its own.
    const unsigned kv = kv_heads * d, k_stride = kv + 8, v_stride = kv + 16;
    const auto k = columns(x, stride, heads * d, kv, 8, k_stride), v = columns(x, stride, heads * d + kv, kv, 16, v_stride);
    std::vector<T> out((size_t)cu_seqlens.back() * heads * d, T(7.0f));
    unsigned longest = 0;
    for (size_t i = 1; i < cu_seqlens.size(); i++) {
        longest = std::max(longest, cu_seqlens[i] - cu_seqlens[i - 1]);
    }
    const Dim grid = {(longest + 16 * warps - 1) / (16 * warps), heads, (unsigned)cu_seqlens.size() - 1};
    run_grid(grid, {32, warps, 1}, [&] {
        LAUNCH(kernel)(x.data(), k.data() + 8, v.data() + 16, cu_seqlens.data(), numbers[7] ? bias.data() : nullptr, out.data(), stride,
               k_stride, v_stride, heads, kv_heads, d, scalar, numbers[4], numbers[5], span);
    });
    write(out);
}

// What runs bf16 below compute capability 8.0.
template <int D, int WARPS>
static __global__ void plain_bf16(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v, const unsigned *cu_seqlens,
                       const float *bias, __nv_bfloat16 *out, unsigned q_stride, unsigned k_stride, unsigned v_stride,
                       unsigned heads, unsigned kv_heads, unsigned head_dim, float scale, unsigned behind, unsigned ahead,
                       unsigned span) {
    attention_source::plain_in_tiles<__nv_bfloat16, D, WARPS>({q, k, v, cu_seqlens, bias, out, q_stride, k_stride, v_stride,
                                                               heads, kv_heads, head_dim, scale, behind, ahead, span});
}

// rows, dim, whether there is a bias; x, bias
template <typename T, auto kernel> static void gelu() {
    const unsigned rows = numbers[0], dim = numbers[1];
    auto x = read<T>((size_t)rows * dim);
    const auto bias = read<T>(numbers[2] ? dim : 0);
    // Two rows of blocks, so that the kernel has to stride.
    run_grid({(dim + 255) / 256, std::min(rows, 2u), 1}, {256, 1, 1},
             [&] { LAUNCH(kernel)(x.data(), numbers[2] ? bias.data() : nullptr, rows, dim); });
    write(x);
}

// rows, dim, activation; x
template <typename T, auto kernel> static void glu() {
    const unsigned rows = numbers[0], dim = numbers[1];
    const auto x = read<T>(2 * (size_t)rows * dim);
    std::vector<T> out((size_t)rows * dim, T(7.0f));
    run_grid({(dim + 255) / 256, std::min(rows, 2u), 1}, {256, 1, 1},
             [&] { LAUNCH(kernel)(x.data(), out.data(), rows, dim, numbers[2]); });
    write(out);
}

// rows, dim, whether there is a residual; x, residual, weight, bias
template <typename T, auto kernel> static void layer_norm() {
    const unsigned rows = numbers[0], dim = numbers[1];
    const auto x = read<T>((size_t)rows * dim), residual = read<T>(numbers[2] ? (size_t)rows * dim : 0);
    const auto weight = read<T>(dim), bias = read<T>(dim);
    std::vector<T> out(x.size(), T(7.0f));
    run_grid({(rows + 3) / 4, 1, 1}, {32, 4, 1}, [&] {
        LAUNCH(kernel)(x.data(), numbers[2] ? residual.data() : nullptr, weight.data(), bias.data(), out.data(), scalar, rows, dim);
    });
    write(out);
}

// dim, kind, whether to normalise, cu_seqlens; x
template <typename T, auto kernel> static void pool() {
    const unsigned dim = numbers[0];
    const std::vector<unsigned> cu_seqlens = numbers_from(3);
    const auto x = read<T>((size_t)cu_seqlens.back() * dim);
    std::vector<float> out((cu_seqlens.size() - 1) * dim, 7.0f);
    run_grid({(unsigned)cu_seqlens.size() - 1, 1, 1}, {256, 1, 1},
             [&] { LAUNCH(kernel)(x.data(), cu_seqlens.data(), out.data(), dim, numbers[1], numbers[2]); });
    write(out);
}

// rows, dim, whether there is a residual; x, residual, weight. The result, and with a residual the sum.
template <typename T, auto kernel> static void rms_norm() {
    const unsigned rows = numbers[0], dim = numbers[1];
    auto x = read<T>((size_t)rows * dim), residual = read<T>(numbers[2] ? (size_t)rows * dim : 0);
    const auto weight = read<T>(dim);
    // In place: the result where x was, the sum where the residual was.
    T *const other = numbers[2] ? residual.data() : nullptr;
    run_grid({(rows + 3) / 4, 1, 1}, {32, 4, 1},
             [&] { LAUNCH(kernel)(x.data(), other, weight.data(), other, x.data(), scalar, rows, dim); });
    write(x);
    write(residual);
}

// stride, width, half, positions in the tables, each row's position; x, cos, sin
template <typename T, auto kernel> static void rotary() {
    const unsigned stride = numbers[0], width = numbers[1], half = numbers[2];
    const std::vector<unsigned> positions = numbers_from(4);
    const unsigned rows = (unsigned)positions.size();
    auto x = read<T>((size_t)rows * stride);
    const auto cos = read<float>((size_t)numbers[3] * half), sin = read<float>((size_t)numbers[3] * half);
    run_grid({(width / 2 + 255) / 256, std::min(rows, 2u), 1}, {256, 1, 1},
             [&] { LAUNCH(kernel)(x.data(), positions.data(), cos.data(), sin.data(), rows, stride, width, half); });
    write(x);
}

#define ON_EVERY_TYPE(op)                                                                                                 \
    {#op "_f32", op<float, op##_source::op##_f32>}, {#op "_f16", op<__half, op##_source::op##_f16>}, {                    \
        #op "_bf16", op<__nv_bfloat16, op##_source::op##_bf16>                                                            \
    }
#define ATTENTIONS(D, warps)                                                                                              \
    {"attention_f32_" #D, attention<float, attention_source::attention_f32_##D, warps>},                                  \
        {"attention_f16_" #D, attention<__half, attention_source::attention_f16_##D, warps>},                             \
        {"attention_bf16_" #D, attention<__nv_bfloat16, attention_source::attention_bf16_##D, warps>}, {                  \
        "attention_plain-bf16_" #D, attention<__nv_bfloat16, plain_bf16<D, warps>, warps>                                 \
    }

int main(int count, char **arguments) {
    return answer(count, arguments,
                  {ATTENTIONS(32, 4), ATTENTIONS(64, 4), ATTENTIONS(128, 4), ATTENTIONS(256, 2), ON_EVERY_TYPE(gelu),
                   ON_EVERY_TYPE(glu), ON_EVERY_TYPE(layer_norm), ON_EVERY_TYPE(pool), ON_EVERY_TYPE(rms_norm),
                   ON_EVERY_TYPE(rotary)});
}
