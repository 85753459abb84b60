// The next token of each row of logits: see mod.rs for the steps, of which all but the log-probabilities are done here. Rows
// of f32 with what each is asked to do come in, a token for each goes out: the same that the code for CPUs chooses. Never a
// sort, never a state.
//
// Compiled with the feature `cuda`; tests/cuda.rs runs it on the CPU.
//
// Function: sample_f32.
// Arguments, in order: float *logits, const Request *requests, const unsigned *allowed (or null), const unsigned
//   *bias_tokens, const float *biases, const unsigned *seen_tokens, const unsigned *seen_counts, unsigned short *cells,
//   unsigned *counts, Choice *choices, unsigned tokens. logits: [rows, tokens], worked on in place; requests, choices:
//   [rows]; allowed: [rows, ceil(tokens / 32)], for rows that say so; bias_tokens and biases, seen_tokens and seen_counts:
//   those of all rows one after the other; cells: [rows, tokens rounded up to 64] and counts: [rows, 26880], memory that the
//   kernel writes before it reads. Parameters and tokens are as the host has checked them (Params::check).
// Launch: block (512, 1, 1), grid (rows, 1, 1). No dynamic shared memory.
//
// A block has a row. Every step that decides is whole numbers or single operations of IEEE 754 that are not fused, in the
// order of the code for CPUs; only what is exact in any order is done side by side.

#include <cuda_fp16.h>

typedef unsigned long long u64;

// What a row is asked to do, as sample::Params has it.
struct Request {
    u64 seed, position;
    float temperature, repetition_penalty, presence_penalty, frequency_penalty, top_p, min_p, typical_p;
    unsigned top_k;
    // Whether the largest logit is taken as it is, and whether a mask says what may be chosen.
    unsigned is_greedy, is_masked;
    // Its parts of the lists of biases and of tokens seen, no token of which is seen twice.
    unsigned bias_begin, bias_end, seen_begin, seen_end;
};

// What came of a row.
struct Choice {
    // Or where state is 1, the first token whose logit is no number.
    unsigned token;
    // 0: chosen. 1: a logit is NaN or +∞. 2: no token can be chosen.
    unsigned state;
};

constexpr int THREADS = 512, WARPS = THREADS / 32;
// As in mod.rs: cells of the grid, such that have a factor in common, tokens whose noise is drawn together.
constexpr int CELLS = 26880, STRIDE = 128, STRIDES = CELLS / STRIDE, GROUP = 64, LANES = 16;
constexpr float PER_UNIT = 1024.0f;

// ln x for positive normal x, with the operations of noise::ln.
static __device__ double ln_of(double x) {
    const u64 bits = (u64)__double_as_longlong(x);
    int e = (int)(bits >> 52) - 1023;
    double m = __longlong_as_double((long long)((bits & ((1ull << 52) - 1)) | 1023ull << 52));
    if (m > 1.4142135623730951) {
        m = __dmul_rn(m, 0.5);
        e += 1;
    }
    const double f = __dadd_rn(m, -1.0), s = __ddiv_rn(f, __dadd_rn(2.0, f)), z = __dmul_rn(s, s);
    double series = 0.0;
    for (int odd = 23; odd >= 3; odd -= 2) {
        series = __dadd_rn(__dmul_rn(series, z), __ddiv_rn(1.0, (double)odd));
    }
    const double two_s = __dmul_rn(2.0, s);
    const double rest = __dmul_rn(__dmul_rn(two_s, z), series);
    return __dadd_rn(__dmul_rn((double)e, 0.6931471805599453), __dadd_rn(two_s, rest));
}

// e^(−x) for x from 0 to 30, with the operations of noise::exp_of_negative.
static __device__ double exp_of_negative(double x) {
    const double n = floor(__ddiv_rn(x, 0.6931471805599453)), r = __dadd_rn(x, -__dmul_rn(n, 0.6931471805599453));
    double series = 1.0;
    for (int k = 18; k >= 1; k--) {
        series = __dadd_rn(1.0, -__ddiv_rn(__dmul_rn(series, r), (double)k));
    }
    return __dmul_rn(series, __longlong_as_double((long long)((1023ull - (u64)n) << 52)));
}

