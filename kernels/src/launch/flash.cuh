// Attention by tiles, for every op that has it: some queries of one head and the keys that they see come in as a Part, rows
// of context go out. Scores, sums of weights and results are summed in f32. Never a matrix of all scores, never a choice of
// what is seen: that is the Part's.
//
// A Part<T> says what one block works at:
//   int queries, keys            how many there are
//   unsigned head_dim            elements of a row, whole 16 bytes
//   const T *query(int), *key(int), *value(int)    where rows begin, each at whole 16 bytes
//   T *out(int)                  where a query's row of context goes
//   int begin(int first), end(int first, int rows) the keys that queries first..first + rows may see, as a range
//   float score(float product, int query, int key) a score in powers of two, which is what exp2f takes; −∞ for a key that
//                                the query does not see, and where there is no such query or key
//
// A block has 16 * WARPS queries, a warp 16 of them; threads are (32, WARPS, 1). Tiles of keys and values go through shared
// memory; the weights are held against a running maximum.
#pragma once

#include "numbers.cuh"

constexpr float LOG2_E = 1.4426950f;

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
        *shrink = exp2f(before - base);
        sum *= *shrink;
        return base;
    }
};

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
    for (int i = threadIdx.y * 32 + threadIdx.x; i < ROWS * (D / WIDE); i += THREADS) {
        const int row = i / (D / WIDE), column = i % (D / WIDE) * WIDE;
        const uint4 bits = vector_at<WHICH>(part, first + row, column);
        const T *elements = reinterpret_cast<const T *>(&bits);
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            to[row * (D + 4) + column + j] = to_float(elements[j]);
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
                const float weight = exp2f(scores[r][c] - base);
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
                from_float(sums[r][c / 4][c % 4] / sum, part.out(query) + column);
            }
        }
    }
}

#ifdef CUDA_ON_THE_CPU
template <typename T>
static void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    tensor_product<T>(c, a, b0, b1);
}
#else
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

// The lower halves of two words side by side, and the upper ones.
static __device__ __forceinline__ unsigned lower_halves(unsigned a, unsigned b) { return (a & 0xffffu) | b << 16; }
static __device__ __forceinline__ unsigned upper_halves(unsigned a, unsigned b) { return a >> 16 | (b & 0xffff0000u); }

// On tensor cores: the scores of a warp are the product of its queries with the keys; what a thread holds of the weights is
// what it has to give for their product with the values. See `multiply` for g and t.
template <typename T, int D, int WARPS, typename Part> static __device__ __forceinline__ void tensor(const Part &part) {
    // Strides in words of two T, so that words of eight rows and four neighbours are in different banks.
    // The widest heads leave registers for a smaller tile only.
    constexpr int KEYS = D <= 128 ? 32 : 16, THREADS = 32 * WARPS, K_STRIDE = (D + 8) / 2, V_STRIDE = (KEYS + 8) / 2;
    // Vectors that a thread has on their way to shared memory. The widest heads leave registers for few.
    constexpr int ON_THE_WAY = D <= 128 ? 4 : 2;
    __shared__ __align__(16) unsigned keys[KEYS * K_STRIDE];
    __shared__ __align__(16) unsigned values[D * V_STRIDE]; // By elements: a word has two keys.
    const int first = blockIdx.x * QUERIES * WARPS;
    if (first >= part.queries) {
        return; // The whole block.
    }
    const int thread = threadIdx.y * 32 + threadIdx.x, g = threadIdx.x / 4, t = threadIdx.x % 4;
    // The thread's two queries.
    const int own = first + threadIdx.y * QUERIES + g;

    unsigned q[D / 16][4];
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int query = own + i % 2 * 8;
            const unsigned column = step * 16 + i / 2 * 8 + 2 * t;
            q[step][i] = 0;
            if (query < part.queries && column < part.head_dim) {
                q[step][i] = *reinterpret_cast<const unsigned *>(part.query(query) + column);
            }
        }
    }
    Running running[2] = {{-INFINITY, 0.0f}, {-INFINITY, 0.0f}};
    float sums[D / 8][4] = {};
    const int end = part.end(first, QUERIES * WARPS);
    for (int key = part.begin(first); key < end; key += KEYS) {
        __syncthreads(); // Everybody has done with the tile before.
#pragma unroll ON_THE_WAY
        for (int i = thread; i < KEYS * (D / 8); i += THREADS) {
            const int row = i / (D / 8), column = i % (D / 8) * 8;
            *reinterpret_cast<uint4 *>(&keys[row * K_STRIDE + column / 2]) = vector_at<OF_KEYS>(part, key + row, column);
        }
#pragma unroll(ON_THE_WAY / 2)
        for (int i = thread; i < KEYS / 2 * (D / 8); i += THREADS) {
            const int pair = i % (KEYS / 2), column = i / (KEYS / 2) * 8, row = key + 2 * pair;
            const uint4 a = vector_at<OF_VALUES>(part, row, column), b = vector_at<OF_VALUES>(part, row + 1, column);
            unsigned *to = &values[column * V_STRIDE + pair];
            to[0 * V_STRIDE] = lower_halves(a.x, b.x);
            to[1 * V_STRIDE] = upper_halves(a.x, b.x);
            to[2 * V_STRIDE] = lower_halves(a.y, b.y);
            to[3 * V_STRIDE] = upper_halves(a.y, b.y);
            to[4 * V_STRIDE] = lower_halves(a.z, b.z);
            to[5 * V_STRIDE] = upper_halves(a.z, b.z);
            to[6 * V_STRIDE] = lower_halves(a.w, b.w);
            to[7 * V_STRIDE] = upper_halves(a.w, b.w);
        }
        __syncthreads();

        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int step = 0; step < D / 16; step++) {
                const unsigned *at = &keys[(8 * n + g) * K_STRIDE + 8 * step + t];
                multiply<T>(scores[n], q[step], at[0], at[4]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float largest = -INFINITY;
#pragma unroll
            for (int i = 0; i < KEYS / 4; i++) {
                float &s = scores[i / 2][2 * r + i % 2];
                s = part.score(s, own + 8 * r, key + i / 2 * 8 + 2 * t + i % 2);
                largest = fmaxf(largest, s);
            }
            for (int distance = 2; distance > 0; distance /= 2) {
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
            }
            float shrink;
            const float base = running[r].raise(largest, &shrink);
#pragma unroll
            for (int i = 0; i < KEYS / 4; i++) {
                float &s = scores[i / 2][2 * r + i % 2];
                s = exp2f(s - base);
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
            for (int c = 0; c < D / 8; c++) {
                const unsigned *at = &values[(8 * c + g) * V_STRIDE + 8 * step + t];
                multiply<T>(sums[c], weights, at[0], at[4]);
            }
        }
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
                *reinterpret_cast<unsigned *>(part.out(query) + column) =
                    pack<T>(sums[c][2 * r] / sum, sums[c][2 * r + 1] / sum);
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
