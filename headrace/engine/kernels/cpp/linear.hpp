// y = x Wᵀ + bias, x fp32 [rows, inputs], from weights packed once.
//
// Packed weights are panels of 16 outputs; within a panel the inputs follow each other, so one panel is one stream of
// memory.  How a panel is laid out inside is the business of (format, instruction set): packed weights never leave the
// process.  Missing outputs of the last panel are zeros.
//
// Every output is one chain of multiply-adds over the inputs in their order, whatever the rows, threads and tiles: results are
// bit-identical for any batch.  (bf16 instructions add two products a link; integer sums are exact anyway, int4 within a group.)
#pragma once

#include "headrace.hpp"

namespace headrace {

constexpr int PANEL = 16;

enum class Format : int { fp32 = 0, bf16 = 1, int8 = 2, int4 = 3 };

struct LinearArgs {
    Format format;
    std::int64_t rows, outputs, inputs;
    const float* x;         // [rows, inputs], rows x_stride apart
    std::int64_t x_stride;
    const void* weight;     // packed
    const float* scales;    // int8: [outputs padded to panels]
    const float* bias;      // [outputs padded to panels] or null
    const float* residual;  // as y, or null: added last; may be y itself
    float* y;               // [rows, outputs] or, gated, [rows, outputs / 2]; rows y_stride apart
    std::int64_t y_stride;
    bool gated;             // panels alternate gate, up: y = silu(gate) * up
    void* quantized;        // int8: the tokens' scales [rows], which `quantize` writes
    std::int64_t group;     // int4: inputs that share a scale; 16, 32, 64, 128 or 256, and a divisor of `inputs`
    const std::int32_t* order;  // int4: input of each column [inputs], or null: column k is input k
};

// Rows of a weight [rows, inputs] as they come: fp32, bf16, int8, or int4 (a byte each) with scales and zero points.
struct PackSource {
    const void* values;
    std::int64_t rows;
    const float* scales;        // int4: [rows, groups]
    const std::uint8_t* zeros;  // int4: [rows, groups], 0 to 15
};

// All threads of the pool; `quantized` is seen to.
void run_linear(const LinearArgs& args);

struct LinearKernels {  // of `args` they read the format and the sizes, `unpack` the order as well
    std::int64_t (*panel_bytes)(const LinearArgs& args);
    // Source rows [16 * panel, ...) into one panel.
    void (*pack)(const LinearArgs& args, const PackSource& source, std::int64_t panel, void* out);
    // One output's weights as fp32 [inputs], e.g. a row of an embedding; int8 without its scale.
    void (*unpack)(const LinearArgs& args, std::int64_t output, float* out);
    std::int64_t (*quantized_bytes)(const LinearArgs& args);
    void (*quantize)(const LinearArgs& args, int thread, int threads);
    void (*run)(const LinearArgs& args, int thread, int threads);
};

}  // namespace headrace
