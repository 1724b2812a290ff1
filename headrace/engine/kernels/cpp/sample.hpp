// From logits to tokens without sorting a vocabulary.
#pragma once

#include "headrace.hpp"

namespace headrace {

constexpr int SUM_BLOCK = 1024;  // tokens whose weights are added up together, in fp64
constexpr int CUTS = 8;

struct SampleKernels {
    // Index of the largest of x, the first among equals.
    std::int64_t (*largest)(const float* x, std::int64_t count);
    // Sum of e^(x - most) in fp64.
    double (*sum_exp)(const float* x, std::int64_t count, float most);
    std::int64_t (*count_above)(const float* x, std::int64_t count, float value);
    // weights[i] = e^((x[i] - most) / temperature), 0 below e^-87; their sums by SUM_BLOCK.
    void (*weigh)(const float* x, std::int64_t count, float most, float temperature, float* weights, double* sums);
    // How many of (x - most) / temperature reach each of the falling `cuts`, and about how much they weigh.
    void (*survey)(const float* x, const float* weights, std::int64_t count, float most, float temperature,
                   const float* cuts, std::int64_t* counts, double* masses);
    // The tokens whose (x - most) / temperature is at least `cut`, in order: scaled values, weights, ids.  Returns how many.
    std::int64_t (*gather)(const float* x, const float* weights, std::int64_t count, float most, float temperature,
                           float cut, float* scaled, float* kept, std::int32_t* ids);
    // x[i] = -inf where bit i is not set.
    void (*mask)(float* x, std::int64_t count, const std::uint8_t* bits);
};

}  // namespace headrace
