// What the Metal sources have in common; launch/metal.rs puts it in front of each.
//
// Whoever owns a device compiles the two together, with fast math off: NaN and infinities come in and have to go out. How
// each is launched is in metal/launches.rs, too, and by that tests/metal.rs runs them on a CPU, which shows that indices,
// barriers, formulas and launches are right. No compiler for Metal and no Apple GPU has seen them yet.

#include <metal_stdlib>
using namespace metal;

// Memory that the threads of a threadgroup share. (Where the sources run on a CPU, threadgroups run one after the other.)
#ifndef METAL_ON_THE_CPU
#define SHARED threadgroup
#endif

// u · Φ(u) = max(u, 0) − c(|u|) with c(t) = t/2 / p(t)⁸, as launch/math.rs has it and says why: Metal has no error function.
static inline float gelu_of(float u) {
    const float t = min(6.2f, abs(u));
    float p = 3.973664e-7f;
    p = fma(p, t, -2.8203474e-6f);
    p = fma(p, t, 1.743931e-5f);
    p = fma(p, t, -1.0499561e-5f);
    p = fma(p, t, 3.0827115e-4f);
    p = fma(p, t, 7.715652e-4f);
    p = fma(p, t, 8.715915e-3f);
    p = fma(p, t, 4.4751856e-2f);
    p = fma(p, t, 9.9736564e-2f);
    p = fma(p, t, 1.0f);
    const float p2 = p * p, p4 = p2 * p2;
    // Not max, which would make 0 of NaN.
    return (u < 0.0f ? 0.0f : u) - 0.5f * t / (p4 * p4);
}

static inline float sigmoid(float u) { return 1.0f / (1.0f + exp(-u)); }

// Element i of x, or of x + residual, rounded to T as when the two steps are apart.
template <typename T>
static inline float summand(device const T *x, device const T *residual, uint has_residual, size_t i) {
    return has_residual == 0 ? float(x[i]) : float(T(float(x[i]) + float(residual[i])));
}
