// Runs one op's CUDA source on the CPU, or where nvcc builds it on a GPU. What comes in and goes out: see grid/io.h. Launches
// are those that the heads of the sources ask for. The suite that calls it is suite/mod.rs.

#include "../../src/launch/numbers.cuh"
#ifndef CUDA_ON_THE_CPU
#include "device.h" // Built by nvcc, it runs them on a GPU.
#endif
#include "../grid/io.h"
#include "sources.h"

// heads, kv_heads, head_dim, row's stride, behind, ahead, span, whether there are a bias (1) and a shift (2), cu_seqlens; queries, keys and
// values side by side, the bias, the shift
template <typename T, auto kernel, unsigned warps> static void attention() {
    const unsigned heads = numbers[0], kv_heads = numbers[1], d = numbers[2], stride = numbers[3], span = numbers[6];
    const std::vector<unsigned> cu_seqlens = numbers_from(8);
    const auto x = read<T>((size_t)cu_seqlens.back() * stride);
    const bool is_biased = numbers[7] & 1, is_shifted = numbers[7] & 2;
    const auto bias = read<float>(is_biased ? heads * (2 * span + 1) : 0);
    const auto shift = read<T>(is_shifted ? (heads + 2 * kv_heads) * d : 0);
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
        LAUNCH(kernel)(x.data(), k.data() + 8, v.data() + 16, is_shifted ? shift.data() : nullptr, cu_seqlens.data(),
               is_biased ? bias.data() : nullptr, out.data(), stride,
               k_stride, v_stride, heads, kv_heads, d, scalar, numbers[4], numbers[5], span);
    });
    write(out);
}

// What runs bf16 below compute capability 8.0.
template <int D, int WARPS>
static __global__ void plain_bf16(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v, const __nv_bfloat16 *shift,
                       const unsigned *cu_seqlens, const float *bias, __nv_bfloat16 *out, unsigned q_stride, unsigned k_stride, unsigned v_stride,
                       unsigned heads, unsigned kv_heads, unsigned head_dim, float scale, unsigned behind, unsigned ahead,
                       unsigned span) {
    plain_in_tiles<__nv_bfloat16, D, WARPS>(attention_source::part_of<__nv_bfloat16>(
        {q, k, v, shift, cu_seqlens, bias, out, q_stride, k_stride, v_stride, heads, kv_heads, head_dim, scale, behind, ahead, span}));
}

// What a case of paged attention has: heads, kv_heads, head_dim, window, sequences, entries of a table, queries of each
// sequence, tokens of each, tables; the cap, queries, keys, values
template <typename T> struct Paged {
    unsigned heads = numbers[0], kv_heads = numbers[1], d = numbers[2], window = numbers[3], count = numbers[4],
             entries = numbers[5], most = 0;
    std::vector<unsigned> cu_queries = {0}, lengths, tables = numbers_from(6 + 2 * numbers[4]);
    float softcap;
    std::vector<T> q, keys, values, out;

    Paged() {
        for (unsigned i = 0; i < count; i++) {
            cu_queries.push_back(cu_queries.back() + numbers[6 + i]);
            most = std::max(most, numbers[6 + i]);
            lengths.push_back(numbers[6 + count + i]);
        }
        const size_t width = kv_heads * d, rows = cu_queries.back() * (size_t)heads * d;
        size_t slots = 0;
        for (const unsigned length : lengths) {
            slots += (length + 15) / 16 * 16;
        }
        slots += 3 * 16;
        softcap = read<float>(1)[0];
        q = read<T>(rows);
        keys = read<T>(slots * width);
        values = read<T>(slots * width);
        out.assign(rows, T(7.0f));
    }
};

