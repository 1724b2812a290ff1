// AVX-512 on a processor without it, for tests: SIMDe, and the intrinsics that SIMDe 0.7.4 lacks and the kernels use.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cstdint>
#include <cstring>

namespace headrace::emulated {

template <class To, class From>
inline To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

struct Floats { float at[16]; };
struct Ints { std::int32_t at[16]; };

template <class Lane>  // signed char or unsigned short, 16 of them
inline simde__m512i widen(const void* from) {
    Lane narrow[16];
    std::memcpy(narrow, from, sizeof(narrow));
    Ints wide;
    for (int i = 0; i < 16; ++i) wide.at[i] = narrow[i];
    return bits<simde__m512i>(wide);
}
inline simde__m512i cvtepi8_epi32(simde__m128i v) { return widen<std::int8_t>(&v); }
inline simde__m512i cvtepu16_epi32(simde__m256i v) { return widen<std::uint16_t>(&v); }
inline simde__m256i cvtepi32_epi16(simde__m512i v) {
    const Ints wide = bits<Ints>(v);
    std::int16_t narrow[16];
    for (int i = 0; i < 16; ++i) narrow[i] = static_cast<std::int16_t>(wide.at[i]);  // the lower half, as vpmovdw
    simde__m256i out;
    std::memcpy(&out, narrow, sizeof(out));
    return out;
}

inline simde__m512 cvtepi32_ps(simde__m512i v) {
    const Ints from = bits<Ints>(v);
    Floats to;
    for (int i = 0; i < 16; ++i) to.at[i] = static_cast<float>(from.at[i]);
    return bits<simde__m512>(to);
}
inline simde__m512i cvtps_epi32(simde__m512 v) {  // to nearest, ties to even
    struct { simde__m256 half[2]; } from = bits<decltype(from)>(v);
    struct { simde__m256i half[2]; } to;
    for (int i = 0; i < 2; ++i) to.half[i] = _mm256_cvtps_epi32(from.half[i]);
    return bits<simde__m512i>(to);
}
inline simde__m512d cvtps_pd(simde__m256 v) {
    float from[8];
    double to[8];
    std::memcpy(from, &v, sizeof(from));
    for (int i = 0; i < 8; ++i) to[i] = from[i];
    simde__m512d out;
    std::memcpy(&out, to, sizeof(out));
    return out;
}
inline simde__m256 extractf32x8_ps(simde__m512 v, int which) {
    struct { simde__m256 half[2]; } from = bits<decltype(from)>(v);
    return from.half[which];
}

// Lanes that are not chosen are not touched: they may lie behind the end of the memory.
inline simde__m512 maskz_loadu_ps(unsigned mask, const void* p) {
    Floats to = {};
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) to.at[i] = static_cast<const float*>(p)[i];
    return bits<simde__m512>(to);
}
inline void mask_storeu_ps(void* p, unsigned mask, simde__m512 v) {
    const Floats from = bits<Floats>(v);
    for (int i = 0; i < 16; ++i)
        if (mask >> i & 1) static_cast<float*>(p)[i] = from.at[i];
}

inline float reduce_max_ps(simde__m512 v) {
    const Floats from = bits<Floats>(v);
    float most = from.at[0];
    for (int i = 1; i < 16; ++i) most = from.at[i] > most ? from.at[i] : most;
    return most;
}
inline std::int32_t reduce_add_epi32(simde__m512i v) {
    const Ints from = bits<Ints>(v);
    std::uint32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += static_cast<std::uint32_t>(from.at[i]);
    return static_cast<std::int32_t>(sum);
}

}  // namespace headrace::emulated

#undef _mm512_madd_epi16  // SIMDe's alias wants four arguments
#define _mm512_madd_epi16 simde_mm512_madd_epi16
#define _mm512_cvtepi8_epi32 headrace::emulated::cvtepi8_epi32
#define _mm512_cvtepu16_epi32 headrace::emulated::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 headrace::emulated::cvtepi32_epi16
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps headrace::emulated::cvtepi32_ps
#define _mm512_cvtps_epi32 headrace::emulated::cvtps_epi32
#define _mm512_cvtps_pd headrace::emulated::cvtps_pd
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps headrace::emulated::extractf32x8_ps
#define _mm512_maskz_loadu_ps headrace::emulated::maskz_loadu_ps
#define _mm512_mask_storeu_ps headrace::emulated::mask_storeu_ps
#define _mm512_reduce_max_ps headrace::emulated::reduce_max_ps
#define _mm512_reduce_add_epi32 headrace::emulated::reduce_add_epi32
