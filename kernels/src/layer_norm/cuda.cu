// Layer normalisation, with the additions in front of it where there are any, of a bias and of a residual: see mod.rs for the formula. Rows of T
// (float, __half or __nv_bfloat16) come in and go out; sums are f32. Never a row in more than one warp.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// Functions: layer_norm_f32, layer_norm_f16, layer_norm_bf16.
// Arguments, in order: const T *x, const T *shift (or null), const T *residual (or null), const T *weight, const T *bias, T *out, float eps,
//   unsigned rows, unsigned dim. x, residual, out: [rows, dim]; shift, which is added to each row of x, weight, bias: [dim]. `out` may be `x` or `residual`.
// Launch: block (32, 4, 1): four warps, one row each. Grid (ceil(rows / 4), 1, 1). No dynamic shared memory.
//
// A row is read three times; the second and third time it is in the L1 cache (4 rows of 1024 f32 are 16 KiB).

#include "row.cuh"

template <int N, typename T>
static __device__ __forceinline__ void layer_norm_by(const T *x, const T *shift, const T *residual, const T *weight, const T *bias, T *out,
                                                     float eps, unsigned dim) {
    const auto of = [&](float(&to)[N], unsigned i) { take_sum(to, x, shift, residual, i); };
    normalise_row<N>(of, weight, bias, out, eps, dim);
}

template <typename T>
static __device__ __forceinline__ void layer_norm(const T *x, const T *shift, const T *residual, const T *weight, const T *bias, T *out,
                                                  float eps, unsigned rows, unsigned dim) {
    const unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) {
        return; // The whole warp: it has one row.
    }
    const size_t begin = (size_t)row * dim;
    x += begin;
    out += begin;
    if (residual != nullptr) {
        residual += begin;
    }

    if (is_wide(dim, x, shift, residual, weight, bias, out)) {
        layer_norm_by<WIDE<T>>(x, shift, residual, weight, bias, out, eps, dim);
    } else {
        layer_norm_by<1>(x, shift, residual, weight, bias, out, eps, dim);
    }
}

extern "C" __global__ void layer_norm_f32(const float *x, const float *shift, const float *residual, const float *weight, const float *bias,
                                          float *out, float eps, unsigned rows, unsigned dim) {
    layer_norm(x, shift, residual, weight, bias, out, eps, rows, dim);
}

extern "C" __global__ void layer_norm_f16(const __half *x, const __half *shift, const __half *residual, const __half *weight,
                                          const __half *bias, __half *out, float eps, unsigned rows, unsigned dim) {
    layer_norm(x, shift, residual, weight, bias, out, eps, rows, dim);
}

extern "C" __global__ void layer_norm_bf16(const __nv_bfloat16 *x, const __nv_bfloat16 *shift, const __nv_bfloat16 *residual,
                                           const __nv_bfloat16 *weight, const __nv_bfloat16 *bias, __nv_bfloat16 *out,
                                           float eps, unsigned rows, unsigned dim) {
    layer_norm(x, shift, residual, weight, bias, out, eps, rows, dim);
}
