// The code of kernels by name: ours from their sources on a grid of threads, and of Candle's those few that models call between them, written
// anew as plain loops. Arguments come as a launch has them; work to be done later goes out.
#pragma once

#include "../sources.h"
#include "work.h"
#include <cmath>
#include <tuple>
#include <utility>

// Work, made of a launch's arguments.
using Code = std::function<Work(Dim grid, Dim block, void **arguments)>;

// Pointers must not lead to what was freed.
template <typename A> void check(A argument) {
    if constexpr (std::is_pointer_v<A>) {
        if (is_dead((Address)argument)) {
            breaks("a kernel is given memory that was freed");
        }
    }
}

template <typename... A, size_t... I>
Work bound(void (*kernel)(A...), Dim grid, Dim block, void **arguments, std::index_sequence<I...>) {
    const std::tuple<A...> of = {*(A *)arguments[I]...};
    return [=] {
        (check(std::get<I>(of)), ...);
        if (broken == SUCCESS) {
            run_grid(grid, block, [&] { std::apply(kernel, of); });
        }
    };
}

// A kernel of ours.
template <typename... A> Code ours(void (*kernel)(A...)) {
    return [kernel](Dim grid, Dim block, void **arguments) {
        return bound(kernel, grid, block, arguments, std::index_sequence_for<A...>());
    };
}

// A kernel that is a loop over all that its launch is for.
template <typename... A> Code loop(void (*kernel)(A...)) {
    return [kernel](Dim, Dim, void **arguments) {
        return bound(kernel, {1, 1, 1}, {1, 1, 1}, arguments, std::index_sequence_for<A...>());
    };
}

// A kernel that has a block for each row.
template <typename... A> Code by_rows(void (*kernel)(A...)) {
    return [kernel](Dim grid, Dim, void **arguments) {
        return bound(kernel, grid, {1, 1, 1}, arguments, std::index_sequence_for<A...>());
    };
}

// Where element `i` lies in a layout of so many dimensions, or `i` itself where there is none. Dimensions come first, then strides.
inline size_t place(size_t i, size_t dims, const size_t *layout) {
    if (!layout) {
        return i;
    }
    size_t at = 0;
    for (size_t d = dims; d-- > 0;) {
        at += i % layout[d] * layout[dims + d];
        i /= layout[d];
    }
    return at;
}

