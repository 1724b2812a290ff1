// Vectors of int32 for the integer formats: `Ints` has LANES of them.
#pragma once

#include "simd.hpp"

namespace headrace::HEADRACE_ISA {

#if defined(HEADRACE_ISA_avx512_bf16)
#define HAS_VNNI 1
#else
#define HAS_VNNI 0
#endif

#if LANES_ARE_16
using Ints = __m512i;
HEADRACE_INLINE Ints no_ints() { return _mm512_setzero_si512(); }
HEADRACE_INLINE Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
HEADRACE_INLINE void store_ints(void* p, Ints v) { _mm512_storeu_si512(p, v); }
HEADRACE_INLINE Ints all_ints(std::int32_t x) { return _mm512_set1_epi32(x); }
HEADRACE_INLINE Vec to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
HEADRACE_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
HEADRACE_INLINE Ints sub(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
HEADRACE_INLINE Ints add_pairs(Ints a, Ints b) { return _mm512_add_epi16(a, b); }
HEADRACE_INLINE Ints both(Ints a, Ints mask) { return _mm512_and_si512(a, mask); }
HEADRACE_INLINE Ints upper_halves(Ints bytes) { return _mm512_srli_epi16(bytes, 4); }  // neighbours' bits come along: mask
HEADRACE_INLINE Ints madd16(Ints a, Ints b) { return _mm512_madd_epi16(a, b); }
HEADRACE_INLINE Ints madd8(Ints u8, Ints s8) { return _mm512_maddubs_epi16(u8, s8); }
#else
using Ints = __m256i;
HEADRACE_INLINE Ints no_ints() { return _mm256_setzero_si256(); }
HEADRACE_INLINE Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
HEADRACE_INLINE void store_ints(void* p, Ints v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
HEADRACE_INLINE Ints all_ints(std::int32_t x) { return _mm256_set1_epi32(x); }
HEADRACE_INLINE Vec to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
HEADRACE_INLINE Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
HEADRACE_INLINE Ints sub(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
HEADRACE_INLINE Ints add_pairs(Ints a, Ints b) { return _mm256_add_epi16(a, b); }
HEADRACE_INLINE Ints both(Ints a, Ints mask) { return _mm256_and_si256(a, mask); }
HEADRACE_INLINE Ints upper_halves(Ints bytes) { return _mm256_srli_epi16(bytes, 4); }  // neighbours' bits come along: mask
HEADRACE_INLINE Ints madd16(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }
HEADRACE_INLINE Ints madd8(Ints u8, Ints s8) { return _mm256_maddubs_epi16(u8, s8); }
#endif
// Sums up to here are done.  Without it g++ adds products to each other first, and the sums no longer fit the registers.
HEADRACE_INLINE void in_this_order([[maybe_unused]] Ints& v) {
#ifndef HEADRACE_EMULATE
    __asm__("" : "+v"(v));
#endif
}

}  // namespace headrace::HEADRACE_ISA
