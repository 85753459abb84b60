// The normalisation of one row by one warp: what N of the row's elements are comes in as a function of their place, the result goes out. See
// mod.rs for the formula. Never a row in more than one warp.
#pragma once

#include "../launch/numbers.cuh"

template <int N, typename T, typename Of>
static __device__ __forceinline__ void normalise_row(Of of, const T *weight, const T *bias, T *out, float eps, unsigned dim) {
    const auto each = [&](auto what) {
        for (unsigned i = threadIdx.x * N; i < dim; i += 32 * N) {
            float x[N];
            of(x, i);
            what(x, i);
        }
    };
    float sum = 0.0f;
    each([&](const float(&x)[N], unsigned) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            sum += x[j];
        }
    });
    const float centre = warp_sum(sum) / (float)dim;

    float first = 0.0f, second = 0.0f;
    each([&](const float(&x)[N], unsigned) {
#pragma unroll
        for (int j = 0; j < N; j++) {
            const float deviation = x[j] - centre;
            first += deviation;
            second = fmaf(deviation, deviation, second);
        }
    });
    // What rounding left out of the centre; see simd.rs.
    const float rest = warp_sum(first) / (float)dim;
    float var = warp_sum(second) / (float)dim - rest * rest;
    var = var < 0.0f ? 0.0f : var;
    const float inverse = 1.0f / sqrtf(var + eps);

    each([&](float(&x)[N], unsigned i) {
        float scale[N], shift[N];
        take(scale, weight + i);
        take(shift, bias + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            x[j] = fmaf((x[j] - centre - rest) * inverse, scale[j], shift[j]);
        }
        put(out + i, x);
    });
}