template <typename T, auto kernel, auto merge, unsigned together> static void decode() {
    Paged<T> of;
    // Queries at a stride of their own.
    const unsigned stride = of.heads * of.d + 8;
    const auto q = columns(of.q, of.heads * of.d, 0, of.heads * of.d, 0, stride);
    unsigned splits = 0;
    for (const unsigned length : of.lengths) {
        splits = std::max(splits, (length + 127) / 128 - (length > of.window ? length - of.window : 0) / 128);
    }
    std::vector<float> parts((size_t)of.count * of.heads * splits * (2 + of.d), 7.0f);
    const unsigned group = of.heads / of.kv_heads, tiles = (group + together - 1) / together;
    run_grid({splits, of.kv_heads * tiles, of.count}, {32, 4, 1}, [&] {
        LAUNCH(kernel)(q.data(), of.keys.data(), of.values.data(), of.tables.data(), of.lengths.data(), of.out.data(),
               splits > 1 ? parts.data() : nullptr, stride, of.heads, of.kv_heads, of.d, of.entries, scalar, of.softcap, of.window);
    });
    if (splits > 1) {
        run_grid({(of.heads + 3) / 4, of.count, 1}, {32, 4, 1},
                 [&] { LAUNCH(merge)(parts.data(), of.lengths.data(), of.out.data(), of.heads, of.d, splits, of.window); });
    }
    write(of.out);
}

template <typename T, auto kernel, unsigned warps> static void prefill() {
    Paged<T> of;
    run_grid({(of.most + 16 * warps - 1) / (16 * warps), of.heads, of.count}, {32, warps, 1}, [&] {
        LAUNCH(kernel)(of.q.data(), of.keys.data(), of.values.data(), of.cu_queries.data(), of.tables.data(), of.lengths.data(),
               of.out.data(), of.heads * of.d, of.heads, of.kv_heads, of.d, of.entries, scalar, of.softcap, of.window);
    });
    write(of.out);
}

// What runs bf16 below compute capability 8.0.
template <int D, int WARPS>
static __global__ void plain_bf16_prefill(const __nv_bfloat16 *q, const __nv_bfloat16 *keys, const __nv_bfloat16 *values,
                               const unsigned *cu_queries, const unsigned *tables, const unsigned *lengths,
                               __nv_bfloat16 *out, unsigned q_stride, unsigned heads, unsigned kv_heads, unsigned head_dim,
                               unsigned table_stride, float scale, float softcap, unsigned window) {
    plain_in_tiles<__nv_bfloat16, D, WARPS>(attention_paged_source::part_of<__nv_bfloat16>(
        {q, keys, values, cu_queries, tables, lengths, out, q_stride, heads, kv_heads, head_dim, table_stride, scale, softcap,
         window}));
}

// heads, kv_heads, half, slots, positions in the tables, whether there are norms, each token's position, each token's slot;
// queries, keys and values side by side, cos, sin, both norms. The queries, and the pools of keys and values.
template <typename T, auto kernel> static void keep() {
    const unsigned heads = numbers[0], kv_heads = numbers[1], half = numbers[2], d = 2 * half, all = heads + 2 * kv_heads;
    std::vector<unsigned> positions = numbers_from(6);
    const unsigned tokens = (unsigned)positions.size() / 2;
    const std::vector<unsigned> slots(positions.begin() + tokens, positions.end());
    const auto qkv = read<T>((size_t)tokens * all * d);
    const auto cos = read<float>((size_t)numbers[4] * half), sin = read<float>((size_t)numbers[4] * half);
    const auto norms = read<T>(numbers[5] ? 2 * d : 0);
    std::vector<T> queries((size_t)tokens * heads * d, T(7.0f)), keys((size_t)numbers[3] * kv_heads * d, T(7.0f)), values = keys;
    run_grid({tokens, (all + 3) / 4, 1}, {32, 4, 1}, [&] {
        LAUNCH(kernel)(qkv.data(), queries.data(), keys.data(), values.data(), positions.data(), slots.data(), cos.data(), sin.data(),
               numbers[5] ? norms.data() : nullptr, numbers[5] ? norms.data() + d : nullptr, scalar, scalar, heads, kv_heads,
               half);
    });
    write(queries);
    write(keys);
    write(values);
}

// The grid of what goes by columns.
template <typename T> static Dim by_columns(unsigned columns, unsigned rows) {
    return {(unsigned)((columns * sizeof(T) + 2047) / 2048), rows, 1};
}

// rows, dim, whether there is a bias, activation; x, bias
template <typename T, auto kernel> static void linear() {
    const unsigned rows = numbers[0], dim = numbers[1];
    auto x = read<T>((size_t)rows * dim);
    const auto bias = read<T>(numbers[2] ? dim : 0);
    // Two rows of blocks, so that the kernel has to stride.
    run_grid(by_columns<T>(dim, std::min(rows, 2u)), {128, 1, 1},
             [&] { LAUNCH(kernel)(x.data(), numbers[2] ? bias.data() : nullptr, rows, dim, numbers[3]); });
    write(x);
}

