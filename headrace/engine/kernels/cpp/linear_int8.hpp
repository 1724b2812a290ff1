// Tiles of int8 weights and int8 activations (W8A8), summed exactly in int32: the order of summation cannot matter.
//
// A token's scale is its largest magnitude / 127; tokens are rounded while they are packed.  An output's scale comes with the
// weights.  |products| are at most 127 * 128, so 131,000 inputs fit into int32.
//   AVX2, AVX-512   pairs of int16 (vpmaddwd): int8 pairs summed in 16 bits (vpmaddubsw) would saturate
//   VNNI            vpdpbusd multiplies unsigned by signed: tokens are stored + 128, and 128 * (sum of an output's weights),
//                   kept behind each panel, is taken off at the end
#pragma once

#include "linear_driver.hpp"
#include "linear_ints.hpp"

namespace headrace::HEADRACE_ISA {

#if HAS_VNNI
constexpr int INT8_STEP = 4;  // inputs that one instruction adds up
#else
constexpr int INT8_STEP = 2;
#endif

// Scales of tokens [begin, end).
inline void int8_scales(const LinearArgs& args, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
        const float* x = args.x + row * args.x_stride;
        Vec most = zero();
        std::int64_t k = 0;
        for (; k + LANES <= args.inputs; k += LANES) most = max(most, abs(load(x + k)));
        if (k < args.inputs) most = max(most, abs(load_some(x + k, static_cast<int>(args.inputs - k))));
        const float scale = max_of(most) / 127.0f;
        static_cast<float*>(args.quantized)[row] = scale > 1.17549435e-38f ? scale : 1.17549435e-38f;
    }
}

