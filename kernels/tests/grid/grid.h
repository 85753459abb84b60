// A GPU's grid of threads on a CPU, as far as the ops' sources need it: blocks run one after the other, and the threads of
// a block are contexts that take turns at barriers, so that every run is the same. Never fast, and never a proof about a
// GPU: it shows that the indices, bounds, barriers and formulas are right.
#pragma once

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 // Some systems have ucontext.h only then.
#endif
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

struct Dim {
    unsigned x, y, z;
};

// Where threads wait for each other.
struct Barrier {
    unsigned expected = 0, arrived = 0;
    unsigned long generation = 0;
};

struct Warp {
    Barrier barrier;
    unsigned words[32][6];
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Dim index;
    unsigned lane;
    Warp *warp;
    bool done;
    std::vector<std::function<void()>> on_their_way; // Copies that it has not waited for.
};

constexpr size_t STACK_BYTES = 128 * 1024;

inline ucontext_t scheduler;
inline Thread *current_thread; // Whose turn it is.
inline bool progress; // Whether anybody got anywhere since this was last false.
inline Barrier block_barrier;
inline Dim block_index, block_size, grid_size;
inline const std::function<void()> *body;

inline void wait_at(Barrier &barrier) {
    const unsigned long generation = barrier.generation;
    progress = true;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        barrier.generation++;
        return;
    }
    while (barrier.generation == generation) {
        swapcontext(&current_thread->context, &scheduler);
    }
}

// What lane `from` of the warp has.
template <typename T> T of_lane(T x, unsigned from) {
    auto &words = current_thread->warp->words;
    std::memcpy(words[current_thread->lane], &x, sizeof x);
    wait_at(current_thread->warp->barrier);
    T other;
    std::memcpy(&other, words[from], sizeof other);
    wait_at(current_thread->warp->barrier);
    return other;
}

inline void run_thread() {
    (*body)();
    current_thread->done = progress = true;
}

// Runs `kernel` for every thread of every block. Warps are 32 neighbours, counted along x and then y.
inline void run_grid(Dim grid, Dim block, const std::function<void()> &kernel) {
    static std::vector<Thread> threads;
    const unsigned count = block.x * block.y * block.z;
    grid_size = grid;
    block_size = block;
    body = &kernel;
    while (threads.size() < count) {
        threads.emplace_back();
        threads.back().stack = std::make_unique_for_overwrite<char[]>(STACK_BYTES);
    }
    for (unsigned b = 0; b < grid.x * grid.y * grid.z; b++) {
        block_index = {b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y};
        block_barrier = {count, 0, 0};
        std::vector<Warp> warps((count + 31) / 32);
        for (unsigned t = 0; t < count; t++) {
            Thread &thread = threads[t];
            thread.index = {t % block.x, t / block.x % block.y, t / block.x / block.y};
            thread.lane = t % 32;
            thread.warp = &warps[t / 32];
            thread.warp->barrier.expected++;
            thread.done = false;
            thread.on_their_way.clear();
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = thread.stack.get();
            thread.context.uc_stack.ss_size = STACK_BYTES;
            thread.context.uc_link = &scheduler;
            makecontext(&thread.context, run_thread, 0);
        }
        // A warp goes as far as it can before another one does; forwards and backwards in turn. So neither order hides a
        // barrier that is missing.
        bool backwards = false, any;
        do {
            any = false;
            for (unsigned w = 0; w < warps.size(); w++) {
                const unsigned first = (backwards ? (unsigned)warps.size() - 1 - w : w) * 32;
                const unsigned end = std::min(first + 32, count);
                do {
                    progress = false;
                    for (unsigned i = 0; i < end - first; i++) {
                        current_thread = &threads[backwards ? end - 1 - i : first + i];
                        if (!current_thread->done) {
                            swapcontext(&scheduler, &current_thread->context);
                        }
                    }
                    any |= progress;
                } while (progress);
            }
            backwards = !backwards;
        } while (any);
        for (unsigned t = 0; t < count; t++) {
            if (!threads[t].done) {
                fprintf(stderr, "block %u: thread %u waits at a barrier where others never come\n", b, t);
                exit(3);
            }
        }
    }
}