// rows, dim, activation; x
template <typename T, auto kernel> static void glu() {
    const unsigned rows = numbers[0], dim = numbers[1];
    const auto x = read<T>(2 * (size_t)rows * dim);
    std::vector<T> out((size_t)rows * dim, T(7.0f));
    run_grid(by_columns<T>(dim, std::min(rows, 2u)), {128, 1, 1},
             [&] { LAUNCH(kernel)(x.data(), out.data(), rows, dim, numbers[2]); });
    write(out);
}

// What is added to every row before a norm, where the numbers say that there is something.
template <typename T> static std::vector<T> shift_of(unsigned dim) { return read<T>(numbers.size() > 3 && numbers[3] ? dim : 0); }

// rows, dim, whether there is a residual, whether there is a shift; x, residual, shift, weight, bias
template <typename T, auto kernel> static void layer_norm() {
    const unsigned rows = numbers[0], dim = numbers[1];
    const auto x = read<T>((size_t)rows * dim), residual = read<T>(numbers[2] ? (size_t)rows * dim : 0);
    const auto shift = shift_of<T>(dim), weight = read<T>(dim), bias = read<T>(dim);
    std::vector<T> out(x.size(), T(7.0f));
    run_grid({(rows + 3) / 4, 1, 1}, {32, 4, 1}, [&] {
        LAUNCH(kernel)(x.data(), shift.empty() ? nullptr : shift.data(), numbers[2] ? residual.data() : nullptr, weight.data(),
               bias.data(), out.data(), scalar, rows, dim);
    });
    write(out);
}

// rows, dim, how many tables, rows of each, whether it is normalised, which rows of each table; tables, weight, bias
template <typename T, auto kernel> static void embed() {
    const unsigned rows = numbers[0], dim = numbers[1], count = numbers[2], height = numbers[3];
    std::vector<T> tables[3];
    std::vector<unsigned> of[3];
    for (unsigned i = 0; i < count; i++) {
        tables[i] = read<T>((size_t)height * dim);
        of[i].assign(numbers.begin() + 5 + i * rows, numbers.begin() + 5 + (i + 1) * rows);
    }
    const auto weight = read<T>(numbers[4] ? dim : 0), bias = read<T>(numbers[4] ? dim : 0);
    std::vector<T> out((size_t)rows * dim, T(7.0f));
    const auto table = [&](unsigned i) { return i < count ? tables[i].data() : nullptr; };
    const auto which = [&](unsigned i) { return i < count ? of[i].data() : nullptr; };
    run_grid({(rows + 3) / 4, 1, 1}, {32, 4, 1}, [&] {
        LAUNCH(kernel)(table(0), table(1), table(2), which(0), which(1), which(2), numbers[4] ? weight.data() : nullptr,
                       numbers[4] ? bias.data() : nullptr, out.data(), scalar, rows, dim);
    });
    write(out);
}

// dim, kind, whether to normalise, cu_seqlens; x
template <typename T, auto kernel> static void pool() {
    const unsigned dim = numbers[0];
    const std::vector<unsigned> cu_seqlens = numbers_from(3);
    const auto x = read<T>((size_t)cu_seqlens.back() * dim);
    std::vector<float> out((cu_seqlens.size() - 1) * dim, 7.0f);
    run_grid({(unsigned)cu_seqlens.size() - 1, 1, 1}, {32, 16, 1},
             [&] { LAUNCH(kernel)(x.data(), cu_seqlens.data(), out.data(), dim, numbers[1], numbers[2]); });
    write(out);
}

// rows, dim, whether there is a residual, whether there is a shift; x, residual, shift, weight. The result, and with a residual the sum.
template <typename T, auto kernel> static void rms_norm() {
    const unsigned rows = numbers[0], dim = numbers[1];
    auto x = read<T>((size_t)rows * dim), residual = read<T>(numbers[2] ? (size_t)rows * dim : 0);
    const auto shift = shift_of<T>(dim), weight = read<T>(dim);
    // In place: the result where x was, the sum where the residual was.
    T *const other = numbers[2] ? residual.data() : nullptr;
    run_grid({(rows + 3) / 4, 1, 1}, {32, 4, 1}, [&] {
        LAUNCH(kernel)(x.data(), shift.empty() ? nullptr : shift.data(), other, weight.data(), other, x.data(), scalar, rows, dim);
    });
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
    run_grid(by_columns<T>(width / 2, std::min(rows, 2u)), {128, 1, 1},
             [&] { LAUNCH(kernel)(x.data(), positions.data(), cos.data(), sin.data(), rows, stride, width, half); });
    write(x);
}

