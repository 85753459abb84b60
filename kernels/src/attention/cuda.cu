// Attention over packed sequences: see mod.rs for the formula. Queries, keys and values of T (float, __half or
// __nv_bfloat16) come in, a row of context per token goes out; scores, weights' sums and results are summed in f32. Never
// padding, never a mask tensor.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// Functions: attention_<type>_<D>: type f32, f16 or bf16; D 32, 64, 128 or 256, the least that is not below head_dim.
// Arguments, in order: const T *q, const T *k, const T *v, const T *shift (or null),
//   const unsigned *cu_seqlens, const float *bias (or null), T *out,
//   unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned heads, unsigned kv_heads, unsigned head_dim, float
//   scale, unsigned behind, unsigned ahead, unsigned span. q, k, v: rows of [heads * head_dim] or [kv_heads * head_dim] at
//   their strides, in elements; shift: [(heads + 2 * kv_heads) * head_dim], what is added to each row of queries, keys and values
//   beforehand; cu_seqlens: [sequences + 1], as the host has checked it; bias: [heads, 2 * span + 1] as
//   attention::Relative has it; out: [tokens, heads * head_dim], not one of the operands. behind and ahead are
//   attention::Reach, 0xffffffff for no bound. head_dim and the strides are multiples of 16 bytes, and q, k, v and
//   shift begin at one.
// Launch: block (32, W, 1), grid (ceil(longest sequence / (16 * W)), heads, sequences), at most 65535 sequences; W is 4,
//   with D 256 it is 2. Blocks behind the end of their sequence return at once. No dynamic shared memory.
//
// A block has 16 * W queries of a head, a warp 16 of them; see ../launch/flash.cuh for how it goes over their keys. In f16,
// and in bf16 when compiled for compute capability 8.0 or newer, products run on tensor cores (mma) and weights are rounded
// to T between the two; in f32, and in bf16 below 8.0, they are fused multiply-adds in f32. A value that is NaN or infinite
// may reach queries of its sequence beside those that see it; never another sequence.

#include "../launch/flash.cuh"

// The arguments.
template <typename T> struct Call {
    const T *q, *k, *v, *shift;
    const unsigned *cu_seqlens;
    const float *bias;
    T *output;
    unsigned q_stride, k_stride, v_stride, heads, kv_heads, head_dim;
    float scale;
    unsigned behind, ahead, span;
};

// What one block works at: one head of one sequence, whose first token is token 0.
template <typename T> struct Part {
    const T *q, *k, *v;
    // Of its queries and its values, or null. What is added to every key adds the same to all scores of a query, and so nothing to weights.
    const T *q_shift, *v_shift;
    T *output;
    // Of distance 0, or null.
    const float *bias;
    unsigned q_stride, k_stride, v_stride, out_stride, head_dim;
    float scale;
    // Tokens, and the reach, which is at most as many.
    int queries, keys, behind, ahead;

    __device__ __forceinline__ const T *query(int row) const { return q + (size_t)row * q_stride; }
    __device__ __forceinline__ const T *key(int row) const { return k + (size_t)row * k_stride; }
    __device__ __forceinline__ const T *value(int row) const { return v + (size_t)row * v_stride; }
    __device__ __forceinline__ T *out(int row) const { return output + (size_t)row * out_stride; }
    __device__ __forceinline__ const T *query_shift() const { return q_shift; }
    __device__ __forceinline__ const T *value_shift() const { return v_shift; }
    __device__ __forceinline__ int begin(int first) const { return max(0, first - behind); }
    __device__ __forceinline__ int end(int first, int rows) const { return min(keys, first + rows + ahead); }

    __device__ __forceinline__ float factor() const { return scale * LOG2_E; }
    __device__ __forceinline__ bool is_plain(int first, int rows, int key, int count) const {
        return bias == nullptr && scale > 0.0f && key + count <= keys && key >= first + rows - 1 - behind &&
               key + count - 1 <= first + ahead;
    }
    __device__ __forceinline__ float score(float product, int query, int key) const {
        const bool is_seen = key < keys && key >= query - behind && key <= query + ahead;
        float score = product * factor();
        if (bias != nullptr && is_seen && query < queries) {
            score = fmaf(bias[key - query], LOG2_E, score);
        }
        return is_seen ? score : -INFINITY;
    }
};

