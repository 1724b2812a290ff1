#include "probe.hpp"
#include "simd.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int CHAINS = 10;  // latency 4 or 5, two a cycle

double fp32(std::int64_t rounds, float* sink) {
    Vec chain[CHAINS];
    for (int i = 0; i < CHAINS; ++i) chain[i] = all(0.5f + i);
    const Vec a = all(0.999f), b = all(0.001f);
    for (std::int64_t round = 0; round < rounds; ++round)
        for (int i = 0; i < CHAINS; ++i) chain[i] = headrace::HEADRACE_ISA::fma(chain[i], a, b);
    for (int i = 0; i < CHAINS; ++i) *sink += sum_of(chain[i]);
    return 2.0 * LANES * CHAINS * static_cast<double>(rounds);
}

#if defined(HEADRACE_ISA_avx512_bf16)

double bf16(std::int64_t rounds, float* sink) {
    Vec chain[CHAINS];
    for (int i = 0; i < CHAINS; ++i) chain[i] = all(0.5f + i);
    const __m512bh a = (__m512bh)_mm512_set1_epi32(0x3f803c00), b = (__m512bh)_mm512_set1_epi32(0x3c003f00);
    for (std::int64_t round = 0; round < rounds; ++round)
        for (int i = 0; i < CHAINS; ++i) chain[i] = _mm512_dpbf16_ps(chain[i], a, b);
    for (int i = 0; i < CHAINS; ++i) *sink += sum_of(chain[i]);
    return 4.0 * LANES * CHAINS * static_cast<double>(rounds);
}

double int8(std::int64_t rounds, float* sink) {
    __m512i chain[CHAINS];
    for (int i = 0; i < CHAINS; ++i) chain[i] = _mm512_set1_epi32(i);
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(-1);
    for (std::int64_t round = 0; round < rounds; ++round)
        for (int i = 0; i < CHAINS; ++i) chain[i] = _mm512_dpbusd_epi32(chain[i], a, b);
    for (int i = 0; i < CHAINS; ++i) *sink += static_cast<float>(_mm512_reduce_add_epi32(chain[i]));
    return 8.0 * LANES * CHAINS * static_cast<double>(rounds);
}

double int4(std::int64_t rounds, float* sink) { return int8(rounds, sink); }

#else

double bf16(std::int64_t rounds, float* sink) { return fp32(rounds, sink); }

// Products of int16 pairs (vpmaddwd) and a sum: what an exact int8 product takes without VNNI.  In assembly, because a
// compiler computes the product, which is the same each time, only once.  Sums go in and out by value: one that an
// assembler operand refers to in an array stays in memory, and then its loads and stores are what is measured.
#if defined(HEADRACE_ISA_avx512)
using Ints = __m512i;
HEADRACE_INLINE Ints ints(int x) { return _mm512_set1_epi32(x); }
HEADRACE_INLINE int lane(Ints v) { return _mm_cvtsi128_si32(_mm512_castsi512_si128(v)); }
#else
using Ints = __m256i;
HEADRACE_INLINE Ints ints(int x) { return _mm256_set1_epi32(x); }
HEADRACE_INLINE int lane(Ints v) { return _mm_cvtsi128_si32(_mm256_castsi256_si128(v)); }
#endif
HEADRACE_INLINE Ints multiply_add(Ints sum, Ints a, Ints b) {
#ifdef HEADRACE_EMULATE
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#else
    Ints product;
    __asm__ volatile("vpmaddwd %2, %3, %0\n\tvpaddd %0, %1, %1" : "=&v"(product), "+v"(sum) : "v"(a), "v"(b));
    return sum;
#endif
}
// Pairs of bytes summed in int16: what an int4 product takes, but for widening the sums and unpacking the weights.
HEADRACE_INLINE Ints multiply_add_bytes(Ints sum, Ints a, Ints b) {
#ifdef HEADRACE_EMULATE
    return _mm512_add_epi16(sum, _mm512_maddubs_epi16(a, b));
#else
    Ints product;
    __asm__ volatile("vpmaddubsw %2, %3, %0\n\tvpaddw %0, %1, %1" : "=&v"(product), "+v"(sum) : "v"(a), "v"(b));
    return sum;
#endif
}

template <class Step>
HEADRACE_INLINE void chains(std::int64_t rounds, float* sink, const Step& step) {
    Ints chain[CHAINS];
    for (int i = 0; i < CHAINS; ++i) chain[i] = ints(i);
    const Ints a = ints(0x00030005), b = ints(0x0001fffe);
    for (std::int64_t round = 0; round < rounds; ++round)
        for (int i = 0; i < CHAINS; ++i) chain[i] = step(chain[i], a, b);
    for (int i = 0; i < CHAINS; ++i) *sink += static_cast<float>(lane(chain[i]));
}

double int8(std::int64_t rounds, float* sink) {
    chains(rounds, sink, [](Ints sum, Ints a, Ints b) { return multiply_add(sum, a, b); });
    return 4.0 * LANES * CHAINS * static_cast<double>(rounds);
}

double int4(std::int64_t rounds, float* sink) {
    chains(rounds, sink, [](Ints sum, Ints a, Ints b) { return multiply_add_bytes(sum, a, b); });
    return 8.0 * LANES * CHAINS * static_cast<double>(rounds);
}

#endif

void read(const void* data, std::int64_t bytes, float* sink) {
    const float* values = static_cast<const float*>(data);
    Vec sums[8];
    for (auto& sum : sums) sum = zero();
    for (std::int64_t i = 0; i < bytes / 4; i += 8 * LANES)
        for (int j = 0; j < 8; ++j) sums[j] = add(sums[j], load(values + i + j * LANES));
    for (auto& sum : sums) *sink += sum_of(sum);
}

}  // namespace

extern const ProbeKernels probe_kernels;
const ProbeKernels probe_kernels = {fp32, bf16, int8, int4, read};

}  // namespace headrace::HEADRACE_ISA
