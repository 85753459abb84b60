// Layer normalisation, with the residual addition in front of it where there is one: see mod.rs for the formula. Rows of T
// (float, __half or __nv_bfloat16) come in and go out; sums are f32. Never a row in more than one warp.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// Functions: layer_norm_f32, layer_norm_f16, layer_norm_bf16.
// Arguments, in order: const T *x, const T *residual (or null), const T *weight, const T *bias, T *out, float eps,
//   unsigned rows, unsigned dim. x, residual, out: [rows, dim]; weight, bias: [dim]. `out` may be `x` or `residual`.
// Launch: block (32, 4, 1): four warps, one row each. Grid (ceil(rows / 4), 1, 1). No dynamic shared memory.
//
// A row is read three times; the second and third time it is in the L1 cache (4 rows of 1024 f32 are 16 KiB).

#include "row.cuh"

// x + residual, rounded to T as when the two steps are apart.
template <typename T>
static __device__ __forceinline__ float summand(const T *x, const T *residual, unsigned i) {
    if (residual == nullptr) {
        return to_float(x[i]);
    }
    return rounded<T>(to_float(x[i]) + to_float(residual[i]));
}

template <typename T>
static __device__ __forceinline__ void layer_norm(const T *x, const T *residual, const T *weight, const T *bias, T *out,
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

    normalise_row([&](unsigned i) { return summand(x, residual, i); }, weight, bias, out, eps, dim);
}

extern "C" __global__ void layer_norm_f32(const float *x, const float *residual, const float *weight, const float *bias,
                                          float *out, float eps, unsigned rows, unsigned dim) {
    layer_norm(x, residual, weight, bias, out, eps, rows, dim);
}

extern "C" __global__ void layer_norm_f16(const __half *x, const __half *residual, const __half *weight,
                                          const __half *bias, __half *out, float eps, unsigned rows, unsigned dim) {
    layer_norm(x, residual, weight, bias, out, eps, rows, dim);
}

extern "C" __global__ void layer_norm_bf16(const __nv_bfloat16 *x, const __nv_bfloat16 *residual,
                                           const __nv_bfloat16 *weight, const __nv_bfloat16 *bias, __nv_bfloat16 *out,
                                           float eps, unsigned rows, unsigned dim) {
    layer_norm(x, residual, weight, bias, out, eps, rows, dim);
}