template <typename T> static __device__ __forceinline__ Part<T> part_of(const Call<T> &call) {
    const unsigned head = blockIdx.y, kv_head = head * call.kv_heads / call.heads;
    const size_t begin = call.cu_seqlens[blockIdx.z];
    const unsigned len = call.cu_seqlens[blockIdx.z + 1] - (unsigned)begin;
    Part<T> part;
    part.q = call.q + begin * call.q_stride + head * call.head_dim;
    part.k = call.k + begin * call.k_stride + kv_head * call.head_dim;
    part.v = call.v + begin * call.v_stride + kv_head * call.head_dim;
    const unsigned q_width = call.heads * call.head_dim, kv_width = call.kv_heads * call.head_dim;
    part.q_shift = call.shift == nullptr ? nullptr : call.shift + head * call.head_dim;
    part.v_shift = call.shift == nullptr ? nullptr : call.shift + q_width + kv_width + kv_head * call.head_dim;
    part.output = call.output + (begin * call.heads + head) * call.head_dim;
    part.bias = call.bias == nullptr ? nullptr : call.bias + (size_t)head * (2 * call.span + 1) + call.span;
    part.q_stride = call.q_stride;
    part.k_stride = call.k_stride;
    part.v_stride = call.v_stride;
    part.out_stride = call.heads * call.head_dim;
    part.head_dim = call.head_dim;
    part.scale = call.scale;
    part.queries = part.keys = (int)len;
    part.behind = (int)min(call.behind, len);
    part.ahead = (int)min(call.ahead, len);
    return part;
}

#define ATTENTION(type, T, D, WARPS, BLOCKS, FORM)                                                                                      \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)                                                                    \
        attention_##type##_##D(                                                                                                         \
            const T *q, const T *k, const T *v, const T *shift, const unsigned *cu_seqlens, const float *bias, T *out,                  \
            unsigned q_stride, unsigned k_stride, unsigned v_stride, unsigned heads, unsigned kv_heads, unsigned head_dim, float scale, \
            unsigned behind, unsigned ahead, unsigned span) {                                                                           \
        FORM<T, D, WARPS>(part_of<T>({q, k, v, shift, cu_seqlens, bias, out, q_stride, k_stride, v_stride, heads, kv_heads,             \
                                      head_dim, scale, behind, ahead, span}));                                                          \
    }

ATTENTION(f32, float, 32, 4, BLOCKS_MIN, plain_in_tiles)
ATTENTION(f32, float, 64, 4, BLOCKS_MIN, plain_in_tiles)
ATTENTION(f32, float, 128, 4, BLOCKS_MIN, plain_in_tiles)
ATTENTION(f32, float, 256, 2, BLOCKS_MIN, plain_in_tiles)
ATTENTION(f16, __half, 32, 4, 4, tensor)
ATTENTION(f16, __half, 64, 4, 3, tensor)
ATTENTION(f16, __half, 128, 4, BLOCKS_MIN, tensor)
ATTENTION(f16, __half, 256, 2, BLOCKS_MIN, tensor)
ATTENTION(bf16, __nv_bfloat16, 32, 4, 4, FORM_OF_BF16)
ATTENTION(bf16, __nv_bfloat16, 64, 4, 3, FORM_OF_BF16)
ATTENTION(bf16, __nv_bfloat16, 128, 4, BLOCKS_MIN, FORM_OF_BF16)
ATTENTION(bf16, __nv_bfloat16, 256, 2, BLOCKS_MIN, FORM_OF_BF16)
