// Launches one function of the ops' Metal sources on the CPU, by the description that a device would be given. Its name is
// the argument; on stdin are, as unsigned numbers of 32 bits: threadgroups in three dimensions, threads of one; the number
// of parameters, and these; the number of pieces of memory, and of each the bytes and what is in it; the number of buffers,
// and for each the piece that it is in, where it begins there in bytes, and whether it is written. All the memory goes to
// stdout. The suite that calls it is suite/mod.rs.

#include <cstdint>
#include <cstdio>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../src/launch/prelude.metal"

// The sources have names in common.
namespace attention_source {
#include "../../src/attention/metal.metal"
}
namespace gelu_source {
#include "../../src/gelu/metal.metal"
}
namespace glu_source {
#include "../../src/glu/metal.metal"
}
namespace layer_norm_source {
#include "../../src/layer_norm/metal.metal"
}
namespace pool_source {
#include "../../src/pool/metal.metal"
}
namespace rms_norm_source {
#include "../../src/rms_norm/metal.metal"
}
namespace rotary_source {
#include "../../src/rotary/metal.metal"
}

struct Buffer {
    char *at;
    bool is_written;
};

static uint3 groups;
static uint threads_of_group;
static std::vector<uint> params;
static std::vector<Buffer> buffers;

[[noreturn]] static void refuse(const std::string &why) {
    fprintf(stderr, "%s\n", why.c_str());
    exit(2);
}

// What a function's parameter is given: the buffer at its index, or the parameters behind the last of them, or what the
// grid says.
template <size_t I, size_t BUFFERS, typename P, typename Grid> static P argument(const Grid &grid) {
    if constexpr (I < BUFFERS) {
        static_assert(std::is_pointer_v<P>, "buffers come first");
        using T = std::remove_pointer_t<P>;
        if (buffers[I].is_written == std::is_const_v<T>) {
            refuse("buffer " + std::to_string(I) + " is described as " + (buffers[I].is_written ? "written" : "read"));
        }
        if ((uintptr_t)buffers[I].at % sizeof(T) != 0) {
            refuse("buffer " + std::to_string(I) + " does not begin at an element");
        }
        return (P)buffers[I].at;
    } else if constexpr (I == BUFFERS) {
        using Params = std::remove_reference_t<P>;
        if (sizeof(Params) != params.size() * sizeof(uint)) {
            refuse("there are " + std::to_string(sizeof(Params) / sizeof(uint)) + " parameters");
        }
        return *(Params *)params.data();
    } else {
        return std::get<I - BUFFERS - 1>(grid());
    }
}

// Runs a function in every thread. `grid` gives what is behind the parameters.
template <typename... P, typename Grid> static void launch(void (*function)(P...), const Grid &grid) {
    constexpr size_t BUFFERS = (size_t(std::is_pointer_v<P>) + ...);
    if (buffers.size() != BUFFERS) {
        refuse("there are " + std::to_string(BUFFERS) + " buffers");
    }
    run_grid({groups.x, groups.y, groups.z}, {threads_of_group, 1, 1}, [&] {
        [&]<size_t... I>(std::index_sequence<I...>) {
            function(argument<I, BUFFERS, P>(grid)...);
        }(std::index_sequence_for<P...>{});
    });
}

static uint index_in_group() { return current_thread->index.x; }

static std::tuple<uint2, uint2> position_and_threads() {
    return {{block_index.x * block_size.x + index_in_group(), block_index.y}, {grid_size.x * block_size.x, grid_size.y}};
}
static std::tuple<uint, uint, uint> group_simdgroup_lane() {
    return {block_index.x, index_in_group() / 32, index_in_group() % 32};
}
static std::tuple<uint, uint> group_index() { return {block_index.x, index_in_group()}; }
static std::tuple<uint3, uint> groups_index() { return {{block_index.x, block_index.y, block_index.z}, index_in_group()}; }

#define FUNCTION(op, ending, grid)                                                                                        \
    { #op "_" #ending, [] { launch(op##_source::op##_##ending, grid); } }
#define ON_EVERY_TYPE(op, grid) FUNCTION(op, f32, grid), FUNCTION(op, f16, grid)
#define ON_EVERY_WIDTH(op, type, grid)                                                                                    \
    FUNCTION(op, type##_32, grid), FUNCTION(op, type##_64, grid), FUNCTION(op, type##_128, grid), FUNCTION(op, type##_256, grid)

static const std::vector<std::pair<std::string, void (*)()>> FUNCTIONS = {
    ON_EVERY_WIDTH(attention, f32, groups_index),    ON_EVERY_WIDTH(attention, f16, groups_index),
    ON_EVERY_TYPE(gelu, position_and_threads),       ON_EVERY_TYPE(glu, position_and_threads),
    ON_EVERY_TYPE(layer_norm, group_simdgroup_lane), ON_EVERY_TYPE(pool, group_index),
    ON_EVERY_TYPE(rms_norm, group_simdgroup_lane),   ON_EVERY_TYPE(rotary, position_and_threads),
};

static void read(void *to, size_t bytes) {
    if (bytes != 0 && fread(to, 1, bytes, stdin) != bytes) {
        refuse("stdin is too short");
    }
}

static uint number() {
    uint32_t number;
    read(&number, sizeof number);
    return number;
}

int main(int count, char **arguments) {
    const std::string wanted = count > 1 ? arguments[1] : "";
    groups = {number(), number(), number()};
    threads_of_group = number();
    params.resize(number());
    read(params.data(), params.size() * sizeof(uint));
    std::vector<std::vector<char>> memory(number());
    for (auto &piece : memory) {
        piece.resize(number());
        read(piece.data(), piece.size());
    }
    buffers.resize(number());
    for (Buffer &buffer : buffers) {
        std::vector<char> &piece = memory.at(number());
        const uint offset = number();
        buffer = {piece.data() + offset, number() != 0};
        if (offset > piece.size()) {
            refuse("a buffer begins behind the end of its memory");
        }
    }
    for (const auto &[name, run] : FUNCTIONS) {
        if (name == wanted) {
            run();
            for (const auto &piece : memory) {
                fwrite(piece.data(), 1, piece.size(), stdout);
            }
            return 0;
        }
    }
    refuse("no function " + wanted);
}