struct Int8Format {
    using Sum = std::int32_t;
#if LANES_ARE_16
    static constexpr int MAX_ROWS = 12, BLOCK_ROWS = 192, BLOCK_INPUTS = 1024;
    static constexpr int panels(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
#else
    static constexpr int MAX_ROWS = 5, BLOCK_ROWS = 80, BLOCK_INPUTS = 896;
    static constexpr int panels(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#endif
    static constexpr int WORD = 4;  // bytes of one token's part of a step: 4 x u8 or 2 x int16

    static std::int64_t depth(const LinearArgs& args) { return args.inputs; }
    static std::int64_t steps(std::int64_t inputs) { return (inputs + INT8_STEP - 1) / INT8_STEP; }
    static std::int64_t weight_bytes(std::int64_t inputs) { return steps(inputs) * PANEL * INT8_STEP; }
    // The sums of the weights follow the weights of a panel.
    static std::int64_t panel_bytes(const LinearArgs& args) {
        return weight_bytes(args.inputs) + (INT8_STEP == 4 ? PANEL * 4 : 0);
    }
    static std::int64_t place(std::int64_t input, int lane) {
        return (input / INT8_STEP * PANEL + lane) * INT8_STEP + input % INT8_STEP;
    }
    static std::int64_t a_bytes(int rows, std::int64_t inputs) { return rows * steps(inputs) * WORD; }

    static void pack_x(const LinearArgs& args, std::int64_t row, int rows, std::int64_t begin, std::int64_t end,
                       void* out) {
        for (int r = 0; r < rows; ++r) {
            const float* x = args.x + (row + r) * args.x_stride;
            const Vec scale = all(static_cast<const float*>(args.quantized)[row + r]);
            char* to = static_cast<char*>(out) + r * WORD;
            for (std::int64_t k = begin; k < end; k += LANES) {
                const std::int64_t left = end - k;
                const Vec value = left >= LANES ? load(x + k) : load_some(x + k, static_cast<int>(left));
                float whole[LANES];
                store(whole, round(div(value, scale)));
                for (int i = 0; i < LANES && i < left; i += INT8_STEP, to += rows * WORD) {
#if HAS_VNNI
                    std::uint8_t part[4];
                    for (int j = 0; j < 4; ++j) part[j] = static_cast<std::uint8_t>(static_cast<int>(whole[i + j]) + 128);
#else
                    std::int16_t part[2];
                    for (int j = 0; j < 2; ++j) part[j] = static_cast<std::int16_t>(whole[i + j]);
#endif
                    std::memcpy(to, part, 4);
                }
            }
        }
    }

    HEADRACE_INLINE static void get(const char* p, Ints* w) {
#if HAS_VNNI
        w[0] = load_ints(p);
#elif LANES_ARE_16
        w[0] = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
        w[0] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        w[1] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)));
#endif
    }
    HEADRACE_INLINE static Ints product(Ints before, Ints x, Ints w) {
#if HAS_VNNI
        return _mm512_dpbusd_epi32(before, x, w);
#else
        return add(before, madd16(x, w));
#endif
    }

    template <int ROWS, int PANELS>
    HEADRACE_INLINE static void tile(const LinearArgs& args, const void* packed, std::int64_t panel, std::int64_t begin,
                                     std::int64_t end, std::int32_t* c, std::int64_t c_stride, bool first, Ahead ahead) {
        const std::int64_t stride = panel_bytes(args);
        const char* weight =
            static_cast<const char*>(args.weight) + panel * stride + begin / INT8_STEP * PANEL * INT8_STEP;
        const std::int32_t* a = static_cast<const std::int32_t*>(packed);
        Ints sums[ROWS][PANELS][VECTORS];
        for (int r = 0; r < ROWS; ++r)
            for (int p = 0; p < PANELS; ++p)
                for (int v = 0; v < VECTORS; ++v)
                    sums[r][p][v] = first ? no_ints() : load_ints(c + p * c_stride + r * PANEL + v * LANES);
        const std::int64_t count = steps(end - begin);
        ahead = ahead.in_parts(count * PANELS);
        for (std::int64_t step = 0; step < count; ++step, a += ROWS) {
            for (int p = 0; p < PANELS; ++p) {
                const char* at_step = weight + p * stride + step * PANEL * INT8_STEP;
                prefetch_weights<ROWS>(at_step, ahead);
                Ints w[VECTORS];
                get(at_step, w);
                for (int r = 0; r < ROWS; ++r) {
                    const Ints x = all_ints(a[r]);
                    for (int v = 0; v < VECTORS; ++v) sums[r][p][v] = product(sums[r][p][v], x, w[v]);
                }
            }
        }
        for (int r = 0; r < ROWS; ++r)
            for (int p = 0; p < PANELS; ++p)
                for (int v = 0; v < VECTORS; ++v)
                    store_ints(c + p * c_stride + r * PANEL + v * LANES, sums[r][p][v]);
    }

    HEADRACE_INLINE static Vec finish(const LinearArgs& args, std::int64_t row, std::int64_t panel, int v,
                                      const std::int32_t* sums) {
        Ints exact = load_ints(sums + v * LANES);
#if HAS_VNNI
        const char* weights = static_cast<const char*>(args.weight) + panel * panel_bytes(args);
        exact = sub(exact, load_ints(weights + weight_bytes(args.inputs)));
#endif
        const Vec scales = load(args.scales + panel * PANEL + v * LANES);
        const Vec value = mul(mul(to_floats(exact), scales), all(static_cast<const float*>(args.quantized)[row]));
        return args.bias == nullptr ? value : add(value, load(args.bias + panel * PANEL + v * LANES));
    }

    static void pack(const std::int8_t* source, std::int64_t outputs, std::int64_t inputs, std::int64_t panel, char* out) {
        for (int lane = 0; lane < PANEL; ++lane) {
            const std::int64_t row = panel * PANEL + lane;
            if (row >= outputs) break;
            std::int32_t sum = 0;
            for (std::int64_t k = 0; k < inputs; ++k) {
                out[place(k, lane)] = static_cast<char>(source[row * inputs + k]);
                sum += source[row * inputs + k];
            }
            sum *= 128;
            if (INT8_STEP == 4) std::memcpy(out + weight_bytes(inputs) + lane * 4, &sum, 4);
        }
    }
};

}  // namespace headrace::HEADRACE_ISA