namespace candle {
template <typename T> void affine(size_t count, size_t dims, const size_t *layout, const T *x, T *out, T mul, T add) {
    for (size_t i = 0; i < count; i++) {
        out[i] = T((float)x[place(i, dims, layout)] * (float)mul + (float)add);
    }
}

template <typename From, typename To> void cast(size_t count, size_t dims, const size_t *layout, const From *x, To *out) {
    for (size_t i = 0; i < count; i++) {
        out[i] = To((float)x[place(i, dims, layout)]);
    }
}

template <typename T, float (*op)(float)> void unary(size_t count, size_t dims, const size_t *layout, const T *x, T *out) {
    for (size_t i = 0; i < count; i++) {
        out[i] = T(op((float)x[place(i, dims, layout)]));
    }
}

template <typename T, float (*op)(float, float)>
void binary(size_t count, size_t dims, const size_t *layout, const T *x, const T *y, T *out) {
    // The layout is dimensions, then the strides of both.
    std::vector<size_t> of_y(layout ? 2 * dims : 0);
    if (layout) {
        std::copy(layout, layout + dims, of_y.begin());
        std::copy(layout + 2 * dims, layout + 3 * dims, of_y.begin() + dims);
    }
    for (size_t i = 0; i < count; i++) {
        out[i] = T(op((float)x[place(i, dims, layout)], (float)y[place(i, dims, layout ? of_y.data() : nullptr)]));
    }
}

template <typename T> void copy2d(const T *x, T *out, unsigned rows, unsigned width, unsigned x_stride, unsigned out_stride) {
    for (size_t row = 0; row < rows; row++) {
        std::copy(x + row * x_stride, x + row * x_stride + width, out + row * out_stride);
    }
}

template <typename T> void copy(size_t count, size_t dims, const size_t *layout, const T *x, T *out) {
    for (size_t i = 0; i < count; i++) {
        out[i] = x[place(i, dims, layout)];
    }
}

template <typename T> void const_set(size_t count, size_t dims, const size_t *layout, T value, T *out) {
    for (size_t i = 0; i < count; i++) {
        out[place(i, dims, layout)] = value;
    }
}

template <typename T>
void index_select(size_t count, size_t, const size_t *, const unsigned *ids, const T *x, T *out, size_t left, size_t from, size_t to,
                  size_t right) {
    for (size_t i = 0; i < count; i++) {
        const size_t id = ids[i / right % to];
        out[i] = id < from ? x[(i / right / to * from + id) * right + i % right] : T(0.0f);
    }
}

template <typename T> void scatter(const unsigned *ids, const T *x, T *out, size_t left, size_t from, size_t to, size_t right) {
    for (size_t i = 0; i < left * from * right; i++) {
        if (ids[i] < to) {
            out[(i / right / from * to + ids[i]) * right + i % right] = x[i];
        }
    }
}

// `width` elements to each sum. The small form is told how many sums there are, the other how many elements.
template <typename T, bool is_small>
void sum(size_t count, size_t width, size_t dims, const size_t *layout, const T *x, T *out) {
    for (size_t i = 0; i < (is_small ? count : count / width); i++) {
        float sum = 0;
        for (size_t j = 0; j < width; j++) {
            sum += (float)x[place(i * width + j, dims, layout)];
        }
        out[i] = T(sum);
    }
}

template <typename T> void most(size_t count, size_t width, size_t dims, const size_t *layout, const T *x, T *out) {
    for (size_t i = 0; i < count / width; i++) {
        out[i] = x[place(i * width, dims, layout)];
        for (size_t j = 1; j < width; j++) {
            out[i] = T(std::fmax((float)out[i], (float)x[place(i * width + j, dims, layout)]));
        }
    }
}

// Those that have a block for each row are told how many columns there are, and find rows by the grid.
template <typename T> void softmax(const T *x, T *out, int columns) {
    const T *row = x + (size_t)blockIdx.x * columns;
    float largest = -INFINITY, sum = 0;
    for (int i = 0; i < columns; i++) {
        largest = std::max(largest, (float)row[i]);
    }
    for (int i = 0; i < columns; i++) {
        sum += std::exp((float)row[i] - largest);
    }
    for (int i = 0; i < columns; i++) {
        out[(size_t)blockIdx.x * columns + i] = T(std::exp((float)row[i] - largest) / sum);
    }
}

template <typename T, bool has_mean>
void normalise(const T *x, T *out, const T *weight, const T *bias, int columns, float eps) {
    const T *row = x + (size_t)blockIdx.x * columns;
    double sum = 0, squares = 0;
    for (int i = 0; i < columns; i++) {
        sum += (double)(float)row[i];
    }
    const double mean = has_mean ? sum / columns : 0;
    for (int i = 0; i < columns; i++) {
        squares += ((double)(float)row[i] - mean) * ((double)(float)row[i] - mean);
    }
    const double scale = 1 / std::sqrt(squares / columns + eps);
    for (int i = 0; i < columns; i++) {
        const double of = ((double)(float)row[i] - mean) * scale * (double)(weight ? (float)weight[i] : 1.0f);
        out[(size_t)blockIdx.x * columns + i] = T((float)(of + (double)(bias ? (float)bias[i] : 0.0f)));
    }
}

template <typename T> void rms_norm(const T *x, T *out, const T *weight, int columns, int, float eps) {
    normalise<T, false>(x, out, weight, nullptr, columns, eps);
}

template <typename T> void layer_norm(const T *x, T *out, const T *weight, const T *bias, int columns, int, float eps) {
    normalise<T, true>(x, out, weight, bias, columns, eps);
}

inline float gelu_erf(float x) { return 0.5f * x * (1 + std::erf(x * 0.70710678f)); }
inline float gelu(float x) { return 0.5f * x * (1 + std::tanh(0.7978845608f * (x + 0.044715f * x * x * x))); }
inline float add(float a, float b) { return a + b; }
inline float sub(float a, float b) { return a - b; }
inline float mul(float a, float b) { return a * b; }
inline float div(float a, float b) { return a / b; }
inline float silu(float x) { return x / (1 + std::exp(-x)); }
inline float sqr(float x) { return x * x; }
inline float relu(float x) { return x > 0 ? x : 0; }
} // namespace candle

#define ON_TYPES(op)                                                                                                      \
    {#op "_f32", ours(op##_source::op##_f32)}, {#op "_f16", ours(op##_source::op##_f16)}, {                               \
        #op "_bf16", ours(op##_source::op##_bf16)                                                                         \
    }
