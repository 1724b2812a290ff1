// The loops around the tiles: rows and panels shared among threads, blocks that fit into the caches, the epilogue.
//
// `F` is a format on one instruction set:
//   MAX_ROWS              rows of the largest tile
//   depth(args)           inputs as they are held, padding included; "inputs" below are these
//   BLOCK_ROWS, BLOCK_INPUTS   rows and inputs of a block of packed x (it should take half of the L2 cache); BLOCK_INPUTS is a
//                         multiple of what a tile consumes at once
//   panels(rows)          panels of a tile with that many rows
//   panel_bytes(args)     bytes of a panel of weights
//   a_bytes(rows, inputs) bytes of one packed tile of x
//   pack_x(args, row, rows, begin, end, out)   inputs [begin, end) of some rows, as the tile reads them
//   tile<ROWS, PANELS>(args, a, panel, begin, end, c, c_stride, first, ahead)   c[p][row][16] (+)= over those inputs
//   finish(args, row, panel, vector, values)   accumulator -> fp32, LANES outputs
#pragma once

#include "linear.hpp"
#include "simd.hpp"

namespace headrace::HEADRACE_ISA {

constexpr int VECTORS = PANEL / LANES;  // of one panel's outputs

// What formats have in common whose sums are fp32 and final but for the bias.
struct FloatSums {
    using Sum = float;
    HEADRACE_INLINE static Vec finish(const LinearArgs& args, std::int64_t, std::int64_t panel, int v, const float* sums) {
        const Vec value = load(sums + v * LANES);
        return args.bias == nullptr ? value : add(value, load(args.bias + panel * PANEL + v * LANES));
    }
};

HEADRACE_INLINE std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// The weights that come next.  A tile brings its share of them from memory to the L2 cache while it computes: else the
// first of the tiles that use a panel waits for it (measured: 1.45 times as fast at 12 rows, 1.07 at 64).
struct Ahead {
    const char* at;
    std::int64_t bytes;
    HEADRACE_INLINE Ahead in_parts(std::int64_t count) const { return {at, count > 1 ? bytes / count : bytes}; }
    HEADRACE_INLINE void fetch() {
        __builtin_prefetch(at, 0, 2);
        at += bytes;
    }
};

constexpr int FETCH_ROWS = 3;  // tiles of fewer rows are bound by reading, and prefetch their own weights into L1
constexpr int OWN_AHEAD = 1024;  // bytes

// What a tile of that many rows prefetches with each line of its weights; `here` is that line.
template <int ROWS>
HEADRACE_INLINE void prefetch_weights(const char* here, Ahead& ahead) {
    if (ROWS < FETCH_ROWS)
        __builtin_prefetch(here + OWN_AHEAD);
    else
        ahead.fetch();
}

// What follows the panels before `panel` in inputs [begin, end): the next panels, or the first ones in the next inputs.
template <class F>
inline Ahead ahead_of(const LinearArgs& args, Range panels, std::int64_t panel, std::int64_t count, std::int64_t begin,
                      std::int64_t end) {
    const std::int64_t bytes = F::panel_bytes(args), depth = F::depth(args);
    const char* weight = static_cast<const char*>(args.weight);
    if (panel >= panels.end) {
        if (end >= depth) return {weight, 0};
        panel = panels.begin;
        begin = end;
        end = smaller(depth, begin + F::BLOCK_INPUTS);
    }
    return {weight + panel * bytes + bytes * begin / depth, bytes * (end - begin) / depth * count};
}

template <class F, int ROWS, int PANELS>
HEADRACE_INLINE void one_tile(const LinearArgs& args, const void* a, std::int64_t panel, int panels, std::int64_t begin,
                              std::int64_t end, typename F::Sum* c, std::int64_t c_stride, bool first, Ahead ahead) {
    if constexpr (PANELS > 1) {
        if (panels < PANELS) {
            for (int p = 0; p < panels; ++p)
                F::template tile<ROWS, 1>(args, a, panel + p, begin, end, c + p * c_stride, c_stride, first, ahead);
            return;
        }
    }
    F::template tile<ROWS, PANELS>(args, a, panel, begin, end, c, c_stride, first, ahead);
}

template <class F, int ROWS = 1>
HEADRACE_INLINE void any_tile(int rows, const LinearArgs& args, const void* a, std::int64_t panel, int panels,
                              std::int64_t begin, std::int64_t end, typename F::Sum* c, std::int64_t c_stride,
                              bool first, Ahead ahead) {
    if constexpr (ROWS <= F::MAX_ROWS) {
        if (rows == ROWS)
            one_tile<F, ROWS, F::panels(ROWS)>(args, a, panel, panels, begin, end, c, c_stride, first, ahead);
        else
            any_tile<F, ROWS + 1>(rows, args, a, panel, panels, begin, end, c, c_stride, first, ahead);
    }
}

// Sums [rows][16] of one panel -> y, with scales, bias, gate and residual.
template <class F>
inline void epilogue(const LinearArgs& args, std::int64_t row, int rows, std::int64_t panel, const typename F::Sum* c,
                     const typename F::Sum* gate) {
    const std::int64_t column = (args.gated ? panel / 2 : panel) * PANEL;
    const std::int64_t width = (args.gated ? args.outputs / 2 : args.outputs) - column;
    for (int r = 0; r < rows; ++r) {
        float* y = args.y + (row + r) * args.y_stride + column;
        for (int v = 0; v < VECTORS; ++v) {
            Vec value = F::finish(args, row + r, panel, v, c + r * PANEL);
            if (args.gated) value = mul(silu(F::finish(args, row + r, panel - 1, v, gate + r * PANEL)), value);
            const std::int64_t left = width - v * LANES;
            if (left <= 0) break;
            const float* residual =
                args.residual == nullptr ? nullptr : args.residual + (row + r) * args.y_stride + column + v * LANES;
            if (left >= LANES) {
                if (residual != nullptr) value = add(load(residual), value);
                store(y + v * LANES, value);
            } else {
                if (residual != nullptr) value = add(load_some(residual, static_cast<int>(left)), value);
                store_some(y + v * LANES, value, static_cast<int>(left));
            }
        }
    }
}

// Rows [begin, end) times panels [first, last), by one thread.
template <class F>
inline void rectangle(const LinearArgs& args, Range rows, Range panels) {
    if (rows.begin >= rows.end || panels.begin >= panels.end) return;
    const std::int64_t blocks = (rows.end - rows.begin + F::BLOCK_ROWS - 1) / F::BLOCK_ROWS;
    const std::int64_t most = (rows.end - rows.begin + blocks - 1) / blocks;
    const std::int64_t tiles_at_most = (most + F::MAX_ROWS - 1) / F::MAX_ROWS;
    const std::int64_t depth = F::depth(args), k_at_most = smaller(depth, F::BLOCK_INPUTS);
    const std::int64_t a_stride = (F::a_bytes(F::MAX_ROWS, k_at_most) + 63) / 64 * 64;
    // A single pass over the inputs needs the sums of a few panels only, several passes those of all of them.
    const bool is_single = depth <= F::BLOCK_INPUTS;
    const std::int64_t kept = is_single ? 8 : panels.end - panels.begin;
    const std::int64_t c_stride = most * PANEL;
    char* memory = static_cast<char*>(
        scratch(static_cast<std::size_t>(tiles_at_most * a_stride + kept * c_stride * sizeof(typename F::Sum))));
    auto* sums = reinterpret_cast<typename F::Sum*>(memory + tiles_at_most * a_stride);

    for (std::int64_t block = 0; block < blocks; ++block) {
        const Range mine = {rows.begin + (rows.end - rows.begin) * block / blocks,
                            rows.begin + (rows.end - rows.begin) * (block + 1) / blocks};
        const std::int64_t count = mine.end - mine.begin;
        // Tiles of about equal height: 7 rows are 4 + 3, not 6 + 1.
        const std::int64_t tiles = (count + F::MAX_ROWS - 1) / F::MAX_ROWS;
        const int height = static_cast<int>((count + tiles - 1) / tiles);
        const int step = F::panels(height);
        for (std::int64_t begin = 0; begin < depth; begin += F::BLOCK_INPUTS) {
            const std::int64_t end = smaller(depth, begin + F::BLOCK_INPUTS);
            for (std::int64_t tile = 0; tile < tiles; ++tile) {
                const std::int64_t row = count * tile / tiles, next = count * (tile + 1) / tiles;
                F::pack_x(args, mine.begin + row, static_cast<int>(next - row), begin, end, memory + tile * a_stride);
            }
            for (std::int64_t panel = panels.begin; panel < panels.end; panel += step) {
                const int group = static_cast<int>(smaller(step, panels.end - panel));
                typename F::Sum* c = sums + (is_single ? (panel - panels.begin) % 8 : panel - panels.begin) * c_stride;
                Ahead ahead = ahead_of<F>(args, panels, panel + group, group, begin, end).in_parts(tiles);
                for (std::int64_t tile = 0; tile < tiles; ++tile, ahead.at += ahead.bytes) {
                    const std::int64_t row = count * tile / tiles, next = count * (tile + 1) / tiles;
                    any_tile<F>(static_cast<int>(next - row), args, memory + tile * a_stride, panel, group, begin, end,
                                c + row * PANEL, c_stride, begin == 0, ahead);
                }
                if (end < depth) continue;
                for (int p = 0; p < group; ++p) {
                    const std::int64_t which = panel + p, slot = which - panels.begin;
                    if (args.gated && which % 2 == 0) continue;  // the up panel behind it needs both
                    const std::int64_t before = slot - (args.gated ? 1 : 0);
                    epilogue<F>(args, mine.begin, static_cast<int>(count), which,
                                sums + (is_single ? slot % 8 : slot) * c_stride,
                                sums + (is_single ? before % 8 : before) * c_stride);
                }
            }
        }
    }
}

// Few rows are shared by panels: each weight is read once.  Many by rows: then x is packed once.
template <class F>
inline void run_format(const LinearArgs& args, int thread, int threads) {
    const std::int64_t panels = (args.outputs + PANEL - 1) / PANEL;
    if (args.rows >= 16 * F::MAX_ROWS * threads && threads > 1) {
        rectangle<F>(args, share(args.rows, thread, threads, F::MAX_ROWS), Range{0, panels});
    } else {
        rectangle<F>(args, Range{0, args.rows}, share(panels, thread, threads, args.gated ? 2 : 1));
    }
}

}  // namespace headrace::HEADRACE_ISA
