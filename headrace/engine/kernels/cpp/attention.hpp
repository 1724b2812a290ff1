// Paged attention for mixed batches: decodes, prompts and chunks of prompts in one call a layer.
#pragma once

#include "headrace.hpp"

namespace headrace {

// How a KV cache keeps its numbers.
enum class KvKind : int { fp32 = 0, bf16 = 1, int8 = 2 };

constexpr int KV_GROUP = 16;   // positions that are multiplied together; block sizes and head sizes are multiples of it
constexpr int KV_TILE = 64;    // positions between two updates of a row's running maximum
constexpr int KV_SPLIT = 512;  // positions whose softmax is computed on its own; the parts are then joined in order

// One layer's cache and rules.  A page of keys is [head_dim][block_size], a page of values [block_size][head_dim]; pages of
// one head follow each other, heads of keys come before those of values: [2 * kv_heads][num_pages] pages.
// int8: one fp32 scale a position, [2 * kv_heads][num_pages][block_size].
struct KvLayer {
    KvKind kind;
    const void* pages;
    const float* scales;  // int8 only
    std::int64_t num_pages, block_size, kv_heads, head_dim;
};

struct AttentionRules {
    float scale;           // of queries
    float softcap;         // scores become softcap * tanh(score / softcap); 0: they stay
    std::int64_t window;   // a row sees the last `window` positions, itself included; 0: all
};

// `rows` consecutive positions of one sequence from `position` on, for the `group` query heads of one KV head.
struct AttentionTile {
    const float* queries;  // row i, head h of the group: queries + i * query_stride + h * head_dim
    std::int64_t query_stride;
    float* out;            // in the same way
    std::int64_t out_stride;
    const std::int32_t* block_table;
    std::int64_t position;
    int rows, group, kv_head;
};

// Chunks of a step: span i is `lengths[i]` rows from `rows[i]` on, at positions from `starts[i]` on; its blocks are in
// `block_tables + seats[i] * table_stride`.
struct AttentionSpans {
    std::int64_t count;
    const std::int32_t *rows, *starts, *lengths, *seats, *block_tables;
    std::int64_t table_stride;
};

// softmax(scale * q K) V of all spans' rows: queries and out are fp32, `heads` vectors of head_dim a row.
void attend(const KvLayer& kv, const AttentionRules& rules, const AttentionSpans& spans, const float* queries,
            std::int64_t query_stride, float* out, std::int64_t out_stride, int heads);

struct AttentionKernels {
    // fp32 numbers that hold the state of `rows * group` softmaxes.
    std::int64_t (*state_size)(int vectors, std::int64_t head_dim);
    // The state over positions [begin, end), which lie within one split.
    // `workspace`: rows * group * (head_dim + KV_TILE + 1) numbers.
    void (*partial)(const KvLayer&, const AttentionRules&, const AttentionTile&, std::int64_t begin, std::int64_t end,
                    float* state, float* workspace);
    // total = total joined with part; `first` takes part as it is.
    void (*join)(int vectors, std::int64_t head_dim, float* total, const float* part, bool first);
    // Divide and write `out`.
    void (*finish)(const KvLayer&, const AttentionTile&, const float* state);
};

}  // namespace headrace
