// Vectors of fp32 for sources that are compiled once per instruction set: `Vec` has `LANES` floats (8 or 16).
//
// With HEADRACE_EMULATE the AVX-512 sources are compiled over SIMDe, which runs their intrinsics on any processor: that is
// how they are tested where there is no AVX-512 (tests/engine/kernels/test_emulated.py).
#pragma once

#ifdef HEADRACE_EMULATE
#include "emulate.hpp"
#else
#include <immintrin.h>
#endif

#include "headrace.hpp"

namespace headrace::HEADRACE_ISA {

#if defined(HEADRACE_ISA_avx512) || defined(HEADRACE_ISA_avx512_bf16)

#define LANES_ARE_16 1
constexpr int LANES = 16;
using Vec = __m512;

HEADRACE_INLINE Vec zero() { return _mm512_setzero_ps(); }
HEADRACE_INLINE Vec all(float x) { return _mm512_set1_ps(x); }
HEADRACE_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
HEADRACE_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
HEADRACE_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
// The first n lanes (0 to LANES); the others read as 0 and are not written.
HEADRACE_INLINE Vec load_some(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
HEADRACE_INLINE void store_some(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
HEADRACE_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
HEADRACE_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
HEADRACE_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
HEADRACE_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
HEADRACE_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
HEADRACE_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
HEADRACE_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
HEADRACE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }    // a * b + c
HEADRACE_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
HEADRACE_INLINE Vec round(Vec a) { return _mm512_roundscale_ps(a, 8); }              // to nearest, ties to even
HEADRACE_INLINE Vec pow2(Vec n) {  // 2^n for whole n in [-126, 127]
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
// LANES bf16 <-> fp32, rounding to nearest even.  NaN stays NaN.
HEADRACE_INLINE Vec load(const Bf16* p) {
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
}
HEADRACE_INLINE __m256i narrow(Vec v) {
    const __m512i word = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(word, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(word, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
HEADRACE_INLINE void store(Bf16* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }

#else  // AVX2 and FMA: the floor

#define LANES_ARE_16 0
constexpr int LANES = 8;
using Vec = __m256;

HEADRACE_INLINE Vec zero() { return _mm256_setzero_ps(); }
HEADRACE_INLINE Vec all(float x) { return _mm256_set1_ps(x); }
HEADRACE_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
HEADRACE_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
HEADRACE_INLINE __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first n lanes (0 to LANES); the others read as 0 and are not written.
HEADRACE_INLINE Vec load_some(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
HEADRACE_INLINE void store_some(float* p, Vec v, int n) { _mm256_maskstore_ps(p, first(n), v); }
HEADRACE_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
HEADRACE_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
HEADRACE_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
HEADRACE_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
HEADRACE_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
HEADRACE_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
HEADRACE_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
HEADRACE_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }    // a * b + c
HEADRACE_INLINE Vec fnma(Vec a, Vec b, Vec c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
HEADRACE_INLINE Vec round(Vec a) { return _mm256_round_ps(a, 8); }                   // to nearest, ties to even
HEADRACE_INLINE Vec pow2(Vec n) {  // 2^n for whole n in [-126, 127]
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
// LANES bf16 <-> fp32, rounding to nearest even.  NaN stays NaN.
HEADRACE_INLINE Vec load(const Bf16* p) {
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16));
}
HEADRACE_INLINE __m128i narrow(Vec v) {
    const __m256i word = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(word, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}
HEADRACE_INLINE void store(Bf16* p, Vec v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(v)); }

#endif

HEADRACE_INLINE Vec load_some(const Bf16* p, int n) {
    Bf16 all_lanes[LANES] = {};
    for (int i = 0; i < n; ++i) all_lanes[i] = p[i];
    return load(all_lanes);
}
HEADRACE_INLINE void store_some(Bf16* p, Vec v, int n) {
    Bf16 all_lanes[LANES];
    store(all_lanes, v);
    for (int i = 0; i < n; ++i) p[i] = all_lanes[i];
}

// Sum and largest of all lanes, always paired in the same way.
HEADRACE_INLINE float sum_of(Vec v) {
    float lane[LANES];
    store(lane, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}
HEADRACE_INLINE float max_of(Vec v) {
    float lane[LANES];
    store(lane, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] = lane[i] > lane[i + half] ? lane[i] : lane[i + half];
    return lane[0];
}

// e^x to about 1 ulp for x in [-87, 88]; less gives at most e^-87 (never a denormal), more gives e^88.
// x = n ln 2 + r, |r| <= ln 2 / 2; the polynomial is a minimax fit of degree 6 (Cephes' expf, Moshier).
HEADRACE_INLINE Vec exp(Vec x) {
    x = max(min(x, all(88.0f)), all(-87.0f));
    const Vec n = round(mul(x, all(1.44269504088896341f)));
    Vec r = fnma(n, all(0.693359375f), x);
    r = fnma(n, all(-2.12194440e-4f), r);
    Vec p = all(1.9875691500e-4f);
    p = fma(p, r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), all(1.0f));
    return mul(p, pow2(n));
}

// x * sigmoid(x)
HEADRACE_INLINE Vec silu(Vec x) { return div(x, add(all(1.0f), exp(sub(zero(), x)))); }

}  // namespace headrace::HEADRACE_ISA
