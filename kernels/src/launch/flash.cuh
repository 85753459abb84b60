// Attention by tiles, for every op that has it: some queries of one head and the keys that they see come in as a Part, rows
// of context go out. Scores, sums of weights and results are summed in f32. Never a matrix of all scores, never a choice of
// what is seen: that is the Part's.
//
// A Part<T> says what one block works at:
//   int queries, keys            how many there are
//   unsigned head_dim            elements of a row, whole 16 bytes
//   const T *query(int), *key(int), *value(int)    where rows begin, each at whole 16 bytes
//   T *out(int)                  where a query's row of context goes
//   const T *query_shift(), *value_shift()         what is added to each query and to each value, or null; at whole 16 bytes
//   int begin(int first), end(int first, int rows) the keys that queries first..first + rows may see, as a range
//   float score(float product, int query, int key) a score in powers of two, of which weights are made; −∞ for a key that the query
//                                does not see and for one that is not there, anything for a query that is not there
//   float factor()               what a product becomes a score with, where nothing else is to be done
//   bool is_plain(int first, int rows, int key, int keys)  whether that is so for each of these queries with each of these keys; then
//                                factor() is positive
//
// A block has 16 * WARPS queries, a warp 16 of them; threads are (32, WARPS, 1). Tiles of keys and values go through shared
// memory; the weights are held against a running maximum.
#pragma once

#include "numbers.cuh"

constexpr float LOG2_E = 1.4426950f;

#ifdef CUDA_ON_THE_CPU
inline float power_of_two(float x) { return exp2f(x); }
#else
// 2^x within a few units of the last place; results below the smallest normal number are 0. One instruction, where exp2f takes four.
static __device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

// Queries of a warp: the rows of a product on the tensor cores.
constexpr int QUERIES = 16;

// Blocks that a multiprocessor has room for at least. Said to the compiler, because left to itself it spills registers to make room for
// one more than fit.
constexpr int BLOCKS_MIN = 2;

// What is known of a query after some of its keys.
struct Running {
    float max, sum;

    // Takes in a largest score. Gives what the scores to come are held against, and multiplies the sum.
    __device__ __forceinline__ float raise(float largest, float *shrink) {
        const float before = max;
        max = fmaxf(max, largest);
        // As long as no key was seen, −∞ − −∞ would be NaN.
        const float base = max == -INFINITY ? 0.0f : max;
        *shrink = power_of_two(before - base);
        sum *= *shrink;
        return base;
    }
};

// What is added at an element of a row.
template <typename T> static __device__ __forceinline__ float shift_of(const T *shift, unsigned column) {
    return shift == nullptr ? 0.0f : to_float(shift[column]);
}

// 16 bytes of a row, or zeros where there is no such row or behind the head's last element.
template <typename T>
static __device__ __forceinline__ uint4 vector_of(const T *row, bool is_there, unsigned column, unsigned head_dim) {
    return is_there && column < head_dim ? *reinterpret_cast<const uint4 *>(row + column) : make_uint4(0, 0, 0, 0);
}

// Rows that go through shared memory.
enum Which { OF_QUERIES, OF_KEYS, OF_VALUES };

template <Which WHICH, typename Part>
static __device__ __forceinline__ uint4 vector_at(const Part &part, int row, unsigned column) {
    const bool is_there = row < (WHICH == OF_QUERIES ? part.queries : part.keys);
    // A row that is not there has no address.
    const int at = is_there ? row : 0;
    const auto *begin = WHICH == OF_QUERIES ? part.query(at) : WHICH == OF_KEYS ? part.key(at) : part.value(at);
    return vector_of(begin, is_there, column, part.head_dim);
}