// The noise that 32 even bits give: −ln(−ln((r + ½) / 2³²)).
static __device__ double noise_of(unsigned r) {
    const double u = __dmul_rn(__dadd_rn((double)r, 0.5), 1.0 / 4294967296.0);
    return -ln_of(-ln_of(u));
}

// Philox 4x32-10 of one counter.
static __device__ void philox(unsigned (&word)[4], u64 seed) {
    unsigned key[2] = {(unsigned)seed, (unsigned)(seed >> 32)};
    for (int round = 0; round < 10; round++) {
        const u64 first = 0xd2511f53ull * word[0], second = 0xcd9e8d57ull * word[2];
        word[0] = (unsigned)(second >> 32) ^ word[1] ^ key[0];
        word[1] = (unsigned)second;
        word[2] = (unsigned)(first >> 32) ^ word[3] ^ key[1];
        word[3] = (unsigned)first;
        key[0] += 0x9e3779b9u;
        key[1] += 0xbb67ae85u;
    }
}

// A logit in steps of the grid.
static __device__ float on_grid(float x, float scale) {
    return rintf(__fmul_rn(fmaxf(fminf(x, 1e30f), -1e30f), scale));
}

// Whether noise of these bits can make more of a cell than the best so far, see simd.rs. Never says no where it can.
static __device__ bool can_win(unsigned r, int cell, int bound) {
    return __float_as_int(__int2float_rn((int)(~r >> 1))) + cell * 11818 <= bound;
}

static __device__ int bound_of(double best) { return (int)((158.0 - best * 1.4426950408889634) * 8388608.0) + 16; }

// What the threads of a block know together.
struct Shared {
    // Of the strides: 2⁻³² · e^(−128 i / 1024), tokens, weights in units of the first, the same times their places.
    double units[STRIDES];
    unsigned tokens[STRIDES];
    u64 masses[STRIDES], moments[STRIDES];
    // 2³² · e^(−i / 1024), rounded.
    u64 within[STRIDE];
    // Results of threads on their way to be one.
    float values[WARPS];
    double sums[WARPS];
    unsigned places[WARPS], ends[THREADS];
    // What the filters leave: the first cell and the last one, cells of which only the first tokens are left, how many, and the
    // last of these tokens; a cell that the second filter cut, and what it had before.
    int first, last, cut[2], whole_cell;
    unsigned cut_count[2], cut_token[2], whole;
    // Cells that a walk looks at.
    unsigned near[2][STRIDE];
};

// The best of a warp's threads: the largest value, of equals the smallest place. In every thread.
template <typename V> static __device__ void best_of_warp(V &value, unsigned &place) {
    for (int distance = 16; distance > 0; distance /= 2) {
        const V other = __shfl_xor_sync(0xffffffffu, value, distance);
        const unsigned at = __shfl_xor_sync(0xffffffffu, place, distance);
        if (other > value || (other == value && at < place)) {
            value = other;
            place = at;
        }
    }
}

// The best of all threads. In every thread.
static __device__ void best_of_all(Shared &shared, float &value, unsigned &place) {
    best_of_warp(value, place);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared.values[threadIdx.x / 32] = value;
        shared.places[threadIdx.x / 32] = place;
    }
    __syncthreads();
    value = shared.values[0];
    place = shared.places[0];
    for (int warp = 1; warp < WARPS; warp++) {
        if (shared.values[warp] > value || (shared.values[warp] == value && shared.places[warp] < place)) {
            value = shared.values[warp];
            place = shared.places[warp];
        }
    }
}

