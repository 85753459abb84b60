// The grid of grid/grid.h on a real GPU, for the harness when nvcc builds it: memory of the host that the GPU reaches too, and a launch
// that ends before it returns. Never fast.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>
#include <functional>
#include <new>

inline void check(cudaError_t error, const char *doing) {
    if (error != cudaSuccess) {
        fprintf(stderr, "%s: %s\n", doing, cudaGetErrorString(error));
        exit(4);
    }
}

// Every vector of the harness is an operand: its memory is one that kernels reach, as large as was asked for and not larger.
void *operator new(size_t bytes) {
    void *memory = nullptr;
    check(cudaMallocManaged(&memory, bytes == 0 ? 1 : bytes), "allocating");
    return memory;
}
// What is left when the process ends, the driver takes back.
void operator delete(void *memory) noexcept { cudaFree(memory); }
void operator delete(void *memory, size_t) noexcept { cudaFree(memory); }

struct Dim {
    unsigned x, y, z;
};

inline dim3 grid_size, block_size;

// How a harness calls a kernel within run_grid.
#define LAUNCH(kernel) kernel<<<grid_size, block_size>>>

inline void run_grid(Dim grid, Dim block, const std::function<void()> &launch) {
    // Nothing to do is no launch.
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) {
        return;
    }
    grid_size = {grid.x, grid.y, grid.z};
    block_size = {block.x, block.y, block.z};
    launch();
    check(cudaGetLastError(), "launching");
    check(cudaDeviceSynchronize(), "running");
}
