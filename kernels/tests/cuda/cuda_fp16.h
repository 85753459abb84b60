// CUDA C on a CPU, as far as the ops' sources use it: it stands where they include CUDA's header of the same name. A grid's blocks
// run one after the other; the threads of a block are threads of the host, with barriers for the warps and the block. Never
// fast, and never a proof about a GPU: it shows that the indices, bounds and formulas are right.
#pragma once

#include <barrier>
#include <cmath>
#include <cstddef>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static // One block runs at a time.

struct Dim {
    unsigned x, y, z;
};

struct Warp {
    std::barrier<> barrier{32};
    float values[32];
};

inline thread_local Dim threadIdx, blockIdx;
inline Dim blockDim, gridDim;
inline thread_local Warp *own_warp;
inline thread_local unsigned own_lane;
inline std::barrier<> *block_barrier;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

inline float __shfl_xor_sync(unsigned, float x, int distance) {
    own_warp->values[own_lane] = x;
    own_warp->barrier.arrive_and_wait();
    const float other = own_warp->values[own_lane ^ (unsigned)distance];
    own_warp->barrier.arrive_and_wait();
    return other;
}

typedef _Float16 __half;
inline float __half2float(__half x) { return (float)x; }
inline __half __float2half_rn(float x) { return (__half)x; }
inline float normcdff(float x) { return (float)(0.5 * std::erfc(-(double)x / std::sqrt(2.0))); }

// kernel<<<grid, block>>>(...)
template <typename Kernel> void launch(Dim grid, Dim block, Kernel kernel) {
    gridDim = grid;
    blockDim = block;
    const unsigned count = block.x * block.y;
    for (unsigned b = 0; b < grid.x * grid.y; b++) {
        std::vector<std::unique_ptr<Warp>> warps;
        for (unsigned i = 0; i < count; i += 32) {
            warps.push_back(std::make_unique<Warp>());
        }
        std::barrier<> barrier(count);
        block_barrier = &barrier;
        std::vector<std::thread> threads;
        for (unsigned t = 0; t < count; t++) {
            threads.emplace_back([&, b, t] {
                blockIdx = {b % grid.x, b / grid.x, 0};
                threadIdx = {t % block.x, t / block.x, 0};
                own_warp = warps[t / 32].get();
                own_lane = t % 32;
                kernel();
            });
        }
        for (std::thread &thread : threads) {
            thread.join();
        }
    }
}
