#include "sample.hpp"

#include "kv_lanes.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

// Sums in fp64, lane by lane.
#if defined(HEADRACE_ISA_avx512) || defined(HEADRACE_ISA_avx512_bf16)
using Mask = std::uint32_t;
struct Wide {
    __m512d low, high;
};
HEADRACE_INLINE Wide wide_zero() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
HEADRACE_INLINE void add_to(Wide& sum, Vec x) {
    sum.low = _mm512_add_pd(sum.low, _mm512_cvtps_pd(_mm512_castps512_ps256(x)));
    sum.high = _mm512_add_pd(sum.high, _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1)));
}
HEADRACE_INLINE double total_of(const Wide& sum) {
    double lane[16];
    _mm512_storeu_pd(lane, sum.low);
    _mm512_storeu_pd(lane + 8, sum.high);
    double total = 0;
    for (double each : lane) total += each;
    return total;
}
HEADRACE_INLINE Mask at_least(Vec x, Vec y) { return _mm512_cmp_ps_mask(x, y, _CMP_GE_OQ); }
HEADRACE_INLINE Mask above(Vec x, Vec y) { return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ); }
HEADRACE_INLINE Vec kept_where(Vec x, Mask mask) { return _mm512_maskz_mov_ps(static_cast<__mmask16>(mask), x); }
#else
using Mask = std::uint32_t;
struct Wide {
    __m256d low, high;
};
HEADRACE_INLINE Wide wide_zero() { return {_mm256_setzero_pd(), _mm256_setzero_pd()}; }
HEADRACE_INLINE void add_to(Wide& sum, Vec x) {
    sum.low = _mm256_add_pd(sum.low, _mm256_cvtps_pd(_mm256_castps256_ps128(x)));
    sum.high = _mm256_add_pd(sum.high, _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)));
}
HEADRACE_INLINE double total_of(const Wide& sum) {
    double lane[8];
    _mm256_storeu_pd(lane, sum.low);
    _mm256_storeu_pd(lane + 4, sum.high);
    double total = 0;
    for (double each : lane) total += each;
    return total;
}
HEADRACE_INLINE Mask at_least(Vec x, Vec y) {
    return static_cast<Mask>(_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_GE_OQ)));
}
HEADRACE_INLINE Mask above(Vec x, Vec y) {
    return static_cast<Mask>(_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_GT_OQ)));
}
#endif

constexpr float LOWEST = -3.0e38f;

HEADRACE_INLINE Vec read(const float* p, std::int64_t left) {
    return left >= LANES ? load(p) : keep_between(load_some(p, static_cast<int>(left)), 0, static_cast<int>(left), -__builtin_inff());
}

std::int64_t largest(const float* x, std::int64_t count) {
    Vec best[4];
    for (Vec& each : best) each = all(-__builtin_inff());
    std::int64_t i = 0;
    for (; i + 4 * LANES <= count; i += 4 * LANES)
        for (int j = 0; j < 4; ++j) best[j] = max(load(x + i + j * LANES), best[j]);
    for (; i < count; i += LANES) best[0] = max(read(x + i, count - i), best[0]);
    const float most = max_in(max(max(best[0], best[1]), max(best[2], best[3])));
    for (i = 0; i < count; i += LANES) {
        const Mask found = at_least(read(x + i, count - i), all(most));
        if (found == 0) continue;
        const std::int64_t index = i + __builtin_ctz(found);
        return index < count ? index : 0;
    }
    return 0;
}

// e^x for x <= 0; nothing below e^-87.
HEADRACE_INLINE Vec weight_of(Vec x) {
    const Vec w = HEADRACE_ISA::exp(x);
#if defined(HEADRACE_ISA_avx512) || defined(HEADRACE_ISA_avx512_bf16)
    return kept_where(w, at_least(x, all(-87.0f)));
#else
    return _mm256_and_ps(w, _mm256_cmp_ps(x, all(-87.0f), _CMP_GE_OQ));
#endif
}

