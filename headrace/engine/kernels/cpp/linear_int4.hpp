// Tiles of int4 weights in groups and int8 activations (W4A8).
//
//   weight[n, k] = scale[n, g] * (value[n, k] - zero[n, g])      values and zero points 0 to 15
//   y[n] = sum over groups of  (scale[n, g] * token scale[g]) * (sum of value * x - zero[n, g] * sum of x)
//
// A token has a scale for each group: its largest magnitude there / 127.  The sums in the brackets are exact in int32; their
// products with the scales are added up in fp32, group after group, with no fused step: the twin in torch gives the same bits.
//
// A group in memory is the 16 outputs' scales (fp32), their zero points (bytes), then their values: 32 bytes hold 8 outputs
// (AVX2) times 4 inputs in the lower halves of the bytes and 4 more in the upper halves.  Groups of 16 are padded to 32 with
// zeros.
//   AVX2, AVX-512   vpmaddubsw: |a pair of products| is at most 2 * 15 * 127, so 8 of them fit into int16
//   VNNI            vpdpbusd
#pragma once

#include "linear_driver.hpp"
#include "linear_ints.hpp"

namespace headrace::HEADRACE_ISA {

struct Int4Format : FloatSums {
#if LANES_ARE_16
    static constexpr int MAX_ROWS = 12, BLOCK_ROWS = 192, BLOCK_INPUTS = 1024;
    static constexpr int panels(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }
#else
    static constexpr int MAX_ROWS = 6, BLOCK_ROWS = 120, BLOCK_INPUTS = 1024;
    static constexpr int panels(int rows) { return rows <= 2 ? 2 : 1; }
#endif
    static constexpr int UNIT = 32;              // inputs whose pairs are summed in int16
    static constexpr int HEAD = PANEL * 4 + 16;  // bytes in front of a group's values
    static constexpr float TINY = 1.17549435e-38f;

    // Inputs as they are held: groups of 16 become 32.
    static std::int64_t held(std::int64_t group) { return group < UNIT ? UNIT : group; }
    static std::int64_t depth(const LinearArgs& args) { return args.inputs / args.group * held(args.group); }
    static std::int64_t group_bytes(std::int64_t group) { return HEAD + held(group) * PANEL / 2; }
    static std::int64_t panel_bytes(const LinearArgs& args) { return args.inputs / args.group * group_bytes(args.group); }
    static std::int64_t a_bytes(int rows, std::int64_t inputs) { return rows * (inputs + inputs / UNIT * 8); }

    // Byte and shift of a value inside its group.
    struct Place {
        std::int64_t byte;
        int shift;
    };
    static Place place(std::int64_t input, int lane) {
        const std::int64_t step = input / 4;
        return {HEAD + (step / 2 * PANEL + lane) * 4 + input % 4, static_cast<int>(step % 2 * 4)};
    }

