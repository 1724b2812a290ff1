// Tiles of fp32 and bf16 weights with fp32 multiply-adds, and (AVX-512 BF16) with bf16 instructions.
#pragma once

#include "linear_driver.hpp"

namespace headrace::HEADRACE_ISA {

// x packed as [inputs][ROWS]: one tile reads it front to back.
HEADRACE_INLINE void pack_columns(const LinearArgs& args, std::int64_t row, int rows, std::int64_t begin,
                                  std::int64_t end, float* HEADRACE_RESTRICT out) {
    const float* x = args.x + row * args.x_stride;
    for (int r = 0; r < rows; ++r, x += args.x_stride) {
        float* to = out + r;
        for (std::int64_t k = begin; k < end; ++k, to += rows) *to = x[k];
    }
}

// The shape of tiles with fp32 multiply-adds.  AVX2 has 16 registers: 6 x 16 are 12 sums.  AVX-512 has 32: 12 x 32 are 24.
struct FloatShape : FloatSums {
#if LANES_ARE_16
    static constexpr int MAX_ROWS = 12, BLOCK_ROWS = 192, BLOCK_INPUTS = 512;
    static constexpr int panels(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
#else
    static constexpr int MAX_ROWS = 6, BLOCK_ROWS = 72, BLOCK_INPUTS = 448;
    static constexpr int panels(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
#endif
    static std::int64_t depth(const LinearArgs& args) { return args.inputs; }
    static std::int64_t a_bytes(int rows, std::int64_t inputs) { return rows * inputs * 4; }
    static void pack_x(const LinearArgs& args, std::int64_t row, int rows, std::int64_t begin, std::int64_t end,
                       void* out) {
        pack_columns(args, row, rows, begin, end, static_cast<float*>(out));
    }
};

constexpr int STRETCH = 4;   // inputs between two prefetches
constexpr int X_AHEAD = 32;  // inputs: the next lines of x come from L2

// `Weights::get(p, w)` reads the outputs of one input.
template <class Weights, int ROWS, int PANELS>
HEADRACE_INLINE void float_tile(const void* packed, const char* weight, std::int64_t panel_stride, std::int64_t count,
                                float* c, std::int64_t c_stride, bool first, Ahead ahead) {
    const float* a = static_cast<const float*>(packed);
    Vec sum[ROWS][PANELS][VECTORS];
    for (int r = 0; r < ROWS; ++r)
        for (int p = 0; p < PANELS; ++p)
            for (int v = 0; v < VECTORS; ++v)
                sum[r][p][v] = first ? zero() : load(c + p * c_stride + r * PANEL + v * LANES);
    const auto step = [&](std::int64_t k) __attribute__((always_inline)) {
        for (int p = 0; p < PANELS; ++p) {
            const char* at_k = weight + p * panel_stride + k * Weights::STRIDE;
            if (ROWS < FETCH_ROWS && k % (64 / Weights::STRIDE) == 0) __builtin_prefetch(at_k + OWN_AHEAD);
            Vec w[VECTORS];
            Weights::get(at_k, w);
            for (int r = 0; r < ROWS; ++r) {
                const Vec x = all(a[r]);
                for (int v = 0; v < VECTORS; ++v) sum[r][p][v] = fma(x, w[v], sum[r][p][v]);
            }
        }
        a += ROWS;
    };
    // Of the weights in a stretch: enough where a single tile fetches them all.
    constexpr int LINES = PANELS * Weights::STRIDE * STRETCH / 64;
    ahead = ahead.in_parts(count / STRETCH * LINES);
    std::int64_t k = 0;
    for (; k + STRETCH <= count; k += STRETCH) {
        if (ROWS >= FETCH_ROWS) {
            for (int i = 0; i < ROWS * STRETCH; i += 16) __builtin_prefetch(a + ROWS * X_AHEAD + i);
            for (int i = 0; i < LINES; ++i) ahead.fetch();
        }
#pragma GCC unroll 1  // measured: unrolled it is 7 % slower
        for (int i = 0; i < STRETCH; ++i) step(k + i);
    }
    for (; k < count; ++k) step(k);
    for (int r = 0; r < ROWS; ++r)
        for (int p = 0; p < PANELS; ++p)
            for (int v = 0; v < VECTORS; ++v) store(c + p * c_stride + r * PANEL + v * LANES, sum[r][p][v]);
}

struct Fp32Weights {
    static constexpr int STRIDE = PANEL * 4;
    HEADRACE_INLINE static void get(const char* p, Vec* w) {
        for (int v = 0; v < VECTORS; ++v) w[v] = load(reinterpret_cast<const float*>(p) + v * LANES);
    }
};

struct Fp32Format : FloatShape {
    static std::int64_t panel_bytes(const LinearArgs& args) { return args.inputs * PANEL * 4; }
    template <int ROWS, int PANELS>
    HEADRACE_INLINE static void tile(const LinearArgs& args, const void* a, std::int64_t panel, std::int64_t begin,
                                     std::int64_t end, float* c, std::int64_t c_stride, bool first, Ahead ahead) {
        const std::int64_t stride = panel_bytes(args);
        const char* weight = static_cast<const char*>(args.weight) + panel * stride + begin * Fp32Weights::STRIDE;
        float_tile<Fp32Weights, ROWS, PANELS>(a, weight, stride, end - begin, c, c_stride, first, ahead);
    }
};

#if defined(HEADRACE_ISA_avx512_bf16)

// A panel is [inputs / 2][16][2]; vdpbf16ps multiplies pairs.  x is rounded to bf16 pairs, [inputs / 2][ROWS].
struct Bf16Format : FloatShape {
    static std::int64_t panel_bytes(const LinearArgs& args) { return (args.inputs + 1) / 2 * PANEL * 4; }
    static std::int64_t a_bytes(int rows, std::int64_t inputs) { return rows * (inputs + 1) / 2 * 4 + 64; }
    static std::int64_t place(std::int64_t input, int lane) { return (input / 2 * PANEL + lane) * 2 + input % 2; }
    static void pack_x(const LinearArgs& args, std::int64_t row, int rows, std::int64_t begin, std::int64_t end,
                       void* out) {
        const float* x = args.x + row * args.x_stride;
        for (int r = 0; r < rows; ++r, x += args.x_stride) {
            Bf16* to = static_cast<Bf16*>(out) + 2 * r;
            std::int64_t k = begin;
            for (; k + LANES <= end; k += LANES) {
                std::uint32_t pairs[LANES / 2];
                store(reinterpret_cast<Bf16*>(pairs), load(x + k));
                for (int i = 0; i < LANES / 2; ++i, to += 2 * rows) std::memcpy(to, pairs + i, 4);
            }
            for (; k < end; k += 2, to += 2 * rows) {
                to[0] = to_bf16(x[k]);
                to[1] = k + 1 < end ? to_bf16(x[k + 1]) : Bf16{0};
            }
        }
    }
    template <int ROWS, int PANELS>
    HEADRACE_INLINE static void tile(const LinearArgs& args, const void* packed, std::int64_t panel, std::int64_t begin,
                                     std::int64_t end, float* c, std::int64_t c_stride, bool first, Ahead ahead) {
        const std::int64_t stride = panel_bytes(args);
        const char* weight = static_cast<const char*>(args.weight) + panel * stride + begin / 2 * PANEL * 4;
        const std::int32_t* a = static_cast<const std::int32_t*>(packed);
        Vec sum[ROWS][PANELS];
        for (int r = 0; r < ROWS; ++r)
            for (int p = 0; p < PANELS; ++p) sum[r][p] = first ? zero() : load(c + p * c_stride + r * PANEL);
        const std::int64_t pairs = (end - begin + 1) / 2;
        ahead = ahead.in_parts(pairs * PANELS);
        for (std::int64_t pair = 0; pair < pairs; ++pair, a += ROWS) {
            for (int p = 0; p < PANELS; ++p) {
                const char* at_k = weight + p * stride + pair * PANEL * 4;
                prefetch_weights<ROWS>(at_k, ahead);
                const __m512i w = _mm512_loadu_si512(at_k);
                for (int r = 0; r < ROWS; ++r)
                    sum[r][p] = _mm512_dpbf16_ps(sum[r][p], (__m512bh)_mm512_set1_epi32(a[r]), (__m512bh)w);
            }
        }
        for (int r = 0; r < ROWS; ++r)
            for (int p = 0; p < PANELS; ++p) store(c + p * c_stride + r * PANEL, sum[r][p]);
    }
};

#else

// A panel is [inputs][16].  On AVX2 outputs i and i + 8 are neighbours: a shift and a mask make two vectors of one.
struct Bf16Weights {
    static constexpr int STRIDE = PANEL * 2;
    HEADRACE_INLINE static void get(const char* p, Vec* w) {
#if LANES_ARE_16
        w[0] = load(reinterpret_cast<const Bf16*>(p));
#else
        const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        w[0] = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
        w[1] = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
#endif
    }
};

struct Bf16Format : FloatShape {
    static std::int64_t panel_bytes(const LinearArgs& args) { return args.inputs * PANEL * 2; }
    static std::int64_t place(std::int64_t input, int lane) {
#if LANES_ARE_16
        return input * PANEL + lane;
#else
        return input * PANEL + lane % 8 * 2 + lane / 8;
#endif
    }
    template <int ROWS, int PANELS>
    HEADRACE_INLINE static void tile(const LinearArgs& args, const void* a, std::int64_t panel, std::int64_t begin,
                                     std::int64_t end, float* c, std::int64_t c_stride, bool first, Ahead ahead) {
        const std::int64_t stride = panel_bytes(args);
        const char* weight = static_cast<const char*>(args.weight) + panel * stride + begin * Bf16Weights::STRIDE;
        float_tile<Bf16Weights, ROWS, PANELS>(a, weight, stride, end - begin, c, c_stride, first, ahead);
    }
};

#endif

}  // namespace headrace::HEADRACE_ISA
