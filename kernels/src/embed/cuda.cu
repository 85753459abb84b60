// Rows of up to three tables added up, one sum a token, and that normalised where a model does so: see mod.rs. Tables of T (float, __half or
// __nv_bfloat16) and indices come in, rows go out; each sum is rounded to T as when the steps are apart. Never a row in more than one warp.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// Functions: embed_f32, embed_f16, embed_bf16.
// Arguments, in order: const T *first, const T *second (or null), const T *third (or null), const unsigned *first_rows, const unsigned
//   *second_rows (or null), const unsigned *third_rows (or null), const T *weight (or null), const T *bias (or null), T *out, float eps,
//   unsigned rows, unsigned dim. Tables: [any, dim]; what names their rows: [rows]; weight, bias: [dim], those of the normalisation; out: [rows, dim].
// Launch: block (32, 4, 1): four warps, one row each. Grid (ceil(rows / 4), 1, 1). No dynamic shared memory.
//
// With a normalisation rows are read three times; the second and third time they are in the L1 cache.

#include "../layer_norm/row.cuh"

template <typename T>
static __device__ __forceinline__ const T *row_of(const T *table, const unsigned *rows, unsigned token, unsigned dim) {
    return table == nullptr ? nullptr : table + (size_t)rows[token] * dim;
}

template <int N, typename T>
static __device__ __forceinline__ void embed_by(const T *first, const T *second, const T *third, const T *weight, const T *bias,
                                                T *out, float eps, unsigned dim) {
    const auto sum = [&](float(&to)[N], unsigned i) { take_sum(to, first, second, third, i); };
    if (weight != nullptr) {
        normalise_row<N>(sum, weight, bias, out, eps, dim);
        return;
    }
    for (unsigned i = threadIdx.x * N; i < dim; i += 32 * N) {
        float x[N];
        sum(x, i);
        put(out + i, x);
    }
}

template <typename T>
static __device__ __forceinline__ void embed(const T *first, const T *second, const T *third, const unsigned *first_rows,
                                             const unsigned *second_rows, const unsigned *third_rows, const T *weight, const T *bias,
                                             T *out, float eps, unsigned rows, unsigned dim) {
    const unsigned token = blockIdx.x * blockDim.y + threadIdx.y;
    if (token >= rows) {
        return; // The whole warp: it has one row.
    }
    first = row_of(first, first_rows, token, dim);
    second = row_of(second, second_rows, token, dim);
    third = row_of(third, third_rows, token, dim);
    out += (size_t)token * dim;
    if (is_wide(dim, first, second, third, weight, bias, out)) {
        embed_by<WIDE<T>>(first, second, third, weight, bias, out, eps, dim);
    } else {
        embed_by<1>(first, second, third, weight, bias, out, eps, dim);
    }
}

#define EMBED(name, T)                                                                                                    \
    extern "C" __global__ void name(const T *first, const T *second, const T *third, const unsigned *first_rows,          \
                                    const unsigned *second_rows, const unsigned *third_rows, const T *weight,             \
                                    const T *bias, T *out, float eps, unsigned rows, unsigned dim) {                      \
        embed(first, second, third, first_rows, second_rows, third_rows, weight, bias, out, eps, rows, dim);              \
    }

EMBED(embed_f32, float)
EMBED(embed_f16, __half)
EMBED(embed_bf16, __nv_bfloat16)