    // A group of one token, rounded: words of 4 inputs, `rows` words apart.  Returns its scale; NaN where a value is not finite.
    HEADRACE_INLINE static float round_group(const float* x, std::int64_t count, std::int64_t rows, char* out,
                                             std::int32_t* total) {
        __m256 most = _mm256_setzero_ps(), poison = _mm256_setzero_ps();
        const __m256 sign = _mm256_set1_ps(-0.0f);
        for (std::int64_t k = 0; k < count; k += 8) {
            const __m256 value = _mm256_loadu_ps(x + k);
            most = _mm256_max_ps(most, _mm256_andnot_ps(sign, value));
            poison = _mm256_fmadd_ps(value, _mm256_setzero_ps(), poison);  // NaN and infinity leave NaN
        }
        float each[8], poisons[8];
        _mm256_storeu_ps(each, most);
        _mm256_storeu_ps(poisons, poison);
        float scale = 0, spoiled = 0;
        for (int i = 0; i < 8; ++i) {
            scale = each[i] > scale ? each[i] : scale;
            spoiled += poisons[i];
        }
        scale /= 127.0f;
        if (!(scale > TINY)) scale = TINY;
        const __m256 inverse = _mm256_set1_ps(1.0f / scale);
        __m256i sums = _mm256_setzero_si256();
        for (std::int64_t k = 0; k < count; k += UNIT) {
            __m256i part[4];
            for (int i = 0; i < 4; ++i)
                part[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + k + 8 * i), inverse));
            __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(part[0], part[1]), _mm256_packs_epi32(part[2], part[3]));
            bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes),
                                                            _mm256_set1_epi16(1)));
            std::int32_t words[8];
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), bytes);
            for (int i = 0; i < 8; ++i, out += rows * 4) std::memcpy(out, words + i, 4);
        }
        std::int32_t lanes[8];
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), sums);
        *total = 0;
        for (int i = 0; i < 8; ++i) *total += lanes[i];
        return scale + spoiled;
    }

    // A group: [inputs / 4][rows] words, [rows] scales, [rows] sums.
    static void pack_x(const LinearArgs& args, std::int64_t row, int rows, std::int64_t begin, std::int64_t end,
                       void* out) {
        const std::int64_t size = args.group, count = held(size);
        float gathered[256];
        for (std::int64_t i = size; i < count; ++i) gathered[i] = 0;
        char* group = static_cast<char*>(out);
        for (std::int64_t first = begin / count * size; first < end / count * size; first += size) {
            for (int r = 0; r < rows; ++r) {
                const float* x = args.x + (row + r) * args.x_stride;
                const float* from = x + first;
                if (args.order != nullptr) {
                    for (std::int64_t i = 0; i < size; ++i) gathered[i] = x[args.order[first + i]];
                    from = gathered;
                } else if (size < count) {
                    for (std::int64_t i = 0; i < size; ++i) gathered[i] = from[i];
                    from = gathered;
                }
                std::int32_t total;
                const float scale = round_group(from, count, rows, group + r * 4, &total);
                std::memcpy(group + rows * count + r * 4, &scale, 4);
                std::memcpy(group + rows * (count + 4) + r * 4, &total, 4);
            }
            group += rows * (count + 8);
        }
    }

    // Values of 8 inputs: of the first 4 in `low`, of the others in `high`.
    HEADRACE_INLINE static Ints low(Ints bytes) { return both(bytes, all_ints(0x0f0f0f0f)); }
    HEADRACE_INLINE static Ints high(Ints bytes) { return both(upper_halves(bytes), all_ints(0x0f0f0f0f)); }

    // Not inlined: inside the loops around it g++ finds fewer registers (measured: 12 % slower at 64 rows).
    template <int ROWS, int PANELS>
    __attribute__((noinline)) static void tile(const LinearArgs& args, const void* packed, std::int64_t panel, std::int64_t begin,
                                     std::int64_t end, float* c, std::int64_t c_stride, bool first, Ahead ahead) {
        const std::int64_t count = held(args.group), bytes = group_bytes(args.group), stride = panel_bytes(args);
        const char* weight = static_cast<const char*>(args.weight) + panel * stride + begin / count * bytes;
        const std::int32_t* a = static_cast<const std::int32_t*>(packed);
        ahead = ahead.in_parts((end - begin) / 8 * PANELS);
        for (std::int64_t k = begin; k < end; k += count, weight += bytes, a += ROWS * (count / 4 + 2)) {
            const float* token_scales = reinterpret_cast<const float*>(a + ROWS * (count / 4));
            const std::int32_t* token_sums = a + ROWS * (count / 4 + 1);
            Ints exact[ROWS][PANELS][VECTORS];
            for (int p = 0; p < PANELS; ++p)
                for (int v = 0; v < VECTORS; ++v) {
                    const Ints zeros = widen_bytes(weight + p * stride + PANEL * 4 + v * LANES);
                    for (int r = 0; r < ROWS; ++r)
                        exact[r][p][v] = sub(no_ints(), times(zeros, all_ints(token_sums[r])));
                }
            for (std::int64_t unit = 0; unit < count; unit += UNIT) {
                const char* values = weight + HEAD + unit * PANEL / 2;
                const std::int32_t* x = a + ROWS * (unit / 4);
#if HAS_VNNI
                for (int step = 0; step < UNIT / 4; step += 2)
                    for (int p = 0; p < PANELS; ++p) {
                        const char* here = values + p * stride + step * PANEL * 2;
                        prefetch_weights<ROWS>(here, ahead);
                        const Ints w = load_ints(here), w0 = low(w), w1 = high(w);
                        for (int r = 0; r < ROWS; ++r) {
                            exact[r][p][0] = _mm512_dpbusd_epi32(exact[r][p][0], w0, all_ints(x[step * ROWS + r]));
                            exact[r][p][0] = _mm512_dpbusd_epi32(exact[r][p][0], w1, all_ints(x[(step + 1) * ROWS + r]));
                        }
                    }
#else
                Ints pairs[ROWS][PANELS][VECTORS];
#pragma GCC unroll 8
                for (int step = 0; step < UNIT / 4; ++step)
                    for (int p = 0; p < PANELS; ++p) {
                        const char* here = values + p * stride + step / 2 * PANEL * 4;
                        if (step % 2 == 0) prefetch_weights<ROWS>(here, ahead);
                        Ints w[VECTORS];
                        for (int v = 0; v < VECTORS; ++v) {
                            w[v] = load_ints(here + v * LANES * 4);
                            w[v] = step % 2 ? high(w[v]) : low(w[v]);
                        }
                        for (int r = 0; r < ROWS; ++r) {
                            const Ints token = all_ints(x[step * ROWS + r]);
                            for (int v = 0; v < VECTORS; ++v) {
                                const Ints product = madd8(w[v], token);
                                pairs[r][p][v] = step == 0 ? product : add_pairs(pairs[r][p][v], product);
                                in_this_order(pairs[r][p][v]);
                            }
                        }
                    }
                for (int r = 0; r < ROWS; ++r)
                    for (int p = 0; p < PANELS; ++p)
                        for (int v = 0; v < VECTORS; ++v)
                            exact[r][p][v] = add(exact[r][p][v], madd16(pairs[r][p][v], all_ints(0x00010001)));
#endif
            }
            const bool starts = first && k == begin;
            for (int p = 0; p < PANELS; ++p)
                for (int v = 0; v < VECTORS; ++v) {
                    const Vec scales = load(reinterpret_cast<const float*>(weight + p * stride) + v * LANES);
                    for (int r = 0; r < ROWS; ++r) {
                        float* to = c + p * c_stride + r * PANEL + v * LANES;
                        const Vec value = mul(to_floats(exact[r][p][v]), mul(scales, all(token_scales[r])));
                        store(to, starts ? value : add(load(to), value));
                    }
                }
        }
    }

    static void pack(const LinearArgs& args, const PackSource& source, std::int64_t panel, char* out) {
        const std::int64_t groups = args.inputs / args.group, bytes = group_bytes(args.group);
        for (int lane = 0; lane < PANEL; ++lane) {
            const std::int64_t row = panel * PANEL + lane;
            if (row >= source.rows) break;
            const std::uint8_t* values = static_cast<const std::uint8_t*>(source.values) + row * args.inputs;
            for (std::int64_t g = 0; g < groups; ++g) {
                char* group = out + g * bytes;
                std::memcpy(group + lane * 4, source.scales + row * groups + g, 4);
                group[PANEL * 4 + lane] = static_cast<char>(source.zeros[row * groups + g]);
                for (std::int64_t i = 0; i < args.group; ++i) {
                    const Place at = place(i, lane);
                    group[at.byte] = static_cast<char>(group[at.byte] | values[g * args.group + i] << at.shift);
                }
            }
        }
    }

    static void unpack(const LinearArgs& args, const char* panel, int lane, float* out) {
        const std::int64_t bytes = group_bytes(args.group);
        for (std::int64_t k = 0; k < args.inputs; ++k) {
            const char* group = panel + k / args.group * bytes;
            const Place at = place(k % args.group, lane);
            float scale;
            std::memcpy(&scale, group + lane * 4, 4);
            const int value = (static_cast<unsigned char>(group[at.byte]) >> at.shift & 15) - group[PANEL * 4 + lane];
            out[args.order == nullptr ? k : args.order[k]] = scale * static_cast<float>(value);
        }
    }

   private:
#if LANES_ARE_16
    HEADRACE_INLINE static Ints widen_bytes(const char* p) {
        return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    HEADRACE_INLINE static Ints times(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
#else
    HEADRACE_INLINE static Ints widen_bytes(const char* p) {
        return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }
    HEADRACE_INLINE static Ints times(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
#endif
};

}  // namespace headrace::HEADRACE_ISA
