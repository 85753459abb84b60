// What a stand-in for a CUDA device does and when: memory that is checked, streams that run late, graphs. Never a kernel's
// code, which is in code.h.
//
// A stream runs when somebody waits for it and not before, so that whoever forgets to wait, or asks another thread's stream, reads
// what is not there yet. Memory that was freed is full of NaN and is not given out again.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
};

using Address = unsigned long long;
using Work = std::function<void()>;

// One at a time: the grid of threads has static memory.
inline std::recursive_mutex whole;

// What went wrong last and will go on doing so, as on a real device.
inline Result broken = SUCCESS;

inline void say(const char *format, ...) {
    va_list list;
    va_start(list, format);
    fprintf(stderr, "stand-in for CUDA: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
}

inline Result breaks(const char *why) {
    say("%s", why);
    return broken = ILLEGAL_ADDRESS;
}

struct Block {
    size_t bytes;
    bool is_live;
};

// Every piece of memory that there was, by its first address.
inline std::map<Address, Block> blocks;
inline std::deque<Address> dead;
inline size_t live_bytes = 0, dead_bytes = 0;

inline size_t total_bytes() {
    const char *given = getenv("STAND_IN_CUDA_BYTES");
    return given ? strtoull(given, nullptr, 10) : 4ull << 30;
}

inline Address take(size_t bytes) {
    if (bytes == 0 || live_bytes + bytes > total_bytes()) {
        return 0;
    }
    const size_t rounded = (bytes + 511) / 512 * 512;
    void *memory = aligned_alloc(512, rounded);
    if (!memory) {
        return 0;
    }
    memset(memory, 0xff, rounded);
    blocks[(Address)memory] = {bytes, true};
    live_bytes += bytes;
    return (Address)memory;
}

inline Result give(Address address) {
    const auto found = blocks.find(address);
    if (found == blocks.end() || !found->second.is_live) {
        return breaks("memory is freed that is not there");
    }
    memset((void *)address, 0xff, found->second.bytes);
    found->second.is_live = false;
    live_bytes -= found->second.bytes;
    dead_bytes += found->second.bytes;
    dead.push_back(address);
    // Only so much is kept to be recognised.
    while (dead_bytes > 1u << 30) {
        dead_bytes -= blocks[dead.front()].bytes;
        blocks.erase(dead.front());
        free((void *)dead.front());
        dead.pop_front();
    }
    return SUCCESS;
}

// Whether so many bytes from an address on are one piece of memory. Other numbers are no concern of this.
inline bool is_good(Address address, size_t bytes) {
    auto found = blocks.upper_bound(address);
    if (found == blocks.begin()) {
        return false;
    }
    --found;
    return found->second.is_live && address + bytes <= found->first + found->second.bytes;
}

inline bool is_dead(Address address) {
    auto found = blocks.upper_bound(address);
    if (found == blocks.begin()) {
        return false;
    }
    --found;
    return !found->second.is_live && address < found->first + found->second.bytes;
}

// The host's memory that devices copy by themselves, which is only there when somebody has waited.
inline std::map<Address, size_t> pinned;

inline bool is_pinned(const void *memory, size_t bytes) {
    auto found = pinned.upper_bound((Address)memory);
    if (found == pinned.begin()) {
        return false;
    }
    --found;
    return (Address)memory + bytes <= found->first + found->second;
}

struct Graph {
    std::vector<Work> nodes;
    std::vector<Address> memory; // What was allocated while it was recorded; it goes with the graph.
    std::vector<Address> open; // Of that, what was not freed meanwhile.
    bool has_run = false;

    ~Graph() {
        for (Address address : memory) {
            give(address);
        }
    }
};

struct Stream;

// What this thread records.
inline thread_local Stream *recorder = nullptr;

// Every stream that there is, and what those left that are gone.
inline std::vector<Stream *> streams;
inline std::vector<Work> left;

struct Stream {
    std::vector<Work> waiting;
    std::unique_ptr<Graph> recording;
    bool is_invalid = false;

    Stream() {
        const std::lock_guard lock(whole);
        streams.push_back(this);
    }

    ~Stream() {
        const std::lock_guard lock(whole);
        left.insert(left.end(), waiting.begin(), waiting.end());
        std::erase(streams, this);
    }

    void run() {
        std::vector<Work> now;
        now.swap(waiting);
        for (const Work &work : now) {
            if (broken == SUCCESS) {
                work();
            }
        }
    }

    Result add(Work work) {
        if (broken != SUCCESS) {
            return broken;
        }
        (recording ? recording->nodes : waiting).push_back(std::move(work));
        return SUCCESS;
    }
};

// By what a program calls it. The one of a thread has a number of its own, and so has the one of old, which is not given to anybody here.
inline Stream &of(void *handle) {
    thread_local Stream mine;
    return handle == (void *)2 ? mine : *(Stream *)handle;
}

// What must not be called while this thread records.
inline Result refuse(const char *what) {
    if (!recorder) {
        return SUCCESS;
    }
    say("%s while a graph is recorded", what);
    recorder->is_invalid = true;
    return CAPTURE_UNSUPPORTED;
}

inline void run_all() {
    std::vector<Work> now;
    now.swap(left);
    for (const Work &work : now) {
        work();
    }
    for (Stream *stream : streams) {
        stream->run();
    }
}
