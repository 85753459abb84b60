// The types that the CUDA sources compute with: float, __half and __nv_bfloat16 come in as f32, one or some neighbours at a time, and go out
// rounded to the nearest; sums over a warp. Never arithmetic in 16 bits.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

static __device__ __forceinline__ float to_float(float x) { return x; }
static __device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
static __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
static __device__ __forceinline__ void from_float(float x, float *y) { *y = x; }
static __device__ __forceinline__ void from_float(float x, __half *y) { *y = __float2half_rn(x); }
static __device__ __forceinline__ void from_float(float x, __nv_bfloat16 *y) { *y = __float2bfloat16_rn(x); }

// x as it is once it has been stored as T.
template <typename T> static __device__ __forceinline__ float rounded(float x) {
    T stored;
    from_float(x, &stored);
    return to_float(stored);
}

// N neighbours in memory, which are read and written at once: at most 16 bytes, and at whole multiples of their size.
template <typename T, int N> struct alignas(N * sizeof(T)) Neighbours {
    T of[N];
};

template <int N, typename T> static __device__ __forceinline__ void take(float (&to)[N], const T *from) {
    const Neighbours<T, N> all = *reinterpret_cast<const Neighbours<T, N> *>(from);
#pragma unroll
    for (int i = 0; i < N; i++) {
        to[i] = to_float(all.of[i]);
    }
}

template <int N, typename T> static __device__ __forceinline__ void put(T *to, const float (&from)[N]) {
    Neighbours<T, N> all;
#pragma unroll
    for (int i = 0; i < N; i++) {
        from_float(from[i], &all.of[i]);
    }
    *reinterpret_cast<Neighbours<T, N> *>(to) = all;
}

// As many numbers of a row added to some, each sum rounded to T.
template <typename T, int N> static __device__ __forceinline__ void add_rounded(float (&to)[N], const T *row, unsigned i) {
    float more[N];
    take(more, row + i);
#pragma unroll
    for (int j = 0; j < N; j++) {
        to[j] = rounded<T>(to[j] + more[j]);
    }
}

// Numbers of a row with those of two others added, which may be null, one after the other.
template <typename T, int N>
static __device__ __forceinline__ void take_sum(float (&to)[N], const T *row, const T *second, const T *third, unsigned i) {
    take(to, row + i);
    if (second != nullptr) {
        add_rounded(to, second, i);
    }
    if (third != nullptr) {
        add_rounded(to, third, i);
    }
}

// How many numbers of T 16 bytes are.
template <typename T> constexpr int WIDE = 16 / sizeof(T);

// Whether rows of so many numbers, which begin at these places, are whole 16 bytes at whole multiples of 16 bytes. Null is.
template <typename T, typename... Pointers> static __device__ __forceinline__ bool is_wide(unsigned dim, const T *row, const Pointers *...rows) {
    return dim % WIDE<T> == 0 && (((size_t)row | ... | (size_t)rows) & 15) == 0;
}

// The sum over the warp, in every lane.
static __device__ __forceinline__ float warp_sum(float x) {
    for (int distance = 16; distance > 0; distance /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    }
    return x;
}
