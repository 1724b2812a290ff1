#include "attention.hpp"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <stdexcept>
#include <vector>

HEADRACE_DISPATCH(AttentionKernels, attention_kernels)

namespace nb = nanobind;

namespace headrace {

namespace {

constexpr int TILE_VECTORS = 48;  // (row, head) vectors of a tile: enough that loads of keys and values do not count

// A tile, or one split of it, for one thread.
struct Unit {
    int tile;
    std::int64_t begin, end;  // positions
    std::int64_t cost;
    std::int64_t state;  // where its state is kept, -1: the unit is a whole tile
};

// Thread t takes the units whose middle lies in its part of the whole cost.
Range units_of(const std::vector<Unit>& units, std::int64_t total, int thread, int threads) {
    std::int64_t sum = 0, begin = -1, end = 0, index = 0;
    for (const Unit& unit : units) {
        const std::int64_t owner = (2 * sum + unit.cost) * threads / (2 * total);
        if (owner == thread && begin < 0) begin = index;
        sum += unit.cost;
        ++index;
        if (owner <= thread) end = index;
    }
    return begin < 0 ? Range{0, 0} : Range{begin, end};
}

}  // namespace

void attend(const KvLayer& kv, const AttentionRules& rules, const AttentionSpans& spans, const float* queries,
            std::int64_t query_stride, float* out, std::int64_t out_stride, int heads) {
    const AttentionKernels& kernels = attention_kernels();
    const int group = heads / static_cast<int>(kv.kv_heads);
    const int tile_rows = std::max(1, TILE_VECTORS / group);
    static thread_local std::vector<AttentionTile> tiles;
    static thread_local std::vector<Unit> units;
    tiles.clear();
    units.clear();
    const auto first_seen = [&](std::int64_t position) {
        return rules.window > 0 && position + 1 > rules.window ? position + 1 - rules.window : 0;
    };
    std::int64_t whole_units = 0;
    for (std::int64_t span = 0; span < spans.count; ++span)
        whole_units += (spans.lengths[span] + tile_rows - 1) / tile_rows * kv.kv_heads;
    // A split on its own is more to do at the end, so only where there is too little to share.
    const bool is_split = num_threads() > 1 && whole_units < 4 * num_threads();
    std::int64_t total = 0, states = 0;
    for (std::int64_t span = 0; span < spans.count; ++span)
        for (int head = 0; head < kv.kv_heads; ++head)
            for (std::int64_t done = 0; done < spans.lengths[span]; done += tile_rows) {
                const std::int64_t row = spans.rows[span] + done, position = spans.starts[span] + done;
                const int rows = static_cast<int>(std::min<std::int64_t>(tile_rows, spans.lengths[span] - done));
                tiles.push_back({queries + row * query_stride + head * group * kv.head_dim, query_stride,
                                 out + row * out_stride + head * group * kv.head_dim, out_stride,
                                 spans.block_tables + spans.seats[span] * spans.table_stride, position, rows, group, head});
                const int tile = static_cast<int>(tiles.size()) - 1;
                const std::int64_t begin = first_seen(position) / KV_TILE * KV_TILE, end = position + rows;
                const auto add = [&](std::int64_t from, std::int64_t to, std::int64_t state) {
                    const std::int64_t cost = (to - from + 16) * (rows * group + 4);
                    units.push_back({tile, from, to, cost, state});
                    total += cost;
                };
                if (!is_split || end - begin <= KV_SPLIT) {
                    add(begin, end, -1);
                    continue;
                }
                const std::int64_t size = kernels.state_size(rows * group, kv.head_dim);
                for (std::int64_t from = begin; from < end;) {
                    const std::int64_t to = std::min(end, (from / KV_SPLIT + 1) * KV_SPLIT);
                    add(from, to, states);
                    states += size;
                    from = to;
                }
            }
    if (units.empty()) return;
    static thread_local std::vector<float> shared_states;
    if (static_cast<std::int64_t>(shared_states.size()) < states) shared_states.resize(states);
    float* const split_states = shared_states.data();
    const std::vector<Unit>& all_units = units;
    const std::vector<AttentionTile>& all_tiles = tiles;
    const std::int64_t most = kernels.state_size(tile_rows * group, kv.head_dim);
    const std::int64_t workspace = static_cast<std::int64_t>(tile_rows) * group * (kv.head_dim + KV_TILE + 1);
    parallel([&](int thread, int threads) {
        const Range mine = units_of(all_units, total, thread, threads);
        if (mine.begin == mine.end) return;
        float* const state = static_cast<float*>(scratch(sizeof(float) * (2 * most + workspace)));
        float *const part = state + most, *const work = part + most;
        for (std::int64_t i = mine.begin; i < mine.end; ++i) {
            const Unit& unit = all_units[i];
            const AttentionTile& tile = all_tiles[unit.tile];
            if (unit.state >= 0) {
                kernels.partial(kv, rules, tile, unit.begin, unit.end, split_states + unit.state, work);
                continue;
            }
            bool first = true;
            for (std::int64_t from = unit.begin; from < unit.end;) {
                const std::int64_t to = std::min(unit.end, (from / KV_SPLIT + 1) * KV_SPLIT);
                kernels.partial(kv, rules, tile, from, to, first ? state : part, work);
                if (!first) kernels.join(tile.rows * group, kv.head_dim, state, part, false);
                first = false;
                from = to;
            }
            kernels.finish(kv, tile, state);
        }
    });
    if (states == 0) return;
    for (std::size_t i = 0; i < units.size();) {
        if (units[i].state < 0) {
            ++i;
            continue;
        }
        const AttentionTile& tile = tiles[units[i].tile];
        float* const state = split_states + units[i].state;
        std::size_t next = i + 1;
        for (; next < units.size() && units[next].tile == units[i].tile; ++next)
            kernels.join(tile.rows * group, kv.head_dim, state, split_states + units[next].state, false);
        kernels.finish(kv, tile, state);
        i = next;
    }
}

namespace {

KvLayer kv_layer(int kind, Address pages, Address scales, std::int64_t num_pages, std::int64_t block_size,
                 std::int64_t kv_heads, std::int64_t head_dim) {
    if (block_size % KV_GROUP || head_dim % KV_GROUP || kind < 0 || kind > 2)
        throw std::invalid_argument("block size and head size must be multiples of 16");
    return {static_cast<KvKind>(kind), at<const void>(pages), at<const float>(scales), num_pages, block_size, kv_heads,
            head_dim};
}

void attend_at(Address queries, std::int64_t query_stride, Address out, std::int64_t out_stride, int heads, int kind,
               Address pages, Address scales, std::int64_t num_pages, std::int64_t block_size, int kv_heads,
               std::int64_t head_dim, std::int64_t num_spans, Address rows, Address starts, Address lengths,
               Address seats, Address block_tables, std::int64_t table_stride, float scale, float softcap, std::int64_t window) {
    if (kv_heads < 1 || heads % kv_heads) throw std::invalid_argument("heads must be a multiple of kv_heads");
    const KvLayer kv = kv_layer(kind, pages, scales, num_pages, block_size, kv_heads, head_dim);
    const AttentionSpans spans{num_spans, at<const std::int32_t>(rows), at<const std::int32_t>(starts),
                               at<const std::int32_t>(lengths), at<const std::int32_t>(seats),
                               at<const std::int32_t>(block_tables), table_stride};
    attend(kv, {scale, softcap, window}, spans, at<const float>(queries), query_stride, at<float>(out), out_stride, heads);
}

}  // namespace

void bind_attention(nb::module_& module) {
    using Release = nb::call_guard<nb::gil_scoped_release>;
    module.def("attend", &attend_at, nb::arg("queries"), nb::arg("query_stride"), nb::arg("out"), nb::arg("out_stride"),
               nb::arg("heads"), nb::arg("kind"), nb::arg("pages"), nb::arg("scales"), nb::arg("num_pages"),
               nb::arg("block_size"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("num_spans"), nb::arg("rows"),
               nb::arg("starts"), nb::arg("lengths"), nb::arg("seats"), nb::arg("block_tables"), nb::arg("table_stride"), nb::arg("scale"),
               nb::arg("softcap") = 0.0f, nb::arg("window") = 0, Release(),
               "softmax(scale * q K) V for fp32 queries [rows][query_stride] into fp32 out [rows][out_stride]; spans as int32\n"
               "arrays (first row, first position, length, row of their blocks in block_tables [seats][table_stride]).");
}

}  // namespace headrace