// Tokens, weights and moments of each stride, up to the last cell that is left.
static __device__ void sum_strides(Shared &shared, const unsigned *counts) {
    __syncthreads();
    for (int stride = threadIdx.x / 32; stride < STRIDES; stride += WARPS) {
        unsigned tokens = 0;
        u64 mass = 0, moment = 0;
        for (int i = threadIdx.x % 32; i < STRIDE; i += 32) {
            const int cell = stride * STRIDE + i;
            if (cell <= shared.last) {
                const u64 weights = counts[cell] * shared.within[i];
                tokens += counts[cell];
                mass += weights;
                moment += weights * (u64)i;
            }
        }
        for (int distance = 16; distance > 0; distance /= 2) {
            tokens += __shfl_xor_sync(0xffffffffu, tokens, distance);
            mass += __shfl_xor_sync(0xffffffffu, mass, distance);
            moment += __shfl_xor_sync(0xffffffffu, moment, distance);
        }
        if (threadIdx.x % 32 == 0) {
            shared.tokens[stride] = tokens;
            shared.masses[stride] = mass;
            shared.moments[stride] = moment;
        }
    }
    __syncthreads();
}

// The least of 1..=most that is enough, where `most` is and more is never less.
template <typename Enough> static __device__ unsigned fewest(unsigned most, Enough is_enough) {
    unsigned too_few = 0, enough = most;
    while (enough - too_few > 1) {
        const unsigned middle = too_few + (enough - too_few) / 2;
        (is_enough(middle) ? enough : too_few) = middle;
    }
    return enough;
}

// Of `last` only the first n tokens are left, and nothing behind it. One thread.
static __device__ void end_at(Shared &shared, unsigned *counts, int last, unsigned n) {
    if (n < counts[last]) {
        if (shared.whole_cell != last) {
            shared.whole = counts[last];
        }
        shared.whole_cell = last;
        counts[last] = n;
    }
    shared.last = last;
}

// The first k tokens. One thread.
static __device__ void keep_top_k(Shared &shared, unsigned *counts, unsigned k) {
    u64 before = 0;
    for (int stride = 0; stride <= shared.last / STRIDE; stride++) {
        if (before + shared.tokens[stride] < k) {
            before += shared.tokens[stride];
            continue;
        }
        for (int cell = stride * STRIDE;; cell++) {
            if (before + counts[cell] >= k) {
                end_at(shared, counts, cell, (unsigned)(k - before));
                return;
            }
            before += counts[cell];
        }
    }
}

// The fewest first tokens that have a part p of the weights. One thread.
static __device__ void keep_top_p(Shared &shared, unsigned *counts, double p) {
    const int strides = shared.last / STRIDE + 1;
    const auto mass_of = [&](int stride, u64 mass) { return __dmul_rn(shared.units[stride], (double)mass); };
    double total = 0.0;
    for (int stride = 0; stride < strides; stride++) {
        total = __dadd_rn(total, mass_of(stride, shared.masses[stride]));
    }
    const double wanted = __dmul_rn(p, total);
    double before = 0.0;
    for (int stride = 0; stride < strides; stride++) {
        const double mass = mass_of(stride, shared.masses[stride]);
        if (__dadd_rn(before, mass) < wanted) {
            before = __dadd_rn(before, mass);
            continue;
        }
        u64 sum = 0;
        for (int i = 0; i < STRIDE; i++) {
            const int cell = stride * STRIDE + i;
            const unsigned count = counts[cell];
            const u64 weight = shared.within[i];
            const auto is_enough = [&](u64 n) { return __dadd_rn(before, mass_of(stride, sum + n * weight)) >= wanted; };
            if (count > 0 && is_enough(count)) {
                end_at(shared, counts, cell, fewest(count, is_enough));
                return;
            }
            sum += count * weight;
        }
    }
}