double sum_exp(const float* x, std::int64_t count, float most) {
    Wide sum = wide_zero();
    for (std::int64_t i = 0; i < count; i += LANES) add_to(sum, weight_of(sub(read(x + i, count - i), all(most))));
    return total_of(sum);
}

std::int64_t count_above(const float* x, std::int64_t count, float value) {
    std::int64_t found = 0;
    for (std::int64_t i = 0; i < count; i += LANES)
        found += __builtin_popcount(above(read(x + i, count - i), all(value)));
    return found;
}

void weigh(const float* x, std::int64_t count, float most, float temperature, float* weights, double* sums) {
    for (std::int64_t begin = 0; begin < count; begin += SUM_BLOCK) {
        const std::int64_t end = count < begin + SUM_BLOCK ? count : begin + SUM_BLOCK;
        Wide sum = wide_zero();
        for (std::int64_t i = begin; i < end; i += LANES) {
            const Vec w = weight_of(div(sub(read(x + i, end - i), all(most)), all(temperature)));
            store(weights + i, w);  // the buffer is padded to whole vectors
            add_to(sum, w);
        }
        sums[begin / SUM_BLOCK] = total_of(sum);
    }
}

void survey(const float* x, const float* weights, std::int64_t count, float most, float temperature, const float* cuts,
            std::int64_t* counts, double* masses) {
    (void)weights;
    for (int c = 0; c < CUTS; ++c) {
        counts[c] = 0;
        masses[c] = 0;
    }
    for (std::int64_t begin = 0; begin < count; begin += SUM_BLOCK) {
        const std::int64_t end = count < begin + SUM_BLOCK ? count : begin + SUM_BLOCK;
        Vec sum[CUTS];
        for (Vec& each : sum) each = zero();
        for (std::int64_t i = begin; i < end; i += LANES) {
            const Vec s = div(sub(read(x + i, end - i), all(most)), all(temperature));
            const Vec w = load(weights + i);
            for (int c = 0; c < CUTS; ++c) {
#if defined(HEADRACE_ISA_avx512) || defined(HEADRACE_ISA_avx512_bf16)
                const Mask in = at_least(s, all(cuts[c]));
                counts[c] += __builtin_popcount(in);
                sum[c] = add(sum[c], kept_where(w, in));
#else
                const Vec in = _mm256_cmp_ps(s, all(cuts[c]), _CMP_GE_OQ);
                counts[c] += __builtin_popcount(static_cast<unsigned>(_mm256_movemask_ps(in)));
                sum[c] = add(sum[c], _mm256_and_ps(w, in));
#endif
            }
        }
        for (int c = 0; c < CUTS; ++c) masses[c] += sum_of(sum[c]);
    }
}

std::int64_t gather(const float* x, const float* weights, std::int64_t count, float most, float temperature, float cut,
                    float* scaled, float* kept, std::int32_t* ids) {
    std::int64_t found = 0;
    // What is clearly below needs no division: the quotient is rounded, so the border is left some room.
    const Vec border = all(most + cut * temperature * (1.0f + 1e-5f) - (most < 0 ? -most : most) * 1e-6f - 1e-30f);
    for (std::int64_t i = 0; i < count; i += LANES) {
        const Vec raw = read(x + i, count - i);
        if (at_least(raw, border) == 0) continue;
        const Vec s = div(sub(raw, all(most)), all(temperature));
        float lane[LANES];
        store(lane, s);
        for (Mask in = at_least(s, all(cut)); in != 0; in &= in - 1) {
            const int j = __builtin_ctz(in);
            if (i + j >= count) break;
            scaled[found] = lane[j];
            kept[found] = weights[i + j];
            ids[found] = static_cast<std::int32_t>(i + j);
            ++found;
        }
    }
    return found;
}

void mask(float* x, std::int64_t count, const std::uint8_t* bits) {
    for (std::int64_t i = 0; i < count; ++i)
        if (!(bits[i / 8] >> (i % 8) & 1)) x[i] = -__builtin_inff();
}

}  // namespace

extern const SampleKernels sample_kernels;
const SampleKernels sample_kernels = {largest, sum_exp, count_above, weigh, survey, gather, mask};

}  // namespace headrace::HEADRACE_ISA
