// Attention over keys and values in blocks of 16 tokens: see mod.rs for the formula. What a step of text generation has of
// queries, keys and values in T (float, __half or __nv_bfloat16) comes in; keys and values go into the cache, rows of
// context out. Norms, angles, scores, weights' sums and results are f32. Never a decision about blocks.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// The cache: T keys[slots, kv_heads * head_dim], T values[the same]; the token at position p of the sequence with block
// table b lies in slot b[p / 16] * 16 + p % 16. Tables and slots are as the host has checked them. Query head h belongs to
// key head h * kv_heads / heads. `window` is how many keys a query sees, 0xffffffff for all; `softcap` is what scores are
// capped at, 0 for no cap. All pointers begin at 16 bytes, and so do rows: head_dim and strides are multiples of 8 elements.
//
// attention_paged_keep_<type>: turns queries and keys to their positions, each head first normalised (RMS) where there are
//   weights for that, and writes keys and values into the cache. Arguments, in order: const T *qkv, T *queries, T *keys,
//   T *values, const unsigned *positions, const unsigned *slots, const float *cos, const float *sin, const T *q_norm (or
//   null), const T *k_norm (or null), float q_eps, float k_eps, unsigned heads, unsigned kv_heads, unsigned half. qkv:
//   [tokens, (heads + 2 * kv_heads) * 2 * half]; queries: [tokens, heads * 2 * half]; positions, slots: [tokens], no slot
//   twice; cos, sin: those of rotary::Table; q_norm, k_norm: [2 * half]. Launch: block (32, 4, 1), grid (tokens,
//   ceil((heads + 2 * kv_heads) / 4), 1): a warp has one head of one token.
//
// attention_paged_decode_<type>_<D>_<G>: one query for each sequence. D 32, 64, 128 or 256, the least that is not below
//   head_dim; G 1, 4 or 8, the least that is not below heads / kv_heads, or 8. Arguments: const T *q, const T *keys,
//   const T *values, const unsigned *tables, const unsigned *lengths, T *out, float *parts (or null, with one split),
//   unsigned q_stride, unsigned heads, unsigned kv_heads, unsigned head_dim, unsigned table_stride, float scale, float
//   softcap, unsigned window. q: [sequences, heads * head_dim] at its stride; tables: [sequences, table_stride]; lengths:
//   [sequences], with the new token, whose key is in the cache; out: [sequences, heads * head_dim]. Keys are weighed 128 at
//   a time, by their positions: a split. A sequence whose query sees keys of one split has its row of out written, and one
//   of more has records in parts: [sequences, heads, splits, 2 + head_dim], the largest score in powers of two, the sum of
//   weights, the sum of values. Launch: block (32, 4, 1), grid (splits, kv_heads * ceil(heads / kv_heads / G), sequences),
//   splits being the most of any sequence: ceil(length / 128) - max(0, length - window) / 128.
//
// attention_paged_merge_<type>: makes the rows that decode has left in parts. Arguments: const float *parts, const
//   unsigned *lengths, T *out, unsigned heads, unsigned head_dim, unsigned splits, unsigned window. Launch: block (32, 4, 1),
//   grid (ceil(heads / 4), sequences, 1). Not needed with one split.
//
// attention_paged_prefill_<type>_<D>: queries that follow each other at the end of each sequence. Arguments: const T *q,
//   const T *keys, const T *values, const unsigned *cu_queries, const unsigned *tables, const unsigned *lengths, T *out,
//   unsigned q_stride, unsigned heads, unsigned kv_heads, unsigned head_dim, unsigned table_stride, float scale, float
//   softcap, unsigned window. cu_queries: [sequences + 1], rows of q and of out; the others as above. Launch: block (32, W,
//   1), grid (ceil(most queries of a sequence / (16 * W)), heads, sequences); W is 4, with D 256 it is 2.
//
// At most 65535 sequences. No dynamic shared memory. A result does not depend on other sequences, nor on which blocks a
// sequence has; whether a token was decoded or came with a prompt changes its last digits.

#include "../launch/flash.cuh"