// The fewest tokens nearest to the mean that have a part p of the weights: cells below it from there down, those above from
// there up, the nearer one first. The first warp; lane 0 decides, the others bring counts.
static __device__ void keep_typical(Shared &shared, const unsigned *counts, double p) {
    const int lane = threadIdx.x;
    double mean = 0.0, wanted = 0.0, mass = 0.0;
    if (lane == 0) {
        double total = 0.0, moment = 0.0;
        for (int stride = 0; stride <= shared.last / STRIDE; stride++) {
            const double sum = (double)shared.masses[stride];
            total = __dadd_rn(total, __dmul_rn(shared.units[stride], sum));
            const double place = __dmul_rn((double)(stride * STRIDE), sum);
            moment = __dadd_rn(moment, __dmul_rn(shared.units[stride], __dadd_rn(place, (double)shared.moments[stride])));
        }
        mean = __ddiv_rn(moment, total);
        wanted = __dmul_rn(p, total);
        shared.places[0] = (unsigned)min((int)mean, shared.last);
    }
    __syncwarp();
    const int limit = shared.last;
    // The next cells to be looked at; those from `loaded` on have their counts in shared memory.
    int below = (int)shared.places[0], above = below + 1, below_from = below, above_from = above;
    int first = CELLS, last = 0;
    bool is_done = false;
    while (!is_done) {
        below_from = below;
        above_from = above;
        for (int i = lane; i < STRIDE; i += 32) {
            shared.near[0][i] = below - i >= 0 ? counts[below - i] : 0;
            shared.near[1][i] = above + i <= limit ? counts[above + i] : 0;
        }
        __syncwarp();
        if (lane == 0) {
            while (true) {
                while (below >= 0 && below > below_from - STRIDE && shared.near[0][below_from - below] == 0) {
                    below--;
                }
                while (above <= limit && above < above_from + STRIDE && shared.near[1][above - above_from] == 0) {
                    above++;
                }
                const bool has_below = below >= 0, has_above = above <= limit;
                if (!has_below && !has_above) {
                    is_done = true; // Roundings may leave the sum of all below what is wanted: then all are left.
                    break;
                }
                if ((has_below && below == below_from - STRIDE) || (has_above && above == above_from + STRIDE)) {
                    break; // More counts are needed.
                }
                const bool takes_above =
                    has_above && (!has_below || __dadd_rn((double)above, -mean) < __dadd_rn(mean, -(double)below));
                const int cell = takes_above ? above : below;
                const unsigned count = shared.near[takes_above][takes_above ? above - above_from : below_from - below];
                takes_above ? above++ : below--;
                first = min(first, cell);
                last = max(last, cell);
                const double unit = shared.units[cell / STRIDE];
                const u64 weight = shared.within[cell % STRIDE];
                const auto with = [&](u64 n) { return __dadd_rn(mass, __dmul_rn(unit, (double)(n * weight))); };
                if (with(count) >= wanted) {
                    const unsigned n = fewest(count, [&](u64 n) { return with(n) >= wanted; });
                    if (n < count) {
                        shared.cut[1] = cell;
                        shared.cut_count[1] = n;
                    }
                    is_done = true;
                    break;
                }
                mass = with(count);
            }
            shared.places[0] = (unsigned)below;
            shared.places[1] = (unsigned)above;
            shared.places[2] = is_done;
        }
        __syncwarp();
        below = (int)shared.places[0];
        above = (int)shared.places[1];
        is_done = shared.places[2] != 0;
        __syncwarp();
    }
    if (lane == 0) {
        shared.first = first;
        shared.last = last;
    }
}

