// The normalisation of one row by one warp: what the row's elements are comes in as a function of their place, the result goes out. See mod.rs for
// the formula. Never a row in more than one warp.
#pragma once

#include "../launch/numbers.cuh"

template <typename T, typename Of>
static __device__ __forceinline__ void normalise_row(Of of, const T *weight, const T *bias, T *out, float eps, unsigned dim) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < dim; i += 32) {
        sum += of(i);
    }
    const float centre = warp_sum(sum) / (float)dim;

    float first = 0.0f, second = 0.0f;
    for (unsigned i = threadIdx.x; i < dim; i += 32) {
        const float deviation = of(i) - centre;
        first += deviation;
        second = fmaf(deviation, deviation, second);
    }
    // What rounding left out of the centre; see simd.rs.
    const float rest = warp_sum(first) / (float)dim;
    float var = warp_sum(second) / (float)dim - rest * rest;
    var = var < 0.0f ? 0.0f : var;
    const float inverse = 1.0f / sqrtf(var + eps);

    for (unsigned i = threadIdx.x; i < dim; i += 32) {
        const float normal = (of(i) - centre - rest) * inverse;
        from_float(fmaf(normal, to_float(weight[i]), to_float(bias[i])), &out[i]);
    }
}
