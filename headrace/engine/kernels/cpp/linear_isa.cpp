#include "linear_float.hpp"
#include "linear_int4.hpp"
#include "linear_int8.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

std::int64_t panel_bytes(const LinearArgs& args) {
    switch (args.format) {
        case Format::int4: return Int4Format::panel_bytes(args);
        case Format::int8: return Int8Format::panel_bytes(args);
        case Format::bf16: return Bf16Format::panel_bytes(args);
        default: return Fp32Format::panel_bytes(args);
    }
}

void pack(const LinearArgs& args, const PackSource& source, std::int64_t panel, void* out) {
    std::memset(out, 0, static_cast<std::size_t>(panel_bytes(args)));
    if (args.format == Format::int4) return Int4Format::pack(args, source, panel, static_cast<char*>(out));
    const std::int64_t inputs = args.inputs;
    if (args.format == Format::int8)
        return Int8Format::pack(static_cast<const std::int8_t*>(source.values), source.rows, inputs, panel,
                                static_cast<char*>(out));
    for (int lane = 0; lane < PANEL; ++lane) {
        const std::int64_t row = panel * PANEL + lane;
        if (row >= source.rows) break;
        if (args.format == Format::bf16) {
            const Bf16* from = static_cast<const Bf16*>(source.values) + row * inputs;
            for (std::int64_t k = 0; k < inputs; ++k) static_cast<Bf16*>(out)[Bf16Format::place(k, lane)] = from[k];
        } else {
            const float* from = static_cast<const float*>(source.values) + row * inputs;
            for (std::int64_t k = 0; k < inputs; ++k) static_cast<float*>(out)[k * PANEL + lane] = from[k];
        }
    }
}

void unpack(const LinearArgs& args, std::int64_t output, float* out) {
    const char* panel = static_cast<const char*>(args.weight) + output / PANEL * panel_bytes(args);
    const int lane = static_cast<int>(output % PANEL);
    if (args.format == Format::int4) return Int4Format::unpack(args, panel, lane, out);
    for (std::int64_t k = 0; k < args.inputs; ++k) {
        if (args.format == Format::int8)
            out[k] = static_cast<signed char>(panel[Int8Format::place(k, lane)]);  // the caller knows the scales
        else if (args.format == Format::bf16)
            out[k] = to_float(reinterpret_cast<const Bf16*>(panel)[Bf16Format::place(k, lane)]);
        else
            out[k] = reinterpret_cast<const float*>(panel)[k * PANEL + lane];
    }
}

std::int64_t quantized_bytes(const LinearArgs& args) { return args.format == Format::int8 ? args.rows * 4 : 0; }

void quantize(const LinearArgs& args, int thread, int threads) {
    const Range mine = share(args.rows, thread, threads);
    int8_scales(args, mine.begin, mine.end);
}

void run(const LinearArgs& args, int thread, int threads) {
    if (args.format == Format::bf16)
        run_format<Bf16Format>(args, thread, threads);
    else if (args.format == Format::int8)
        run_format<Int8Format>(args, thread, threads);
    else if (args.format == Format::int4)
        run_format<Int4Format>(args, thread, threads);
    else
        run_format<Fp32Format>(args, thread, threads);
}

}  // namespace

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {panel_bytes, pack, unpack, quantized_bytes, quantize, run};

}  // namespace headrace::HEADRACE_ISA
