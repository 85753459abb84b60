// What layers do to each of their numbers, in f32.
#pragma once

#include "numbers.cuh"

// u · Φ(u) as max(u, 0) − c(|u|), where c is t/2 / p(t)⁸: see launch/math.rs for the reasons and the coefficients.
static __device__ __forceinline__ float gelu_of(float u) {
    const float t = fminf(fabsf(u), 6.2f);
    float p = 3.973664e-7f;
    p = fmaf(p, t, -2.8203474e-6f);
    p = fmaf(p, t, 1.743931e-5f);
    p = fmaf(p, t, -1.0499561e-5f);
    p = fmaf(p, t, 0.00030827115f);
    p = fmaf(p, t, 0.0007715652f);
    p = fmaf(p, t, 0.008715915f);
    p = fmaf(p, t, 0.044751856f);
    p = fmaf(p, t, 0.099736564f);
    p = fmaf(p, t, 1.0f);
    p *= p;
    p *= p;
    p *= p;
    // Not fmaxf, which would make 0 of NaN.
    return (u < 0.0f ? 0.0f : u) - __fdividef(0.5f * t, p);
}

static __device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

template <int N, typename Of> static __device__ __forceinline__ void each(float (&x)[N], Of of) {
#pragma unroll
    for (int i = 0; i < N; i++) {
        x[i] = of(x[i]);
    }
}

// In the order of linear::Activation.
template <int N> static __device__ __forceinline__ void activate(float (&x)[N], unsigned activation) {
    switch (activation) {
    case 1:
        return each(x, [](float u) { return gelu_of(u); });
    case 2:
        // u/2 · (1 + tanh z) is u · sigmoid(2 z); the constants are 2 √(2/π), and that times 0.044715.
        return each(x, [](float u) { return u * sigmoid(u * fmaf(u * u, 0.071354814f, 1.5957691f)); });
    case 3:
        return each(x, [](float u) { return u * sigmoid(u); });
    case 4:
        // Not fmaxf, which would make 0 of NaN.
        return each(x, [](float u) { return u < 0.0f ? 0.0f : u; });
    case 5:
        return each(x, [](float u) { return tanhf(u); });
    default:
        return;
    }
}
