// Sixteen neighbours of a KV cache as fp32 vectors, whatever they are kept in.  For sources that include simd.hpp.
#pragma once

#include "simd.hpp"

namespace headrace::HEADRACE_ISA {

constexpr int VECS = 16 / LANES;

#if defined(HEADRACE_ISA_avx512) || defined(HEADRACE_ISA_avx512_bf16)
HEADRACE_INLINE float max_in(Vec v) { return _mm512_reduce_max_ps(v); }
// The size of `x` (not negative) with the sign of `y`.
HEADRACE_INLINE Vec with_sign(Vec x, Vec y) {
    const __m512i bit = _mm512_set1_epi32(static_cast<int>(0x80000000u));
    return _mm512_castsi512_ps(
        _mm512_or_si512(_mm512_castps_si512(x), _mm512_and_si512(_mm512_castps_si512(y), bit)));
}
// Lanes low <= lane < high stay, the others become `value`.
HEADRACE_INLINE Vec keep_between(Vec x, int low, int high, float value) {
    low = low < 0 ? 0 : low > 16 ? 16 : low;
    high = high < low ? low : high > 16 ? 16 : high;
    const __mmask16 kept = static_cast<__mmask16>(((1u << high) - 1u) & ~((1u << low) - 1u));
    return _mm512_mask_mov_ps(_mm512_set1_ps(value), kept, x);
}
#else
HEADRACE_INLINE float max_in(Vec v) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
HEADRACE_INLINE Vec with_sign(Vec x, Vec y) { return _mm256_or_ps(x, _mm256_and_ps(y, _mm256_set1_ps(-0.0f))); }
HEADRACE_INLINE Vec keep_between(Vec x, int low, int high, float value) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i early = _mm256_cmpgt_epi32(_mm256_set1_epi32(low), lane);
    const __m256i inside = _mm256_andnot_si256(early, _mm256_cmpgt_epi32(_mm256_set1_epi32(high), lane));
    return _mm256_blendv_ps(_mm256_set1_ps(value), x, _mm256_castsi256_ps(inside));
}
#endif

// In an order of the kind's own, the same for all of a kind; `store` puts them back into theirs.
template <class T>
struct Lanes16 {
    Vec v[VECS];
};

HEADRACE_INLINE Lanes16<float> load16(const float* p) {
    Lanes16<float> r;
    for (int i = 0; i < VECS; ++i) r.v[i] = load(p + i * LANES);
    return r;
}
HEADRACE_INLINE void store16(float* p, const Lanes16<float>& x) {
    for (int i = 0; i < VECS; ++i) store(p + i * LANES, x.v[i]);
}

#if defined(HEADRACE_ISA_avx512) || defined(HEADRACE_ISA_avx512_bf16)

HEADRACE_INLINE Lanes16<Bf16> load16(const Bf16* p) { return {{load(p)}}; }
HEADRACE_INLINE Lanes16<std::int8_t> load16(const std::int8_t* p) {
    return {{_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))}};
}
HEADRACE_INLINE void store16(float* p, const Lanes16<Bf16>& x) { store(p, x.v[0]); }
HEADRACE_INLINE void store16(float* p, const Lanes16<std::int8_t>& x) { store(p, x.v[0]); }

#else

// One load, a shift and a mask make sixteen numbers of sixteen bf16: even ones, then odd ones.
HEADRACE_INLINE Lanes16<Bf16> load16(const Bf16* p) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)),
             _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))))}};
}
HEADRACE_INLINE void store16(float* p, const Lanes16<Bf16>& x) {
    const Vec low = _mm256_unpacklo_ps(x.v[0], x.v[1]), high = _mm256_unpackhi_ps(x.v[0], x.v[1]);
    store(p, _mm256_permute2f128_ps(low, high, 0x20));
    store(p + 8, _mm256_permute2f128_ps(low, high, 0x31));
}
HEADRACE_INLINE Vec from_int8(const std::int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
HEADRACE_INLINE Lanes16<std::int8_t> load16(const std::int8_t* p) { return {{from_int8(p), from_int8(p + 8)}}; }
HEADRACE_INLINE void store16(float* p, const Lanes16<std::int8_t>& x) {
    store(p, x.v[0]);
    store(p + 8, x.v[1]);
}

#endif

}  // namespace headrace::HEADRACE_ISA