#define ATTENTION(type, D)                                                                                                \
    {"attention_" #type "_" #D, ours(attention_source::attention_##type##_##D)},                                          \
        {"attention_paged_prefill_" #type "_" #D, ours(attention_paged_source::attention_paged_prefill_##type##_##D)},    \
        {"attention_paged_decode_" #type "_" #D "_1", ours(attention_paged_source::attention_paged_decode_##type##_##D##_1)}, \
        {"attention_paged_decode_" #type "_" #D "_4", ours(attention_paged_source::attention_paged_decode_##type##_##D##_4)}, \
        {"attention_paged_decode_" #type "_" #D "_8", ours(attention_paged_source::attention_paged_decode_##type##_##D##_8)}
#define ATTENTIONS(type)                                                                                                  \
    ATTENTION(type, 32), ATTENTION(type, 64), ATTENTION(type, 128), ATTENTION(type, 256),                                 \
        {"attention_paged_keep_" #type, ours(attention_paged_source::attention_paged_keep_##type)}, {                     \
        "attention_paged_merge_" #type, ours(attention_paged_source::attention_paged_merge_##type)                        \
    }
#define CANDLES(type, T)                                                                                                  \
    {"affine_" #type, loop(candle::affine<T>)}, {"cast_" #type "_f32", loop(candle::cast<T, float>)},                     \
        {"cast_" #type "_f16", loop(candle::cast<T, __half>)}, {"cast_" #type "_bf16", loop(candle::cast<T, __nv_bfloat16>)}, \
        {"badd_" #type, loop(candle::binary<T, candle::add>)}, {"bsub_" #type, loop(candle::binary<T, candle::sub>)},     \
        {"bmul_" #type, loop(candle::binary<T, candle::mul>)}, {"bdiv_" #type, loop(candle::binary<T, candle::div>)},     \
        {"utanh_" #type, loop(candle::unary<T, tanhf>)}, {"uexp_" #type, loop(candle::unary<T, expf>)},                   \
        {"usilu_" #type, loop(candle::unary<T, candle::silu>)}, {"usqr_" #type, loop(candle::unary<T, candle::sqr>)},     \
        {"usqrt_" #type, loop(candle::unary<T, sqrtf>)}, {"urelu_" #type, loop(candle::unary<T, candle::relu>)},          \
        {"ucopy_" #type, loop(candle::copy<T>)}, {"copy2d_" #type, loop(candle::copy2d<T>)},                              \
        {"uabs_" #type, loop(candle::unary<T, fabsf>)}, {"ugelu_" #type, loop(candle::unary<T, candle::gelu>)},           \
        {"ugelu_erf_" #type, loop(candle::unary<T, candle::gelu_erf>)}, {"s_u32_" #type, loop(candle::scatter<T>)},       \
        {"fast_sum_" #type, loop(candle::sum<T, false>)}, {"fast_sum_small_" #type, loop(candle::sum<T, true>)},          \
        {"fast_max_" #type, loop(candle::most<T>)},                                                                       \
        {"softmax_" #type, by_rows(candle::softmax<T>)}, {"rmsnorm_" #type, by_rows(candle::rms_norm<T>)},                \
        {"layernorm_" #type, by_rows(candle::layer_norm<T>)},                                                             \
        {"const_set_" #type, loop(candle::const_set<T>)}, {                                                               \
        "is_u32_" #type, loop(candle::index_select<T>)                                                                    \
    }

// By name, for as long as the library is loaded.
inline const std::map<std::string, Code> &codes() {
    static const std::map<std::string, Code> all = {
        ATTENTIONS(f32), ATTENTIONS(f16), ATTENTIONS(bf16), ON_TYPES(embed), ON_TYPES(glu), ON_TYPES(layer_norm), ON_TYPES(linear), ON_TYPES(pool),
        ON_TYPES(rms_norm), ON_TYPES(rotary), {"sample_f32", ours(sample_source::sample_f32)},
        CANDLES(f32, float), CANDLES(f16, __half), CANDLES(bf16, __nv_bfloat16),
        {"ucopy_u32", loop(candle::copy<unsigned>)}, {"copy2d_u32", loop(candle::copy2d<unsigned>)},
        {"cast_f64_f32", loop(candle::cast<double, float>)},
    };
    return all;
}
