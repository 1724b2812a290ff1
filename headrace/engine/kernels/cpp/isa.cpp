#include "headrace.hpp"

#include <cpuid.h>

#include <atomic>
#include <stdexcept>
#include <string>

namespace headrace {
namespace {

// Extended control register 0: what the operating system saves when it switches threads.
std::uint64_t enabled_state() {
    std::uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<std::uint64_t>(high) << 32 | low;
}

Isa detect() {
#ifdef HEADRACE_EMULATE
    return Isa::avx512_bf16;
#endif
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::none;
    const bool has_fma = c >> 12 & 1, has_xsave = c >> 27 & 1, has_avx = c >> 28 & 1, has_f16c = c >> 29 & 1;
    if (!has_fma || !has_xsave || !has_avx || !has_f16c) return Isa::none;
    const std::uint64_t state = enabled_state();
    if ((state & 0x6) != 0x6) return Isa::none;  // xmm, ymm
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Isa::none;
    const bool has_avx2 = b >> 5 & 1, has_bmi = (b >> 3 & 1) && (b >> 8 & 1);
    if (!has_avx2 || !has_bmi) return Isa::none;
    const bool has_512 = (b >> 16 & 1) && (b >> 17 & 1) && (b >> 30 & 1) && (b >> 31 & 1);  // F, DQ, BW, VL
    if (!has_512 || (state & 0xe6) != 0xe6) return Isa::avx2;                               // opmask, zmm
    const bool has_vnni = c >> 11 & 1;
    if (!has_vnni || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return Isa::avx512;
    return a >> 5 & 1 ? Isa::avx512_bf16 : Isa::avx512;
}

std::atomic<int> in_use{-1};

}  // namespace

Isa best_isa() {
    static const Isa found = detect();
    return found;
}

Isa isa() {
    const int value = in_use.load(std::memory_order_relaxed);
    return value < 0 ? best_isa() : static_cast<Isa>(value);
}

void use_isa(Isa wanted) {
    if (wanted == Isa::none || wanted > best_isa())
        throw std::invalid_argument(std::string("this processor runs ") + name_of(best_isa()) + " at best, not " +
                                    name_of(wanted));
    in_use.store(static_cast<int>(wanted), std::memory_order_relaxed);
}

const char* name_of(Isa isa) {
    switch (isa) {
        case Isa::avx512_bf16: return "avx512_bf16";
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        default: return "none";
    }
}

}  // namespace headrace