// ROWS rows of a head to shared memory in f32, D elements at a stride of D + 4: eight neighbouring rows are then in
// different banks.
template <typename T, Which WHICH, int D, int ROWS, int THREADS, typename Part>
static __device__ __forceinline__ void load(float *to, const Part &part, int first) {
    constexpr int WIDE = 16 / sizeof(T);
    static_assert(ROWS * (D / WIDE) % THREADS == 0, "every thread copies as much");
#pragma unroll(D <= 128 ? 4 : 2) // The widest heads leave few registers.
    for (int pass = 0; pass < ROWS * (D / WIDE) / THREADS; pass++) {
        const int i = pass * THREADS + threadIdx.y * 32 + threadIdx.x, row = i / (D / WIDE), column = i % (D / WIDE) * WIDE;
        const uint4 bits = vector_at<WHICH>(part, first + row, column);
        const T *elements = reinterpret_cast<const T *>(&bits);
        float shift[WIDE] = {};
        if (WHICH == OF_QUERIES && part.query_shift() != nullptr && column < part.head_dim) {
            take(shift, part.query_shift() + column);
        }
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            to[row * (D + 4) + column + j] = WHICH == OF_QUERIES ? rounded<T>(to_float(elements[j]) + shift[j]) : to_float(elements[j]);
        }
    }
}

// With fused multiply-adds. A thread has four queries; with them it has every eighth key of a tile, and four of every 32
// elements of the result. Eight neighbouring lanes share their queries.
template <typename T, int D, int WARPS, int KEYS, typename Part>
static __device__ __forceinline__ void plain(const Part &part) {
    constexpr int ROWS = QUERIES * WARPS, THREADS = 32 * WARPS, STRIDE = D + 4, WEIGHTS = KEYS + 4;
    __shared__ __align__(16) float queries[ROWS * STRIDE];
    __shared__ __align__(16) float tile[KEYS * STRIDE]; // Keys, and then values.
    __shared__ __align__(16) float weights[ROWS * WEIGHTS];
    const int first = blockIdx.x * ROWS;
    if (first >= part.queries) {
        return; // The whole block.
    }
    const int own = threadIdx.y * QUERIES + threadIdx.x / 8 * 4, lane = threadIdx.x % 8;
    load<T, OF_QUERIES, D, ROWS, THREADS>(queries, part, first);

    Running running[4];
    float sums[4][D / 32][4];
#pragma unroll
    for (int r = 0; r < 4; r++) {
        running[r] = {-INFINITY, 0.0f};
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
            sums[r][c / 4][c % 4] = 0.0f;
        }
    }
    const int end = part.end(first, ROWS);
    for (int key = part.begin(first); key < end; key += KEYS) {
        __syncthreads(); // Everybody has done with the values before.
        load<T, OF_KEYS, D, KEYS, THREADS>(tile, part, key);
        __syncthreads();

        float scores[4][KEYS / 8] = {};
#pragma unroll 4
        for (int d = 0; d < D; d += 4) {
            float4 q[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                q[r] = *reinterpret_cast<const float4 *>(&queries[(own + r) * STRIDE + d]);
            }
#pragma unroll
            for (int c = 0; c < KEYS / 8; c++) {
                const float4 k = *reinterpret_cast<const float4 *>(&tile[(lane + 8 * c) * STRIDE + d]);
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    scores[r][c] = fmaf(q[r].x, k.x, fmaf(q[r].y, k.y, fmaf(q[r].z, k.z, fmaf(q[r].w, k.w, scores[r][c]))));
                }
            }
        }
#pragma unroll
        for (int r = 0; r < 4; r++) {
            float largest = -INFINITY;
#pragma unroll
            for (int c = 0; c < KEYS / 8; c++) {
                scores[r][c] = part.score(scores[r][c], first + own + r, key + lane + 8 * c);
                largest = fmaxf(largest, scores[r][c]);
            }
            for (int distance = 4; distance > 0; distance /= 2) {
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
            }
            float shrink;
            const float base = running[r].raise(largest, &shrink);
#pragma unroll
            for (int c = 0; c < KEYS / 8; c++) {
                const float weight = power_of_two(scores[r][c] - base);
                running[r].sum += weight;
                weights[(own + r) * WEIGHTS + lane + 8 * c] = weight;
            }
#pragma unroll
            for (int c = 0; c < D / 8; c++) {
                sums[r][c / 4][c % 4] *= shrink;
            }
        }
        __syncthreads(); // Everybody has done with the keys.
        load<T, OF_VALUES, D, KEYS, THREADS>(tile, part, key);
        __syncthreads();