// rows, tokens, where each part of the array of requests begins and ends, that array; logits of all rows. Token and state of each.
static void sample() {
    using namespace sample_source;
    const unsigned rows = numbers[0], tokens = numbers[1], padded = (tokens + 63) / 64 * 64;
    const std::vector<unsigned> words(numbers.begin() + 14, numbers.end());
    const auto part = [&](unsigned which) { return words.data() + numbers[2 + 2 * which]; };
    const bool is_masked = numbers[4] < numbers[5];
    auto logits = read<float>((size_t)rows * tokens);
    std::vector<unsigned short> cells((size_t)rows * padded, 7);
    std::vector<unsigned> counts((size_t)rows * CELLS, 7);
    std::vector<Choice> choices(rows, {7, 7});
    run_grid({rows, 1, 1}, {512, 1, 1}, [&] {
        LAUNCH(sample_f32)(logits.data(), (const Request *)part(0), is_masked ? part(1) : nullptr, part(2), (const float *)part(3), part(4),
                   part(5), cells.data(), counts.data(), choices.data(), tokens);
    });
    std::vector<unsigned> out;
    for (const Choice &choice : choices) {
        out.insert(out.end(), {choice.token, choice.state});
    }
    write(out);
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

#define PAGED(D, warps, type, T)                                                                                           \
    {"attention_paged_decode_" #type "_" #D "_1",                                                                          \
     decode<T, attention_paged_source::attention_paged_decode_##type##_##D##_1,                                            \
            attention_paged_source::attention_paged_merge_##type, 1>},                                                     \
        {"attention_paged_decode_" #type "_" #D "_4",                                                                      \
         decode<T, attention_paged_source::attention_paged_decode_##type##_##D##_4,                                        \
                attention_paged_source::attention_paged_merge_##type, 4>},                                                 \
        {"attention_paged_decode_" #type "_" #D "_8",                                                                      \
         decode<T, attention_paged_source::attention_paged_decode_##type##_##D##_8,                                        \
                attention_paged_source::attention_paged_merge_##type, 8>},                                                 \
    {                                                                                                                      \
        "attention_paged_prefill_" #type "_" #D,                                                                           \
            prefill<T, attention_paged_source::attention_paged_prefill_##type##_##D, warps>                                \
    }
#define PAGED_ON_EVERY_TYPE(D, warps)                                                                                      \
    PAGED(D, warps, f32, float), PAGED(D, warps, f16, __half), PAGED(D, warps, bf16, __nv_bfloat16), {                     \
        "attention_paged_prefill_plain-bf16_" #D, prefill<__nv_bfloat16, plain_bf16_prefill<D, warps>, warps>              \
    }

int main(int count, char **arguments) {
    return answer(count, arguments,
                  {ATTENTIONS(32, 4), ATTENTIONS(64, 4), ATTENTIONS(128, 4), ATTENTIONS(256, 2), PAGED_ON_EVERY_TYPE(32, 4),
                   PAGED_ON_EVERY_TYPE(64, 4), PAGED_ON_EVERY_TYPE(128, 4), PAGED_ON_EVERY_TYPE(256, 2),
                   {"attention_paged_keep_f32", keep<float, attention_paged_source::attention_paged_keep_f32>},
                   {"attention_paged_keep_f16", keep<__half, attention_paged_source::attention_paged_keep_f16>},
                   {"attention_paged_keep_bf16", keep<__nv_bfloat16, attention_paged_source::attention_paged_keep_bf16>},
                   ON_EVERY_TYPE(embed), ON_EVERY_TYPE(glu),
                   ON_EVERY_TYPE(layer_norm), ON_EVERY_TYPE(linear), ON_EVERY_TYPE(pool), ON_EVERY_TYPE(rms_norm),
                   ON_EVERY_TYPE(rotary), {"sample_f32", sample}});
}
