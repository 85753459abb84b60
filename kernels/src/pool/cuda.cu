// Pooling over packed sequences, with L2 normalisation behind it where it is asked for: see mod.rs for the formula. Rows of
// T (float, __half or __nv_bfloat16) come in, one f32 row per sequence goes out; sums are f32. Never padding.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// Functions: pool_f32, pool_f16, pool_bf16.
// Arguments, in order: const T *x, const unsigned *cu_seqlens, float *out, unsigned dim, unsigned kind (0 mean, 1 CLS, 2
//   last), unsigned normalise (0 or 1). x: [tokens, dim]; cu_seqlens: [sequences + 1], as the host has checked it; out:
//   [sequences, dim], f32.
// Launch: block (32, 16, 1), grid (sequences, 1, 1). No dynamic shared memory.

#include "../launch/numbers.cuh"

constexpr unsigned WARPS = 16;

// The sum over the block, in every thread.
static __device__ __forceinline__ float block_sum(float x) {
    __shared__ float warps[WARPS];
    x = warp_sum(x);
    if (threadIdx.x == 0) {
        warps[threadIdx.y] = x;
    }
    __syncthreads();
    float total = 0.0f;
    for (unsigned warp = 0; warp < WARPS; warp++) {
        total += warps[warp];
    }
    return total;
}

// Tokens are dealt out to the warps, columns to their lanes, N neighbours to each.
template <int N, typename T>
static __device__ __forceinline__ void pool_by(const T *x, unsigned begin, unsigned end, float *out, unsigned dim, unsigned normalise) {
    __shared__ float sums[WARPS][32 * N];
    const unsigned thread = threadIdx.y * 32 + threadIdx.x;
    const float tokens = (float)(end - begin);
    float squares = 0.0f;
    for (unsigned chunk = 0; chunk < dim; chunk += 32 * N) {
        const unsigned column = chunk + threadIdx.x * N;
        float sum[N] = {};
        if (column < dim) {
#pragma unroll 4
            for (unsigned token = begin + threadIdx.y; token < end; token += WARPS) {
                float more[N];
                take(more, x + (size_t)token * dim + column);
#pragma unroll
                for (int i = 0; i < N; i++) {
                    sum[i] += more[i];
                }
            }
        }
#pragma unroll
        for (int i = 0; i < N; i++) {
            sums[threadIdx.y][threadIdx.x * N + i] = sum[i];
        }
        __syncthreads();
        // Each thread has its own columns, so that it reads back only what it wrote.
        if (thread < 32 * N && chunk + thread < dim) {
            float total = 0.0f;
            for (unsigned warp = 0; warp < WARPS; warp++) {
                total += sums[warp][thread];
            }
            const float mean = total / tokens;
            out[chunk + thread] = mean;
            squares = fmaf(mean, mean, squares);
        }
        __syncthreads(); // Everybody has done with the sums.
    }
    if (normalise == 0) {
        return; // The whole block.
    }
    const float length = sqrtf(block_sum(squares));
    // Not fmaxf, which would make the floor of NaN.
    const float divisor = length < 1e-12f ? 1e-12f : length;
    if (thread < 32 * N) {
        for (unsigned column = thread; column < dim; column += 32 * N) {
            out[column] /= divisor;
        }
    }
}

template <typename T>
static __device__ __forceinline__ void pool(const T *x, const unsigned *cu_seqlens, float *out, unsigned dim, unsigned kind,
                                            unsigned normalise) {
    unsigned begin = cu_seqlens[blockIdx.x], end = cu_seqlens[blockIdx.x + 1];
    if (kind == 1) {
        end = begin + 1;
    } else if (kind == 2) {
        begin = end - 1;
    }
    out += (size_t)blockIdx.x * dim;
    if (is_wide(dim, x)) {
        pool_by<WIDE<T>>(x, begin, end, out, dim, normalise);
    } else {
        pool_by<1>(x, begin, end, out, dim, normalise);
    }
}

extern "C" __global__ void pool_f32(const float *x, const unsigned *cu_seqlens, float *out, unsigned dim, unsigned kind,
                                    unsigned normalise) {
    pool(x, cu_seqlens, out, dim, kind, normalise);
}

extern "C" __global__ void pool_f16(const __half *x, const unsigned *cu_seqlens, float *out, unsigned dim, unsigned kind,
                                    unsigned normalise) {
    pool(x, cu_seqlens, out, dim, kind, normalise);
}

extern "C" __global__ void pool_bf16(const __nv_bfloat16 *x, const unsigned *cu_seqlens, float *out, unsigned dim,
                                     unsigned kind, unsigned normalise) {
    pool(x, cu_seqlens, out, dim, kind, normalise);
}
