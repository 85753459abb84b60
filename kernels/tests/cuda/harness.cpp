// Runs one op's CUDA source on the CPU. The op, the type and the shape come in as arguments, the arrays as f32 on stdin; the
// result goes to stdout as f32. Launches are those that the heads of the sources ask for.

#include "cuda_fp16.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

// The sources define the same helpers.
namespace gelu_source {
#include "../../src/gelu/cuda.cu"
}
namespace layer_norm_source {
#include "../../src/layer_norm/cuda.cu"
}
namespace mean_pool_source {
#include "../../src/mean_pool/cuda.cu"
}

static std::vector<long> numbers;
static float eps;

template <typename T> static std::vector<T> read(size_t n) {
    std::vector<float> values(n);
    if (fread(values.data(), sizeof(float), n, stdin) != n) {
        fprintf(stderr, "stdin is too short\n");
        exit(2);
    }
    return std::vector<T>(values.begin(), values.end());
}

template <typename T> static void write(const std::vector<T> &result) {
    const std::vector<float> values(result.begin(), result.end());
    fwrite(values.data(), sizeof(float), values.size(), stdout);
}

// rows, dim, whether there is a bias
template <typename T, typename Kernel> static void gelu(Kernel kernel) {
    const unsigned rows = numbers[0], dim = numbers[1];
    auto x = read<T>((size_t)rows * dim);
    const auto bias = read<T>(numbers[2] ? dim : 0);
    // Two rows of blocks, so that the kernel has to stride.
    launch({(dim + 255) / 256, std::min(rows, 2u), 1}, {256, 1, 1},
           [&] { kernel(x.data(), numbers[2] ? bias.data() : nullptr, rows, dim); });
    write(x);
}

// rows, dim, whether there is a residual
template <typename T, typename Kernel> static void layer_norm(Kernel kernel) {
    const unsigned rows = numbers[0], dim = numbers[1];
    const auto x = read<T>((size_t)rows * dim), residual = read<T>(numbers[2] ? (size_t)rows * dim : 0);
    const auto weight = read<T>(dim), bias = read<T>(dim);
    std::vector<T> out(x.size());
    launch({(rows + 3) / 4, 1, 1}, {32, 4, 1}, [&] {
        kernel(x.data(), numbers[2] ? residual.data() : nullptr, weight.data(), bias.data(), out.data(), eps, rows, dim);
    });
    write(out);
}

// dim, whether to normalise, cu_seqlens
template <typename T, typename Kernel> static void mean_pool(Kernel kernel) {
    const unsigned dim = numbers[0];
    const std::vector<unsigned> cu_seqlens(numbers.begin() + 2, numbers.end());
    const auto x = read<T>((size_t)cu_seqlens.back() * dim);
    std::vector<float> out((cu_seqlens.size() - 1) * dim);
    launch({(unsigned)cu_seqlens.size() - 1, 1, 1}, {256, 1, 1},
           [&] { kernel(x.data(), cu_seqlens.data(), out.data(), dim, (unsigned)numbers[1]); });
    write(out);
}

int main(int count, char **arguments) {
    const std::string function = count > 2 ? arguments[1] : "";
    eps = count > 2 ? strtof(arguments[2], nullptr) : 0.0f;
    for (int i = 3; i < count; i++) {
        numbers.push_back(atol(arguments[i]));
    }
    if (function == "gelu_f32") {
        gelu<float>(gelu_source::gelu_f32);
    } else if (function == "gelu_f16") {
        gelu<__half>(gelu_source::gelu_f16);
    } else if (function == "layer_norm_f32") {
        layer_norm<float>(layer_norm_source::layer_norm_f32);
    } else if (function == "layer_norm_f16") {
        layer_norm<__half>(layer_norm_source::layer_norm_f16);
    } else if (function == "mean_pool_f32") {
        mean_pool<float>(mean_pool_source::mean_pool_f32);
    } else if (function == "mean_pool_f16") {
        mean_pool<__half>(mean_pool_source::mean_pool_f16);
    } else {
        fprintf(stderr, "no function %s\n", function.c_str());
        return 2;
    }
    return 0;
}
