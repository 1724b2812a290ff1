// The machine's own limits, measured: what every kernel's speed is compared with.
#pragma once

#include "headrace.hpp"

namespace headrace {

struct ProbeKernels {
    // Dependent chains of the widest multiply-adds, all in registers; returns how many operations (2 a multiply-add)
    // one call does.  `sink` keeps the compiler from leaving them out.
    double (*fp32)(std::int64_t rounds, float* sink);
    double (*bf16)(std::int64_t rounds, float* sink);  // in bf16 instructions where there are some, else as fp32
    double (*int8)(std::int64_t rounds, float* sink);  // the exact int8 products that the int8 kernels are made of
    double (*int4)(std::int64_t rounds, float* sink);  // products of pairs of bytes, summed in int16 (VNNI: as int8)
    // Read `bytes` (a multiple of 512) once.
    void (*read)(const void* data, std::int64_t bytes, float* sink);
};

}  // namespace headrace