// Tokens of a block, and keys that are weighed together.
constexpr int BLOCK = 16, SPLIT = 128;

// A score in powers of two.
static __device__ __forceinline__ float capped(float product, float scale, float softcap) {
    return softcap > 0.0f ? softcap * tanhf(product * (scale / softcap)) * LOG2_E : product * (scale * LOG2_E);
}

template <typename T>
static __device__ __forceinline__ void keep(const T *qkv, T *queries, T *keys, T *values, const unsigned *positions,
                                            const unsigned *slots, const float *cos, const float *sin, const T *q_norm,
                                            const T *k_norm, float q_eps, float k_eps, unsigned heads, unsigned kv_heads,
                                            unsigned half) {
    const unsigned head = blockIdx.y * blockDim.y + threadIdx.y, all = heads + 2 * kv_heads, d = 2 * half;
    if (head >= all) {
        return; // The whole warp: it has one head.
    }
    const size_t token = blockIdx.x, slot = slots[token];
    const T *from = qkv + (token * all + head) * d;
    if (head >= heads + kv_heads) {
        T *to = values + (slot * kv_heads + head - heads - kv_heads) * d;
        for (unsigned i = threadIdx.x; i < d; i += 32) {
            to[i] = from[i];
        }
        return;
    }
    const bool is_query = head < heads;
    T *to = is_query ? queries + (token * heads + head) * d : keys + (slot * kv_heads + head - heads) * d;
    const T *norm = is_query ? q_norm : k_norm;
    float inverse = 1.0f;
    if (norm != nullptr) {
        float squares = 0.0f;
        for (unsigned i = threadIdx.x; i < d; i += 32) {
            squares = fmaf(to_float(from[i]), to_float(from[i]), squares);
        }
        inverse = 1.0f / sqrtf(warp_sum(squares) / (float)d + (is_query ? q_eps : k_eps));
    }
    const size_t angles = (size_t)positions[token] * half;
    for (unsigned i = threadIdx.x; i < half; i += 32) {
        float a = to_float(from[i]), b = to_float(from[half + i]);
        if (norm != nullptr) {
            a = rounded<T>(a * inverse * to_float(norm[i]));
            b = rounded<T>(b * inverse * to_float(norm[half + i]));
        }
        const float c = cos[angles + i], s = sin[angles + i];
        from_float(a * c - b * s, &to[i]);
        from_float(b * c + a * s, &to[half + i]);
    }
}

// The keys that a sequence's last query sees, and the splits that they are in.
struct Seen {
    int first, length, first_split, splits;
};

static __device__ __forceinline__ Seen seen_of(unsigned length, unsigned window) {
    Seen seen;
    seen.length = (int)length;
    seen.first = length > window ? (int)(length - window) : 0;
    seen.first_split = seen.first / SPLIT;
    seen.splits = (seen.length + SPLIT - 1) / SPLIT - seen.first_split;
    return seen;
}

// Eight elements of a row in f32, zeros where there is none.
template <typename T>
static __device__ __forceinline__ void eight(float (&to)[8], const T *row, bool is_there, unsigned column, unsigned head_dim) {
    constexpr int WIDE = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < 8; i += WIDE) {
        const uint4 bits = vector_of(row, is_there, column + i, head_dim);
        const T *elements = reinterpret_cast<const T *>(&bits);
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            to[i + j] = to_float(elements[j]);
        }
    }
}

