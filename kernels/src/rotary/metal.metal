// Rotary position embedding, in place: see mod.rs for the formula. Rows of T (float or half) with some heads side by side
// come in and are turned; the arithmetic is f32. Never pairs of neighbours.
//
// Stands behind launch/prelude.metal, which see for how it is compiled and tested.
//
// Functions: rotary_f32, rotary_f16. Buffers: as below. x: [rows, stride], of which the first `width` elements of a row are
// turned, whole heads of 2 * pairs; positions: [rows], below the tables' length; cosines, sines: [positions, pairs], those
// of rotary::Table.
// Launch: (ceil(width / 2 / 256), min(rows, 65535), 1) threadgroups of (256, 1, 1): the function strides over the rows that
// are left.

struct Params {
    uint rows, stride, width, pairs;
};

template <typename T>
static inline void rotary(device T *x, device const uint *positions, device const float *cosines,
                          device const float *sines, constant Params &params, uint2 position, uint2 threads) {
    if (position.x >= params.width / 2) {
        return;
    }
    const uint head = position.x / params.pairs, i = position.x % params.pairs;
    for (uint row = position.y; row < params.rows; row += threads.y) {
        const size_t angle = size_t(positions[row]) * params.pairs + i;
        device T *first = x + size_t(row) * params.stride + 2 * head * params.pairs + i;
        device T *second = first + params.pairs;
        const float a = float(*first), b = float(*second);
        *first = T(a * cosines[angle] - b * sines[angle]);
        *second = T(b * cosines[angle] + a * sines[angle]);
    }
}

#define ROTARY(type, T)                                                                                                   \
    kernel void rotary_##type(device T *x [[buffer(0)]], device const uint *positions [[buffer(1)]],                      \
                              device const float *cosines [[buffer(2)]], device const float *sines [[buffer(3)]],         \
                              constant Params &params [[buffer(4)]], uint2 position [[thread_position_in_grid]],          \
                              uint2 threads [[threads_per_grid]]) {                                                       \
        rotary<T>(x, positions, cosines, sines, params, position, threads);                                               \
    }

ROTARY(f32, float)
ROTARY(f16, half)
