// What a product has behind it, its bias and its activation: see mod.rs for the formula. Rows of T (float, __half or __nv_bfloat16) come in and are
// replaced; the arithmetic is f32. Never the product itself, which is the vendor's library's.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// Functions: linear_f32, linear_f16, linear_bf16.
// Arguments, in order: T *x, const T *bias (or null), unsigned rows, unsigned dim, unsigned activation, in the order of Activation: 0 none,
//   1 GELU, 2 GELU by tanh, 3 SiLU, 4 ReLU, 5 tanh. x: [rows, dim], in place; bias: [dim].
// Launch: block (128, 1, 1), grid (ceil(dim * sizeof(T) / 2048), min(rows, 65535), 1): the kernel strides over the columns and
//   rows that are left. Without a bias any split of the elements into rows will do. No dynamic shared memory.

#include "../launch/activations.cuh"

template <int N, typename T>
static __device__ __forceinline__ void linear_by(T *x, const T *bias, unsigned rows, unsigned dim, unsigned activation) {
    for (unsigned column = (blockIdx.x * blockDim.x + threadIdx.x) * N; column < dim; column += gridDim.x * blockDim.x * N) {
        float shift[N] = {};
        if (bias != nullptr) {
            take(shift, bias + column);
        }
        for (unsigned row = blockIdx.y; row < rows; row += gridDim.y) {
            T *at = x + (size_t)row * dim + column;
            float u[N];
            take(u, at);
#pragma unroll
            for (int i = 0; i < N; i++) {
                // Rounded to T, as when the two steps are apart.
                u[i] = rounded<T>(u[i] + shift[i]);
            }
            activate(u, activation);
            put(at, u);
        }
    }
}

template <typename T>
static __device__ __forceinline__ void linear(T *x, const T *bias, unsigned rows, unsigned dim, unsigned activation) {
    if (is_wide(dim, x, bias)) {
        linear_by<WIDE<T>>(x, bias, rows, dim, activation);
    } else {
        linear_by<1>(x, bias, rows, dim, activation);
    }
}

extern "C" __global__ void linear_f32(float *x, const float *bias, unsigned rows, unsigned dim, unsigned activation) {
    linear(x, bias, rows, dim, activation);
}

extern "C" __global__ void linear_f16(__half *x, const __half *bias, unsigned rows, unsigned dim, unsigned activation) {
    linear(x, bias, rows, dim, activation);
}

extern "C" __global__ void linear_bf16(__nv_bfloat16 *x, const __nv_bfloat16 *bias, unsigned rows, unsigned dim, unsigned activation) {
    linear(x, bias, rows, dim, activation);
}
