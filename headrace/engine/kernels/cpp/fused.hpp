// What lies between the matrix products: norms, rotation with the store of keys and values, gates.
#pragma once

#include "attention.hpp"

namespace headrace {

// out = x / rms(x) * weight, or with `add` out += that; rows of `width` numbers.  out may be x.
struct NormArgs {
    const float* x;
    std::int64_t x_stride;
    const float* weight;
    float eps;
    float* out;
    std::int64_t out_stride, width;
    bool add;
};

// Rows of queries, keys and values behind each other, as fp32.  Queries and keys are normed per head (where there are
// weights) and rotated in place: component i with component i + head_dim / 2.  Keys and values go to their slots, block id *
// block_size + offset; a row with a negative slot is padding and is not stored.
struct RotateArgs {
    float* qkv;
    std::int64_t stride;
    int heads;
    const float *q_norm, *k_norm;  // [head_dim] or null
    float eps;
    const float *cos, *sin;        // [positions][head_dim / 2]
    const std::int32_t* positions;
    const std::int64_t* slots;
    KvLayer kv;                    // written
};

struct FusedKernels {
    void (*norm)(const NormArgs&, std::int64_t begin, std::int64_t end);
    void (*rotate_store)(const RotateArgs&, std::int64_t begin, std::int64_t end);
    // out[i] = activation(gate) * up for x rows [gate, up] of `width` each; gelu is its tanh form, else silu.
    void (*gate)(const float* x, std::int64_t x_stride, float* out, std::int64_t out_stride, std::int64_t width, bool gelu,
                 std::int64_t begin, std::int64_t end);
};

// The same for all rows, shared among the threads.
void norm(const NormArgs& args, std::int64_t rows);
void rotate_store(const RotateArgs& args, std::int64_t rows);

}  // namespace headrace
