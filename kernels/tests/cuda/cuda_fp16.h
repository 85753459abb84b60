// CUDA C on a CPU, as far as the ops' sources use it: it stands where they include CUDA's header of the same name, on the
// grid of `grid/grid.h`. Never a feature that no source uses.
#pragma once

#define CUDA_ON_THE_CPU

#include "../grid/grid.h"

#include <cmath>
#include <cstring>

// How a harness calls a kernel within run_grid.
#define LAUNCH(kernel) kernel
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static // One block runs at a time.
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define threadIdx (current_thread->index)
#define blockIdx block_index
#define blockDim block_size
#define gridDim grid_size

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
template <typename T> T min(T a, T b) { return b < a ? b : a; }
template <typename T> T max(T a, T b) { return a < b ? b : a; }

inline void __syncthreads() { wait_at(block_barrier); }
inline void __syncwarp() { wait_at(current_thread->warp->barrier); }
template <typename T> T __shfl_xor_sync(unsigned, T x, int distance) {
    return of_lane(x, current_thread->lane ^ (unsigned)distance);
}
// Threads take turns.
inline unsigned atomicAdd(unsigned *at, unsigned x) {
    const unsigned before = *at;
    *at += x;
    return before;
}

// Compiled without fused operations.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __int2float_rn(int x) { return (float)x; }
template <typename To, typename From> To bits_of(From x) {
    To y;
    static_assert(sizeof y == sizeof x);
    std::memcpy(&y, &x, sizeof y);
    return y;
}
inline int __float_as_int(float x) { return bits_of<int>(x); }
inline long long __double_as_longlong(double x) { return bits_of<long long>(x); }
inline double __longlong_as_double(long long x) { return bits_of<double>(x); }

typedef _Float16 __half;
inline float __half2float(__half x) { return (float)x; }
inline __half __float2half_rn(float x) { return (__half)x; }

// c += a · b, 16 × 16 by 16 × 8, with the elements where PTX's mma.m16n8k16 has them in the threads of a warp: row r and
// element k of a are in lane r % 8 · 4 + k % 8 / 2, word r / 8 + 2 · (k / 8); element k and column n of b in lane n · 4 + k
// % 8 / 2, word k / 8.
template <typename T> void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    auto &words = current_thread->warp->words;
    const unsigned mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
    std::memcpy(words[current_thread->lane], mine, sizeof mine);
    wait_at(current_thread->warp->barrier);
    const auto element = [&](unsigned lane, unsigned word, unsigned half) {
        const unsigned short bits = (unsigned short)(words[lane][word] >> (16 * half));
        T x;
        std::memcpy(&x, &bits, sizeof x);
        return (float)x;
    };
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = current_thread->lane / 4 + i / 2 * 8, column = current_thread->lane % 4 * 2 + i % 2;
        for (unsigned k = 0; k < 16; k++) {
            c[i] += element(row % 8 * 4 + k % 8 / 2, row / 8 + 2 * (k / 8), k % 2) *
                    element(column * 4 + k % 8 / 2, 4 + k / 8, k % 2);
        }
    }
    wait_at(current_thread->warp->barrier);
}

// Four matrices of 8 × 8 elements of 16 bits, as PTX's ldmatrix.x4 has them in the threads of a warp: lane l says where row l % 8 of matrix l / 8 begins;
// word i of lane l has row l / 4, elements l % 4 · 2 and the next, of matrix i or of what comes of transposing it.
template <bool TRANSPOSED> void load_matrices(unsigned (&to)[4], const void *row) {
    auto &words = current_thread->warp->words;
    if ((size_t)row % 16 != 0) {
        fprintf(stderr, "a row of a matrix begins at %p, not at whole 16 bytes\n", row);
        exit(3);
    }
    std::memcpy(words[current_thread->lane], row, 16);
    wait_at(current_thread->warp->barrier);
    const auto element = [&](unsigned matrix, unsigned r, unsigned c) {
        return words[8 * matrix + r][c / 2] >> (c % 2 * 16) & 0xffff;
    };
    const unsigned r = current_thread->lane / 4, c = current_thread->lane % 4 * 2;
    for (unsigned i = 0; i < 4; i++) {
        to[i] = TRANSPOSED ? element(i, c, r) | element(i, c + 1, r) << 16 : element(i, r, c) | element(i, r, c + 1) << 16;
    }
    wait_at(current_thread->warp->barrier);
}

// What is read before it has arrived is no number in 16 bits.
inline void copy_later(uint4 *to, const uint4 *from, bool is_there) {
    std::memset(to, 0xff, sizeof *to);
    current_thread->on_their_way.push_back([=] { *to = is_there ? *from : make_uint4(0, 0, 0, 0); });
}
inline void wait_for_copies() {
    for (const auto &arrive : current_thread->on_their_way) {
        arrive();
    }
    current_thread->on_their_way.clear();
}
