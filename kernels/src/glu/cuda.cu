// The gated linear unit behind its two products: see mod.rs for the formula. Rows of T (float, __half or __nv_bfloat16)
// with both halves come in, rows of one half's width go out; the arithmetic is f32. Never the products themselves.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// Functions: glu_f32, glu_f16, glu_bf16.
// Arguments, in order: const T *x, T *out, unsigned rows, unsigned dim, unsigned activation, in the order of
//   linear::Activation: 0 none, 1 GELU, 2 GELU by tanh, 3 SiLU, 4 ReLU, 5 tanh. x: [rows, 2 * dim]; out: [rows, dim].
// Launch: block (128, 1, 1), grid (ceil(dim * sizeof(T) / 2048), min(rows, 65535), 1): the kernel strides over the columns and
//   rows that are left. No dynamic shared memory.

#include "../launch/activations.cuh"

template <int N, typename T>
static __device__ __forceinline__ void glu_by(const T *x, T *out, unsigned rows, unsigned dim, unsigned activation) {
    for (unsigned column = (blockIdx.x * blockDim.x + threadIdx.x) * N; column < dim; column += gridDim.x * blockDim.x * N) {
        for (unsigned row = blockIdx.y; row < rows; row += gridDim.y) {
            const T *at = x + 2 * (size_t)row * dim + column;
            float gate[N], other[N];
            take(gate, at);
            take(other, at + dim);
            activate(gate, activation);
#pragma unroll
            for (int i = 0; i < N; i++) {
                gate[i] *= other[i];
            }
            put(&out[(size_t)row * dim + column], gate);
        }
    }
}

template <typename T>
static __device__ __forceinline__ void glu(const T *x, T *out, unsigned rows, unsigned dim, unsigned activation) {
    if (is_wide(dim, x, out)) {
        glu_by<WIDE<T>>(x, out, rows, dim, activation);
    } else {
        glu_by<1>(x, out, rows, dim, activation);
    }
}

extern "C" __global__ void glu_f32(const float *x, float *out, unsigned rows, unsigned dim, unsigned activation) {
    glu(x, out, rows, dim, activation);
}

extern "C" __global__ void glu_f16(const __half *x, __half *out, unsigned rows, unsigned dim, unsigned activation) {
    glu(x, out, rows, dim, activation);
}

extern "C" __global__ void glu_bf16(const __nv_bfloat16 *x, __nv_bfloat16 *out, unsigned rows, unsigned dim,
                                    unsigned activation) {
    glu(x, out, rows, dim, activation);
}