#pragma unroll 4
        for (int j = 0; j < KEYS; j++) {
            float weight[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                weight[r] = weights[(own + r) * WEIGHTS + j];
            }
#pragma unroll
            for (int c = 0; c < D / 32; c++) {
                const float4 v = *reinterpret_cast<const float4 *>(&tile[j * STRIDE + 32 * c + 4 * lane]);
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    sums[r][c][0] = fmaf(weight[r], v.x, sums[r][c][0]);
                    sums[r][c][1] = fmaf(weight[r], v.y, sums[r][c][1]);
                    sums[r][c][2] = fmaf(weight[r], v.z, sums[r][c][2]);
                    sums[r][c][3] = fmaf(weight[r], v.w, sums[r][c][3]);
                }
            }
        }
    }
#pragma unroll
    for (int r = 0; r < 4; r++) {
        // Each of the eight lanes has summed its own keys.
        float sum = running[r].sum;
        for (int distance = 4; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        }
        const int query = first + own + r;
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
            const unsigned column = c / 4 * 32 + 4 * lane + c % 4;
            if (query < part.queries && column < part.head_dim) {
                from_float(sums[r][c / 4][c % 4] / sum + shift_of(part.value_shift(), column), part.out(query) + column);
            }
        }
    }
}

// On a CPU, ../../tests/cuda/cuda_fp16.h has these.
#ifndef CUDA_ON_THE_CPU
// c += a · b on the tensor cores. a is 16 × 16: with g = lane / 4 and t = lane % 4, a thread's words are (row g, elements
// 2t and 2t + 1), (g + 8, the same), (g, 2t + 8 …), (g + 8, 2t + 8 …). b is 16 × 8, by columns: words (column g, elements
// 2t …), (g, 2t + 8 …). c is 16 × 8: (row g, columns 2t and 2t + 1), (g + 8, the same).
template <typename T>
static __device__ __forceinline__ void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
__device__ __forceinline__ void multiply<__half>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2]), "r"(a[3]), "r"(b1));
#endif
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ __forceinline__ void multiply<__nv_bfloat16>(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// Where the shared memory behind a pointer is, as instructions for it have it.
static __device__ __forceinline__ unsigned shared_address(const void *pointer) { return (unsigned)__cvta_generic_to_shared(pointer); }

// Four matrices of 8 × 8 elements of 16 bits. Lane l says where row l % 8 of matrix l / 8 begins, at whole 16 bytes; word i is of matrix i: with g and
// t as above elements (g, 2t) and (g, 2t + 1), and transposed (2t, g) and (2t + 1, g).
template <bool TRANSPOSED> static __device__ __forceinline__ void load_matrices(unsigned (&words)[4], const void *row) {
    if constexpr (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(shared_address(row))
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(shared_address(row))
                     : "memory");
    }
}

// 16 bytes to shared memory, or zeros where there is nothing. `from` is an address of the operand's all the same.
static __device__ __forceinline__ void copy_later(uint4 *to, const uint4 *from, bool is_there) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(is_there ? 16 : 0) : "memory");
#else
    *to = is_there ? *from : make_uint4(0, 0, 0, 0);
#endif
}

// Waits until what this thread copies has arrived. Others see it behind a barrier.
static __device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}
#endif

// Tiles in shared memory: one is worked at while the next one arrives, where copies need no registers and no waiting.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int STAGES = 1;
#else
constexpr int STAGES = 2;
#endif

// Two numbers, rounded to T, as one word.
template <typename T> static __device__ __forceinline__ unsigned pack(float low, float high) {
    T pair[2];
    from_float(low, &pair[0]);
    from_float(high, &pair[1]);
    unsigned short bits[2];
    memcpy(bits, pair, sizeof bits);
    return bits[0] | (unsigned)bits[1] << 16;
}