// A block has one split of one sequence, and up to G of the heads that share keys, so that these are read once. D / 8 lanes
// have a row, eight elements each.
template <typename T, int D, int G>
static __device__ __forceinline__ void decode(const T *q, const T *keys, const T *values, const unsigned *tables,
                                              const unsigned *lengths, T *out, float *parts, unsigned q_stride,
                                              unsigned heads, unsigned kv_heads, unsigned head_dim, unsigned table_stride,
                                              float scale, float softcap, unsigned window) {
    constexpr int WARPS = 4, LANES = D / 8, ROWS = 32 / LANES, AT_ONCE = WARPS * ROWS;
    __shared__ float weights[G][SPLIT];
    __shared__ float sums[WARPS][G][D];
    __shared__ Running records[G];
    const size_t sequence = blockIdx.z;
    const Seen seen = seen_of(lengths[sequence], window);
    if ((int)blockIdx.x >= seen.splits) {
        return; // The whole block.
    }
    const unsigned group = heads / kv_heads, tiles = (group + G - 1) / G;
    const unsigned kv_head = blockIdx.y / tiles, within = blockIdx.y % tiles * G, head = kv_head * group + within;
    const int count = (int)min((unsigned)G, group - within);
    const int begin = (seen.first_split + (int)blockIdx.x) * SPLIT;
    const int first = max(begin, seen.first), end = min(begin + SPLIT, seen.length);
    const int row = threadIdx.y * ROWS + threadIdx.x / LANES;
    const unsigned column = threadIdx.x % LANES * 8, width = kv_heads * head_dim;
    const unsigned *table = tables + sequence * table_stride;
    const auto place = [&](int key) {
        return ((size_t)table[key / BLOCK] * BLOCK + key % BLOCK) * width + kv_head * head_dim;
    };

    float query[G][8];
#pragma unroll
    for (int g = 0; g < G; g++) {
        eight(query[g], q + sequence * q_stride + (head + min(g, count - 1)) * head_dim, g < count, column, head_dim);
    }
    // Every lane goes round as often, for they add up together.
#pragma unroll 2
    for (int base = first; base < end; base += AT_ONCE) {
        const int key = base + row;
        float k[8];
        eight(k, keys + place(min(key, end - 1)), key < end, column, head_dim);
#pragma unroll
        for (int g = 0; g < G; g++) {
            float product = 0.0f;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                product = fmaf(query[g][i], k[i], product);
            }
#pragma unroll
            for (int distance = LANES / 2; distance > 0; distance /= 2) {
                product += __shfl_xor_sync(0xffffffffu, product, distance);
            }
            if (column == 0 && key < end) {
                weights[g][key - begin] = capped(product, scale, softcap);
            }
        }
    }
    __syncthreads();
    for (int g = threadIdx.y; g < count; g += WARPS) {
        float largest = -INFINITY;
        for (int key = first + threadIdx.x; key < end; key += 32) {
            largest = fmaxf(largest, weights[g][key - begin]);
        }
        for (int distance = 16; distance > 0; distance /= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
        }
        float sum = 0.0f;
        for (int key = first + threadIdx.x; key < end; key += 32) {
            const float weight = power_of_two(weights[g][key - begin] - largest);
            weights[g][key - begin] = weight;
            sum += weight;
        }
        sum = warp_sum(sum);
        if (threadIdx.x == 0) {
            records[g] = {largest, sum};
        }
    }
    __syncthreads();

    float mine[G][8] = {};
#pragma unroll 2
    for (int base = first; base < end; base += AT_ONCE) {
        const int key = base + row;
        if (key < end) {
            float v[8];
            eight(v, values + place(key), true, column, head_dim);
#pragma unroll
            for (int g = 0; g < G; g++) {
                // Behind the last head there are no weights; what comes of that is not written.
                const float weight = weights[g][key - begin];
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    mine[g][i] = fmaf(weight, v[i], mine[g][i]);
                }
            }
        }
    }
#pragma unroll
    for (int g = 0; g < G; g++) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
#pragma unroll
            for (int distance = LANES; distance < 32; distance *= 2) {
                mine[g][i] += __shfl_xor_sync(0xffffffffu, mine[g][i], distance);
            }
            if (threadIdx.x < LANES) {
                sums[threadIdx.y][g][column + i] = mine[g][i];
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.y * 32 + threadIdx.x; i < count * D; i += 32 * WARPS) {
        const int g = i / D;
        const unsigned c = i % D;
        if (c >= head_dim) {
            continue;
        }
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            sum += sums[warp][g][c];
        }
        const size_t at = sequence * heads + head + g;
        if (seen.splits == 1) {
            from_float(sum / records[g].sum, &out[at * head_dim + c]);
            continue;
        }
        float *record = parts + (at * gridDim.x + blockIdx.x) * (2 + head_dim);
        record[2 + c] = sum;
        if (c == 0) {
            record[0] = records[g].max;
            record[1] = records[g].sum;
        }
    }
}

