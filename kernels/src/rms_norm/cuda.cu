// Root-mean-square normalisation, with the additions in front of it where there are any, of a bias and of a residual: see mod.rs for the formula.
// Rows of T (float, __half or __nv_bfloat16) come in and go out; sums are f32. Never a row in more than one warp.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// Functions: rms_norm_f32, rms_norm_f16, rms_norm_bf16.
// Arguments, in order: const T *x, const T *shift (or null), const T *residual (or null), const T *weight, T *sum (or null), T *out, float eps,
//   unsigned rows, unsigned dim. x, residual, sum, out: [rows, dim]; shift, which is added to each row of x, weight: [dim]. `out` may be `x` or `residual`; `sum`
//   may be the other of the two, and is where the sum goes, rounded to T, for layers that add to it again.
// Launch: block (32, 4, 1): four warps, one row each. Grid (ceil(rows / 4), 1, 1). No dynamic shared memory.
//
// A row is read twice; the second time it is in the L1 cache (4 rows of 1024 f32 are 16 KiB). A sum of squares beyond f32
// gives zeros, where the code for CPUs computes the row in f64.

#include "../launch/numbers.cuh"

template <int N, typename T>
static __device__ __forceinline__ void rms_norm_by(const T *x, const T *shift, const T *residual, const T *weight, T *sum, T *out, float eps,
                                                   unsigned dim) {
    const auto of = [&](float(&to)[N], unsigned i) { take_sum(to, x, shift, residual, i); };
    float squares = 0.0f;
    for (unsigned i = threadIdx.x * N; i < dim; i += 32 * N) {
        float x[N];
        of(x, i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            squares = fmaf(x[j], x[j], squares);
        }
    }
    const float inverse = 1.0f / sqrtf(warp_sum(squares) / (float)dim + eps);

    // Each lane replaces only what it alone reads.
    for (unsigned i = threadIdx.x * N; i < dim; i += 32 * N) {
        float x[N], scale[N];
        of(x, i);
        if (sum != nullptr) {
            put(sum + i, x);
        }
        take(scale, weight + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            x[j] = x[j] * inverse * scale[j];
        }
        put(out + i, x);
    }
}

template <typename T>
static __device__ __forceinline__ void rms_norm(const T *x, const T *shift, const T *residual, const T *weight, T *sum, T *out, float eps,
                                                unsigned rows, unsigned dim) {
    const unsigned row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) {
        return; // The whole warp: it has one row.
    }
    const size_t begin = (size_t)row * dim;
    x += begin;
    residual = residual == nullptr ? nullptr : residual + begin;

    sum = sum == nullptr ? nullptr : sum + begin;
    out += begin;
    if (is_wide(dim, x, shift, residual, weight, sum, out)) {
        rms_norm_by<WIDE<T>>(x, shift, residual, weight, sum, out, eps, dim);
    } else {
        rms_norm_by<1>(x, shift, residual, weight, sum, out, eps, dim);
    }
}

extern "C" __global__ void rms_norm_f32(const float *x, const float *shift, const float *residual, const float *weight, float *sum, float *out,
                                        float eps, unsigned rows, unsigned dim) {
    rms_norm(x, shift, residual, weight, sum, out, eps, rows, dim);
}

extern "C" __global__ void rms_norm_f16(const __half *x, const __half *shift, const __half *residual, const __half *weight, __half *sum,
                                        __half *out, float eps, unsigned rows, unsigned dim) {
    rms_norm(x, shift, residual, weight, sum, out, eps, rows, dim);
}

extern "C" __global__ void rms_norm_bf16(const __nv_bfloat16 *x, const __nv_bfloat16 *shift, const __nv_bfloat16 *residual,
                                         const __nv_bfloat16 *weight, __nv_bfloat16 *sum, __nv_bfloat16 *out, float eps,
                                         unsigned rows, unsigned dim) {
    rms_norm(x, shift, residual, weight, sum, out, eps, rows, dim);
}
