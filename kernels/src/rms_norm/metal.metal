// Root-mean-square normalisation, with the residual addition in front of it where there is one: see mod.rs for the formula.
// Rows of T (float or half) come in and go out; sums are f32. Never a row in more than one SIMD-group.
//
// Stands behind launch/prelude.metal, which see for how it is compiled and tested.
//
// Functions: rms_norm_f32, rms_norm_f16. Buffers: as below; without a residual any may stand for it, and where nobody wants
// the sum any for that, which is not written then.
// x, residual, sum, out: [rows, dim]; weight: [dim]. out may be x or residual; sum may be the other of the two, and is
// where x + residual goes, rounded to T, for layers that add to it again.
// Launch: (ceil(rows / 4), 1, 1) threadgroups of (128, 1, 1): four SIMD-groups of 32, one row each.

struct Params {
    uint rows, dim;
    // 0 or 1
    uint has_residual, has_sum;
    float eps;
};

template <typename T>
static inline void rms_norm(device const T *x, device const T *residual, device const T *weight, device T *sum,
                            device T *out, constant Params &params, uint row, uint lane) {
    if (row >= params.rows) {
        return; // The whole SIMD-group: it has one row.
    }
    const size_t begin = size_t(row) * params.dim;
    float squares = 0.0f;
    for (uint i = lane; i < params.dim; i += 32) {
        const float s = summand(x, residual, params.has_residual, begin + i);
        squares = fma(s, s, squares);
    }
    const float inverse = 1.0f / sqrt(simd_sum(squares) / float(params.dim) + params.eps);

    // Each lane replaces only what it alone reads.
    for (uint i = lane; i < params.dim; i += 32) {
        const float s = summand(x, residual, params.has_residual, begin + i);
        if (params.has_sum != 0) {
            sum[begin + i] = T(s);
        }
        out[begin + i] = T(s * inverse * float(weight[i]));
    }
}

#define RMS_NORM(type, T)                                                                                                 \
    kernel void rms_norm_##type(device const T *x [[buffer(0)]], device const T *residual [[buffer(1)]],                  \
                                device const T *weight [[buffer(2)]], device T *sum [[buffer(3)]],                        \
                                device T *out [[buffer(4)]], constant Params &params [[buffer(5)]],                       \
                                uint group [[threadgroup_position_in_grid]],                                              \
                                uint simdgroup [[simdgroup_index_in_threadgroup]],                                        \
                                uint lane [[thread_index_in_simdgroup]]) {                                                \
        rms_norm<T>(x, residual, weight, sum, out, params, 4 * group + simdgroup, lane);                                  \
    }

RMS_NORM(f32, float)
RMS_NORM(f16, half)