template <typename T>
static __device__ __forceinline__ void merge(const float *parts, const unsigned *lengths, T *out, unsigned heads,
                                             unsigned head_dim, unsigned splits, unsigned window) {
    const unsigned head = blockIdx.x * blockDim.y + threadIdx.y;
    const size_t sequence = blockIdx.y;
    const int count = seen_of(lengths[sequence], window).splits;
    if (head >= heads || count == 1) {
        return; // The whole warp: it has one head.
    }
    const size_t at = sequence * heads + head, size = 2 + head_dim;
    const float *records = parts + at * splits * size;
    float largest = -INFINITY;
    for (int split = threadIdx.x; split < count; split += 32) {
        largest = fmaxf(largest, records[split * size]);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
    }
    float sum = 0.0f;
    for (int split = threadIdx.x; split < count; split += 32) {
        sum = fmaf(records[split * size + 1], power_of_two(records[split * size] - largest), sum);
    }
    sum = warp_sum(sum);
    for (unsigned c = threadIdx.x; c < head_dim; c += 32) {
        float x = 0.0f;
        for (int split = 0; split < count; split++) {
            x = fmaf(records[split * size + 2 + c], power_of_two(records[split * size] - largest), x);
        }
        from_float(x / sum, &out[at * head_dim + c]);
    }
}

// The arguments.
template <typename T> struct Call {
    const T *q, *keys, *values;
    const unsigned *cu_queries, *tables, *lengths;
    T *output;
    unsigned q_stride, heads, kv_heads, head_dim, table_stride;
    float scale, softcap;
    unsigned window;
};

// What one block works at: one head of one sequence's queries. What follows from the arguments is computed where it is
// needed: they lie in constant memory, and registers are what the widest heads run out of.
template <typename T> struct Part {
    Call<T> call;
    const unsigned *table;
    // Of the queries' rows, of the head in them, of its key head in the cache's.
    unsigned first_row, column, cached_column, head_dim;
    // Queries, tokens of the sequence, position of the first query, keys before its own that a query sees.
    int queries, keys, position, behind;

    __device__ __forceinline__ size_t place(int row) const {
        const size_t slot = (size_t)table[row / BLOCK] * BLOCK + row % BLOCK;
        return slot * (call.kv_heads * call.head_dim) + cached_column;
    }
    __device__ __forceinline__ const T *query(int row) const {
        return call.q + (size_t)(first_row + row) * call.q_stride + column;
    }
    __device__ __forceinline__ const T *key(int row) const { return call.keys + place(row); }
    __device__ __forceinline__ const T *value(int row) const { return call.values + place(row); }
    __device__ __forceinline__ T *out(int row) const {
        return call.output + (size_t)(first_row + row) * (call.heads * call.head_dim) + column;
    }
    __device__ __forceinline__ const T *query_shift() const { return nullptr; }
    __device__ __forceinline__ const T *value_shift() const { return nullptr; }
    __device__ __forceinline__ int begin(int first) const { return max(0, position + first - behind); }
    __device__ __forceinline__ int end(int first, int rows) const { return min(keys, position + first + rows); }

    __device__ __forceinline__ float factor() const { return call.scale * LOG2_E; }
    __device__ __forceinline__ bool is_plain(int first, int rows, int key, int count) const {
        return call.softcap == 0.0f && call.scale > 0.0f && key + count - 1 <= position + first &&
               key >= position + first + rows - 1 - behind;
    }
    __device__ __forceinline__ float score(float product, int query, int key) const {
        const bool is_seen = key <= position + query && key >= position + query - behind;
        return is_seen ? capped(product, call.scale, call.softcap) : -INFINITY;
    }
};

