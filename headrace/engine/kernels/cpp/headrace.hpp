// What every native kernel of headrace is written against.
//
// PLACE.  A family of kernels is three files and one line in each of two lists:
//   foo.hpp       `struct FooKernels { ... function pointers ... };`, plain arguments: pointers, sizes, strides
//   foo_isa.cpp   the code, compiled once per instruction set (list `kernel_sources` in CMakeLists.txt).  It includes
//                 simd.hpp, puts everything into `namespace headrace::HEADRACE_ISA` and ends with
//                     const FooKernels foo_kernels = {...};
//   foo.cpp       `HEADRACE_DISPATCH(FooKernels, foo_kernels)` defines `const FooKernels& foo_kernels()`, the table of the
//                 instruction set in use; then work splitting over threads, argument checks and
//                 `void bind_foo(nanobind::module_&)`, which module.cpp calls
// and a Python file beside them, with the torch twin that tests compare and that runs where the extension is missing.
// Only baseline code may be in foo.cpp and in headers: a function that the linker finds in several translation units is
// kept once, and it must not be the copy that was compiled for AVX-512.  So in foo_isa.cpp: no std:: templates, no inline
// functions outside `namespace headrace::HEADRACE_ISA` (or an anonymous one) but the ones of this header, which are
// HEADRACE_INLINE (always inlined, never emitted).
//
// ARGUMENTS.  Bindings take `tensor.data_ptr()` as integers (`Address`, see `at<T>(address)`) and sizes; no torch headers, so
// one build serves every torch.  They release the GIL (`nb::call_guard<nb::gil_scoped_release>()`).  Callers keep tensors
// alive and contiguous; every binding says which shapes it reads and writes.  Hidden states are fp32 between kernels whatever the
// weights' type: rounding them costs accuracy and saves nothing (they stay in the caches).  bf16 is `Bf16`, a struct
// around the upper 16 bits of an fp32; K/V and weights are kept in it.
//
// THREADS.  `parallel(work)` calls work(thread, threads) once for each thread of the pool, thread 0 being the caller, and
// returns when all are done.  Splits are static, from (thread, threads) alone: `share(count, thread, threads, multiple)`.
// No atomic counters, no work stealing.  A result must not depend on the split: whoever computes an element adds it up in
// the same order.  While it waits the pool spins for SPIN_US and then sleeps on a futex, since a server's other threads
// want the cores.  Calls from several Python threads at once are served: the pool runs one, the others compute alone.
// `scratch(thread, bytes)` is a buffer of that thread that grows and stays: no allocation in a warm step.  Denormals are
// flushed inside `parallel`, in all threads alike.
//
// ORDER OF SUMMATION.  The rule of the house: an output element's sum runs in an order that depends on nothing but its own
// row: not on M, the batch, the chunking or the threads.  Vectorise over output columns, or over a fixed partition
// of the summed dimension, never over one that depends on how much there is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define HEADRACE_INLINE inline __attribute__((always_inline))
#define HEADRACE_RESTRICT __restrict__

namespace headrace {

using Address = std::uintptr_t;

template <class T>
HEADRACE_INLINE T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// -- bfloat16 -------------------------------------------------------------------------------------------------------------

struct Bf16 {
    std::uint16_t bits;
};

HEADRACE_INLINE float to_float(Bf16 value) {
    std::uint32_t word = static_cast<std::uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &word, 4);
    return result;
}

// Round to nearest, ties to even; NaN stays NaN.  The same as torch's conversion.
HEADRACE_INLINE Bf16 to_bf16(float value) {
    std::uint32_t word;
    std::memcpy(&word, &value, 4);
    if ((word & 0x7fffffffu) > 0x7f800000u) return Bf16{0x7fc0};
    return Bf16{static_cast<std::uint16_t>((word + 0x7fffu + ((word >> 16) & 1u)) >> 16)};
}

// -- instruction sets -----------------------------------------------------------------------------------------------------

enum class Isa : int { none = 0, avx2 = 1, avx512 = 2, avx512_bf16 = 3 };  // avx512_bf16 has VNNI as well

Isa best_isa();               // of this processor and operating system (CPUID and XCR0)
Isa isa();                    // in use: the best, unless `use_isa` has lowered it
void use_isa(Isa wanted);     // throws std::invalid_argument for one that cannot run here
const char* name_of(Isa isa);

}  // namespace headrace

// Defines `const Table& name()`, which returns the table `name` of the instruction set in use.
#define HEADRACE_DISPATCH(Table, name)                                        \
    namespace headrace {                                                      \
    namespace avx2 { extern const Table name; }                               \
    namespace avx512 { extern const Table name; }                             \
    namespace avx512_bf16 { extern const Table name; }                        \
    const Table& name() {                                                     \
        switch (isa()) {                                                      \
            case Isa::avx512_bf16: return avx512_bf16::name;                  \
            case Isa::avx512: return avx512::name;                            \
            default: return avx2::name;                                       \
        }                                                                     \
    }                                                                         \
    }

namespace headrace {

// -- the thread pool ------------------------------------------------------------------------------------------------------

constexpr int SPIN_US = 50;

int num_threads();
void set_num_threads(int count);  // 1 or more; waits for work in progress.  The caller counts as one of them.

// work(context, thread, threads) in every thread at once.  Prefer the template below.
void run_parallel(void (*work)(void*, int, int), void* context);

template <class Work>
inline void parallel(const Work& work) {
    run_parallel([](void* context, int thread, int threads) { (*static_cast<const Work*>(context))(thread, threads); },
                 const_cast<void*>(static_cast<const void*>(&work)));
}

// The same in the caller's thread alone, as thread 0 of 1: for work that is not worth waking others.
void run_alone(void (*work)(void*, int, int), void* context);

template <class Work>
inline void alone(const Work& work) {
    run_alone([](void* context, int, int) { (*static_cast<const Work*>(context))(); },
              const_cast<void*>(static_cast<const void*>(&work)));
}

// At least `bytes` of memory of this thread, aligned to 64, valid until the thread asks again.  Contents are undefined.
void* scratch(std::size_t bytes);

struct Range {
    std::int64_t begin, end;
};

// The part of [0, count) that belongs to `thread`, cut at multiples of `multiple`; parts differ by one multiple at most.
HEADRACE_INLINE Range share(std::int64_t count, int thread, int threads, std::int64_t multiple = 1) {
    std::int64_t pieces = (count + multiple - 1) / multiple;
    std::int64_t begin = pieces * thread / threads * multiple, end = pieces * (thread + 1) / threads * multiple;
    return Range{begin < count ? begin : count, end < count ? end : count};
}

}  // namespace headrace