// The n-th token of a cell, counted from 1: in every thread's part of the row tokens are counted, and where the n-th is, looked at.
static __device__ void find_token(Shared &shared, const unsigned short *cells, unsigned tokens, int which) {
    const unsigned part = (tokens + THREADS - 1) / THREADS, begin = min(threadIdx.x * part, tokens);
    const unsigned end = min(begin + part, tokens), cell = (unsigned)shared.cut[which], wanted = shared.cut_count[which];
    unsigned count = 0;
    for (unsigned i = begin; i < end; i++) {
        count += cells[i] == cell;
    }
    shared.ends[threadIdx.x] = count;
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned sum = 0;
        for (int i = 0; i < THREADS; i++) {
            shared.ends[i] = sum += shared.ends[i];
        }
    }
    __syncthreads();
    unsigned before = threadIdx.x == 0 ? 0 : shared.ends[threadIdx.x - 1];
    if (before < wanted && wanted <= shared.ends[threadIdx.x]) {
        for (unsigned i = begin;; i++) {
            before += cells[i] == cell;
            if (before == wanted) {
                shared.cut_token[which] = i;
                break;
            }
        }
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS)
    sample_f32(float *logits, const Request *requests, const unsigned *allowed, const unsigned *bias_tokens,
               const float *biases, const unsigned *seen_tokens, const unsigned *seen_counts, unsigned short *cells,
               unsigned *counts, Choice *choices, unsigned tokens) {
    __shared__ Shared shared;
    const size_t row = blockIdx.x;
    const Request &request = requests[row];
    const unsigned padded = (tokens + GROUP - 1) / GROUP * GROUP;
    logits += row * tokens;
    cells += row * padded;
    counts += row * CELLS;

    // Steps 1 to 4.
    if (request.is_masked) {
        const unsigned *mask = allowed + row * ((tokens + 31) / 32);
        for (unsigned i = threadIdx.x; i < tokens; i += THREADS) {
            if ((mask[i / 32] >> i % 32 & 1) == 0) {
                logits[i] = -INFINITY;
            }
        }
        __syncthreads();
    }
    for (unsigned i = request.bias_begin + threadIdx.x; i < request.bias_end; i += THREADS) {
        // A token that is named twice gets both, from whoever has the first.
        bool is_first = true;
        for (unsigned j = request.bias_begin; j < i; j++) {
            is_first &= bias_tokens[j] != bias_tokens[i];
        }
        for (unsigned j = i; is_first && j < request.bias_end; j++) {
            if (bias_tokens[j] == bias_tokens[i]) {
                logits[bias_tokens[i]] = __fadd_rn(logits[bias_tokens[i]], biases[j]);
            }
        }
    }
    __syncthreads();
    for (unsigned i = request.seen_begin + threadIdx.x; i < request.seen_end; i += THREADS) {
        float x = logits[seen_tokens[i]];
        x = x > 0.0f ? __fdiv_rn(x, request.repetition_penalty) : __fmul_rn(x, request.repetition_penalty);
        if (seen_counts[i] > 0) {
            const float often = __fmul_rn(request.frequency_penalty, (float)seen_counts[i]);
            x = __fsub_rn(x, __fadd_rn(often, request.presence_penalty));
        }
        logits[seen_tokens[i]] = x;
    }
    __syncthreads();

    // The largest, and the first that is no number: as −place in a float it would not be exact, so as a flag.
    float best = -INFINITY, is_bad = 0.0f;
    unsigned best_token = tokens, bad_token = tokens;
    for (unsigned i = threadIdx.x; i < tokens; i += THREADS) {
        const float x = logits[i];
        if (!(x < INFINITY) && is_bad == 0.0f) {
            is_bad = 1.0f;
            bad_token = i;
        }
        if (x > best) {
            best = x;
            best_token = i;
        }
    }
    best_of_all(shared, is_bad, bad_token);
    best_of_all(shared, best, best_token);
    if (is_bad != 0.0f || best == -INFINITY || request.is_greedy) {
        if (threadIdx.x == 0) {
            choices[row] = {is_bad != 0.0f ? bad_token : best_token, is_bad != 0.0f ? 1u : best == -INFINITY ? 2u : 0u};
        }
        return; // The whole block.
    }

    // Step 6.
    const float scale = __fdiv_rn(PER_UNIT, request.temperature), best_place = on_grid(best, scale);
    const bool is_counted = request.top_k > 0 || request.top_p < 1.0f || request.typical_p < 1.0f;
    for (int i = threadIdx.x; i < CELLS && is_counted; i += THREADS) {
        counts[i] = 0;
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; i < padded; i += THREADS) {
        const float x = i < tokens ? logits[i] : -INFINITY;
        const float below = x > -INFINITY ? __fsub_rn(best_place, on_grid(x, scale)) : INFINITY;
        const unsigned cell = below < (float)CELLS ? (unsigned)below : (unsigned)CELLS;
        cells[i] = (unsigned short)cell;
        if (is_counted && cell < CELLS) {
            atomicAdd(&counts[cell], 1u);
        }
    }

    // Steps 7 to 10.
    if (threadIdx.x == 0) {
        shared.first = 0;
        shared.last = CELLS - 1;
        shared.cut[0] = shared.cut[1] = shared.whole_cell = CELLS;
    }
    const auto end_at_min_p = [&] {
        const double least = fmax((double)request.min_p, 2.2250738585072014e-308);
        const int last = (int)__dmul_rn(-ln_of(least), (double)PER_UNIT);
        shared.last = min(shared.last, last);
    };
    if (is_counted) {
        for (int i = threadIdx.x; i < STRIDES + STRIDE; i += THREADS) {
            const int cell = i < STRIDES ? i * STRIDE : i - STRIDES;
            const double weight = exp_of_negative(__ddiv_rn((double)cell, (double)PER_UNIT));
            if (i < STRIDES) {
                shared.units[i] = __ddiv_rn(weight, 4294967296.0);
            } else {
                shared.within[cell] = (u64)__dadd_rn(__dmul_rn(weight, 4294967296.0), 0.5);
            }
        }
        sum_strides(shared, counts);
        if (request.top_k > 0) {
            if (threadIdx.x == 0) {
                keep_top_k(shared, counts, request.top_k);
            }
            sum_strides(shared, counts);
        }
        if (request.top_p < 1.0f) {
            if (threadIdx.x == 0) {
                keep_top_p(shared, counts, (double)request.top_p);
            }
            __syncthreads();
        }
        if (threadIdx.x == 0) {
            if (request.min_p > 0.0f) {
                end_at_min_p();
            }
            const int cell = shared.whole_cell;
            if (cell == shared.last && counts[cell] < shared.whole) {
                shared.cut[0] = cell;
                shared.cut_count[0] = counts[cell];
            }
        }
        if (request.typical_p < 1.0f) {
            sum_strides(shared, counts);
            if (threadIdx.x < 32) {
                keep_typical(shared, counts, (double)request.typical_p);
            }
        }
        __syncthreads();
        // Where both cut the same cell, the second left fewer.
        if (shared.cut[1] < CELLS) {
            find_token(shared, cells, tokens, 1);
        }
        if (shared.cut[0] < CELLS && shared.cut[0] != shared.cut[1]) {
            find_token(shared, cells, tokens, 0);
        } else if (threadIdx.x == 0) {
            shared.cut[0] = CELLS;
        }
    } else if (threadIdx.x == 0 && request.min_p > 0.0f) {
        end_at_min_p();
    }
    __syncthreads();

    // Step 11. A thread has counters, each of which is the noise of four tokens.
    const int first = shared.first, last = shared.last;
    double highest = -INFINITY;
    unsigned winner = tokens;
    int bound = 0x7fffffff;
    for (unsigned counter = threadIdx.x; counter < padded / 4; counter += THREADS) {
        const unsigned begin = counter / LANES * GROUP + counter % LANES;
        int four[4];
        bool any = false;
        for (int i = 0; i < 4; i++) {
            four[i] = cells[begin + i * LANES];
            any |= first <= four[i] && four[i] <= last;
        }
        if (!any) {
            continue;
        }
        unsigned words[4] = {counter, (unsigned)request.position, (unsigned)(request.position >> 32), 0};
        philox(words, request.seed);
        for (int i = 0; i < 4; i++) {
            const unsigned token = begin + i * LANES;
            bool is_left = first <= four[i] && four[i] <= last && can_win(words[i], four[i], bound);
            for (int part = 0; part < 2; part++) {
                is_left &= four[i] != shared.cut[part] || token <= shared.cut_token[part];
            }
            if (!is_left) {
                continue;
            }
            const double sum = __dadd_rn(noise_of(words[i]), -__ddiv_rn((double)four[i], (double)PER_UNIT));
            if (sum > highest || (sum == highest && token < winner)) {
                highest = sum;
                winner = token;
                bound = bound_of(highest);
            }
        }
    }
    best_of_warp(highest, winner);
    if (threadIdx.x % 32 == 0) {
        shared.sums[threadIdx.x / 32] = highest;
        shared.places[threadIdx.x / 32] = winner;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int warp = 1; warp < WARPS; warp++) {
            if (shared.sums[warp] > highest || (shared.sums[warp] == highest && shared.places[warp] < winner)) {
                highest = shared.sums[warp];
                winner = shared.places[warp];
            }
        }
        choices[row] = {winner, 0};
    }
}