template <typename T> static __device__ __forceinline__ Part<T> part_of(const Call<T> &call) {
    const unsigned head = blockIdx.y, kv_head = head * call.kv_heads / call.heads, length = call.lengths[blockIdx.z];
    Part<T> part = {call};
    part.first_row = call.cu_queries[blockIdx.z];
    part.queries = (int)(call.cu_queries[blockIdx.z + 1] - part.first_row);
    part.keys = (int)length;
    part.position = part.keys - part.queries;
    part.behind = (int)min(call.window - 1, length);
    part.table = call.tables + (size_t)blockIdx.z * call.table_stride;
    part.column = head * call.head_dim;
    part.cached_column = kv_head * call.head_dim;
    part.head_dim = call.head_dim;
    return part;
}

// Tiles of keys that leave the shared memory of a block below 48 KiB, and its registers enough.
template <typename T, int D, int WARPS> static __device__ __forceinline__ void plain_in_paged_tiles(const Part<T> &part) {
    plain<T, D, WARPS, D <= 32 ? 32 : D <= 128 ? 16 : 8>(part);
}

#define OF_TYPE(type, T)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128) attention_paged_keep_##type(                                        \
        const T *qkv, T *queries, T *keys, T *values, const unsigned *positions, const unsigned *slots, const float *cos, \
        const float *sin, const T *q_norm, const T *k_norm, float q_eps, float k_eps, unsigned heads, unsigned kv_heads,  \
        unsigned half) {                                                                                                  \
        keep(qkv, queries, keys, values, positions, slots, cos, sin, q_norm, k_norm, q_eps, k_eps, heads, kv_heads,       \
             half);                                                                                                       \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(128)                                                                     \
        attention_paged_merge_##type(const float *parts, const unsigned *lengths, T *out, unsigned heads,                 \
                                     unsigned head_dim, unsigned splits, unsigned window) {                               \
        merge(parts, lengths, out, heads, head_dim, splits, window);                                                      \
    }

#define DECODE(type, T, D, G)                                                                                             \
    extern "C" __global__ void __launch_bounds__(128, BLOCKS_MIN)                                                         \
        attention_paged_decode_##type##_##D##_##G(                                                                        \
            const T *q, const T *keys, const T *values, const unsigned *tables, const unsigned *lengths, T *out,          \
            float *parts, unsigned q_stride, unsigned heads, unsigned kv_heads, unsigned head_dim, unsigned table_stride, \
            float scale, float softcap, unsigned window) {                                                                \
        decode<T, D, G>(q, keys, values, tables, lengths, out, parts, q_stride, heads, kv_heads, head_dim, table_stride,  \
                        scale, softcap, window);                                                                          \
    }

#define PREFILL(type, T, D, WARPS, FORM)                                                                                  \
    extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS_MIN)                                                  \
        attention_paged_prefill_##type##_##D(                                                                             \
            const T *q, const T *keys, const T *values, const unsigned *cu_queries, const unsigned *tables,               \
            const unsigned *lengths, T *out, unsigned q_stride, unsigned heads, unsigned kv_heads, unsigned head_dim,     \
            unsigned table_stride, float scale, float softcap, unsigned window) {                                         \
        FORM<T, D, WARPS>(part_of<T>({q, keys, values, cu_queries, tables, lengths, out, q_stride, heads, kv_heads,       \
                                      head_dim, table_stride, scale, softcap, window}));                                  \
    }

#define OF_WIDTH(type, T, D, WARPS, FORM)                                                                                 \
    DECODE(type, T, D, 1)                                                                                                 \
    DECODE(type, T, D, 4)                                                                                                 \
    DECODE(type, T, D, 8)                                                                                                 \
    PREFILL(type, T, D, WARPS, FORM)

#define OF_EVERY_WIDTH(type, T, FORM)                                                                                     \
    OF_TYPE(type, T)                                                                                                      \
    OF_WIDTH(type, T, 32, 4, FORM)                                                                                        \
    OF_WIDTH(type, T, 64, 4, FORM)                                                                                        \
    OF_WIDTH(type, T, 128, 4, FORM)                                                                                       \
    OF_WIDTH(type, T, 256, 2, FORM)

OF_EVERY_WIDTH(f32, float, plain_in_paged_tiles)
OF_EVERY_WIDTH(f16, __half, tensor)
OF_EVERY_WIDTH(bf16, __nv_bfloat16, FORM_OF_BF16)