// On tensor cores: the scores of a warp are the product of its queries with the keys; what a thread holds of the weights is
// what it has to give for their product with the values. See `multiply` for g and t.
template <typename T, int D, int WARPS, typename Part> static __device__ __forceinline__ void tensor(const Part &part) {
    // The widest heads leave registers for a smaller tile only, and none for the queries.
    constexpr bool IS_WIDE = D > 128;
    constexpr int KEYS = IS_WIDE ? 16 : 32, THREADS = 32 * WARPS, STRIDE = IS_WIDE ? D : D + 8;
    __shared__ __align__(16) T keys[STAGES][KEYS * STRIDE], values[STAGES][KEYS * STRIDE], queries[IS_WIDE ? QUERIES * WARPS * STRIDE : 1];
    // Where eight elements of a row are: those of eight neighbouring rows are in different banks. The widest have no room for longer rows.
    // `more` is below what `column` is a multiple of.
    const auto place = [](int row, int column, int more) {
        return IS_WIDE ? (row * STRIDE + row % 8 * 8) ^ column ^ more : row * STRIDE + column + more;
    };
    const int first = blockIdx.x * QUERIES * WARPS;
    if (first >= part.queries) {
        return; // The whole block.
    }
    const int thread = threadIdx.y * 32 + threadIdx.x, lane = threadIdx.x, g = lane / 4, t = lane % 4;
    // The warp's queries, and the first of the thread's two.
    const int its = first + threadIdx.y * QUERIES, own = its + g;
    const auto fetch = [&](int stage, int key) {
        static_assert(KEYS * (D / 8) % THREADS == 0, "every thread copies as much");
#pragma unroll(IS_WIDE ? 1 : 4)
        for (int pass = 0; pass < KEYS * (D / 8) / THREADS; pass++) {
            const int i = pass * THREADS + thread, row = i / (D / 8), column = i % (D / 8) * 8, to = place(row, column, 0);
            const bool is_there = key + row < part.keys && column < part.head_dim;
            // What is not there has no address.
            const int from = is_there ? key + row : 0, element = is_there ? column : 0;
            copy_later((uint4 *)&keys[stage][to], (const uint4 *)(part.key(from) + element), is_there);
            copy_later((uint4 *)&values[stage][to], (const uint4 *)(part.value(from) + element), is_there);
        }
    };

    const int begin = part.begin(first), end = part.end(first, QUERIES * WARPS);
    int stage = 0;
    if (STAGES == 2) {
        fetch(stage, begin);
    }
    unsigned q[IS_WIDE ? 2 : D / 16][4];
    if (IS_WIDE) {
        for (int i = thread; i < QUERIES * WARPS * (D / 8); i += THREADS) {
            const int row = i / (D / 8), column = i % (D / 8) * 8;
            uint4 eight = vector_at<OF_QUERIES>(part, first + row, column);
            if (part.query_shift() != nullptr && column < part.head_dim) {
                float sum[8];
                take(sum, (const T *)&eight);
                add_rounded(sum, part.query_shift(), column);
                put((T *)&eight, sum);
            }
            *(uint4 *)&queries[place(row, column, 0)] = eight;
        }
    } else {
#pragma unroll
        for (int i = 0; i < D / 4; i++) {
            const int query = own + i % 2 * 8;
            const unsigned column = i / 2 * 8 + 2 * t;
            const bool is_there = query < part.queries && column < part.head_dim;
            unsigned &two = q[i / 4][i % 4];
            two = is_there ? *reinterpret_cast<const unsigned *>(part.query(query) + column) : 0;
            if (is_there && part.query_shift() != nullptr) {
                float sum[2];
                take(sum, (const T *)&two);
                add_rounded(sum, part.query_shift(), column);
                two = pack<T>(sum[0], sum[1]);
            }
        }
    }
    Running running[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
    float sums[D / 8][4] = {};
    for (int key = begin; key < end; key += KEYS) {
        if (STAGES == 1) {
            __syncthreads(); // Everybody has done with the tile before.
            fetch(stage, key);
        }
        wait_for_copies();
        __syncthreads(); // And so have the others; everybody has done with the tile before.
        if (STAGES == 2 && key + KEYS < end) {
            fetch(1 - stage, key + KEYS);
        }

        float scores[KEYS / 8][4] = {};
#pragma unroll(IS_WIDE ? 1 : D / 32)
        for (int step = 0; step < D / 16; step += 2) {
            if (IS_WIDE) {
                for (int i = 0; i < 2; i++) {
                    load_matrices<false>(q[i], &queries[place(its - first + lane % 16, 16 * (step + i), lane / 16 * 8)]);
                }
            }
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                unsigned k[4];
                load_matrices<false>(k, &keys[stage][place(8 * n + lane % 8, 16 * step, lane / 8 * 8)]);
                multiply<T>(scores[n], q[IS_WIDE ? 0 : step], k[0], k[1]);
                multiply<T>(scores[n], q[IS_WIDE ? 1 : step + 1], k[2], k[3]);
            }
        }
        const bool is_plain = part.is_plain(its, QUERIES, key, KEYS);
        const float factor = is_plain ? part.factor() : 1.0f;
        if (!is_plain) {
#pragma unroll
            for (int i = 0; i < KEYS / 2; i++) {
                float &s = scores[i / 4][i % 4];
                s = part.score(s, own + i % 4 / 2 * 8, key + i / 4 * 8 + 2 * t + i % 2);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float largest = -INFINITY;
#pragma unroll
            for (int i = 0; i < KEYS / 4; i++) {
                largest = fmaxf(largest, scores[i / 2][2 * r + i % 2]);
            }
            for (int distance = 2; distance > 0; distance /= 2) {
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
            }
            float shrink;
            const float base = running[r].raise(largest * factor, &shrink);
#pragma unroll
            for (int i = 0; i < KEYS / 4; i++) {
                float &s = scores[i / 2][2 * r + i % 2];
                s = power_of_two(fmaf(s, factor, -base));
                running[r].sum += s;
            }
#pragma unroll
            for (int c = 0; c < D / 8; c++) {
                sums[c][2 * r] *= shrink;
                sums[c][2 * r + 1] *= shrink;
            }
        }
#pragma unroll
        for (int step = 0; step < KEYS / 16; step++) {
            const float(&low)[4] = scores[2 * step], (&high)[4] = scores[2 * step + 1];
            const unsigned weights[4] = {pack<T>(low[0], low[1]), pack<T>(low[2], low[3]), pack<T>(high[0], high[1]),
                                         pack<T>(high[2], high[3])};
#pragma unroll
            for (int c = 0; c < D / 8; c += 2) {
                unsigned v[4];
                load_matrices<true>(v, &values[stage][place(16 * step + lane % 16, 8 * c, lane / 16 * 8)]);
                multiply<T>(sums[c], weights, v[0], v[1]);
                multiply<T>(sums[c + 1], weights, v[2], v[3]);
            }
        }
        stage = STAGES - 1 - stage;
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        // Each of the four lanes has summed its own keys.
        float sum = running[r].sum;
        for (int distance = 2; distance > 0; distance /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, distance);
        }
        const int query = own + 8 * r;
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
            const unsigned column = 8 * c + 2 * t;
            if (query < part.queries && column < part.head_dim) {
                const float a = shift_of(part.value_shift(), column), b = shift_of(part.value_shift(), column + 1);
                *reinterpret_cast<unsigned *>(part.out(query) + column) =
                    pack<T>(sums[c][2 * r] / sum + a, sums[c][2 * r + 1] / sum + b);
            }
        }
    }
}

// Tiles of keys that leave the shared memory of a block below 48 KiB.
template <typename T, int D, int WARPS, typename Part>
static __device__ __forceinline__ void plain_in_tiles(const Part &part) {
    plain<T, D, WARPS, D <= 64 ? 32 : D <= 128 ? 16 : 8>(part);
}

// Products in bf16 run on tensor cores from compute capability 8.0 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define FORM_OF_BF16 plain_in_tiles
#else
#define FORM_OF_BF16 tensor
#endif
