// Rotary position embedding, in place: see mod.rs for the formula. Rows of T (float, __half or __nv_bfloat16) with some
// heads side by side come in and are turned; the arithmetic is f32. Never pairs of neighbours.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// Functions: rotary_f32, rotary_f16, rotary_bf16.
// Arguments, in order: T *x, const unsigned *positions, const float *cos, const float *sin, unsigned rows, unsigned stride,
//   unsigned width, unsigned half. x: [rows, stride], of which the first `width` elements of a row are turned, whole heads
//   of 2 * half; positions: [rows], below the tables' length; cos, sin: [positions, half], those of rotary::Table.
// Launch: block (128, 1, 1), grid (ceil(width / 2 * sizeof(T) / 2048), min(rows, 65535), 1): the kernel strides over the pairs
//   and rows that are left. No dynamic shared memory.

#include "../launch/numbers.cuh"

template <int N, typename T>
static __device__ __forceinline__ void rotary_by(T *x, const unsigned *positions, const float *cos, const float *sin,
                                                 unsigned rows, unsigned stride, unsigned width, unsigned half) {
    for (unsigned pair = (blockIdx.x * blockDim.x + threadIdx.x) * N; pair < width / 2; pair += gridDim.x * blockDim.x * N) {
        const unsigned head = pair / half, i = pair % half;
        for (unsigned row = blockIdx.y; row < rows; row += gridDim.y) {
            const size_t angle = (size_t)positions[row] * half + i;
            T *first = x + (size_t)row * stride + 2 * head * half + i, *second = first + half;
            float a[N], b[N];
            take(a, first);
            take(b, second);
#pragma unroll
            for (int j = 0; j < N; j++) {
                const float c = cos[angle + j], s = sin[angle + j], turned = a[j] * c - b[j] * s;
                b[j] = b[j] * c + a[j] * s;
                a[j] = turned;
            }
            put(first, a);
            put(second, b);
        }
    }
}

template <typename T>
static __device__ __forceinline__ void rotary(T *x, const unsigned *positions, const float *cos, const float *sin,
                                              unsigned rows, unsigned stride, unsigned width, unsigned half) {
    if (half % WIDE<T> == 0 && is_wide(stride, x)) {
        rotary_by<WIDE<T>>(x, positions, cos, sin, rows, stride, width, half);
    } else {
        rotary_by<1>(x, positions, cos, sin, rows, stride, width, half);
    }
}

extern "C" __global__ void rotary_f32(float *x, const unsigned *positions, const float *cos, const float *sin,
                                      unsigned rows, unsigned stride, unsigned width, unsigned half) {
    rotary(x, positions, cos, sin, rows, stride, width, half);
}

extern "C" __global__ void rotary_f16(__half *x, const unsigned *positions, const float *cos, const float *sin,
                                      unsigned rows, unsigned stride, unsigned width, unsigned half) {
    rotary(x, positions, cos, sin, rows, stride, width, half);
}

extern "C" __global__ void rotary_bf16(__nv_bfloat16 *x, const unsigned *positions, const float *cos, const float *sin,
                                       unsigned rows, unsigned stride, unsigned width, unsigned half) {
    rotary(x, positions, cos, sin, rows, stride, width, half);
}
