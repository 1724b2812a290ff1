#include "linear_float.hpp"
#include "linear_int8.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

std::int64_t panel_bytes(Format format, std::int64_t inputs) {
    if (format == Format::int8) return Int8Format::panel_bytes(inputs);
    return format == Format::bf16 ? Bf16Format::panel_bytes(inputs) : Fp32Format::panel_bytes(inputs);
}

void pack(Format format, const void* source, std::int64_t outputs, std::int64_t inputs, std::int64_t panel, void* out) {
    std::memset(out, 0, static_cast<std::size_t>(panel_bytes(format, inputs)));
    if (format == Format::int8)
        return Int8Format::pack(static_cast<const std::int8_t*>(source), outputs, inputs, panel, static_cast<char*>(out));
    for (int lane = 0; lane < PANEL; ++lane) {
        const std::int64_t row = panel * PANEL + lane;
        if (row >= outputs) break;
        if (format == Format::bf16) {
            const Bf16* from = static_cast<const Bf16*>(source) + row * inputs;
            for (std::int64_t k = 0; k < inputs; ++k) static_cast<Bf16*>(out)[Bf16Format::place(k, lane)] = from[k];
        } else {
            const float* from = static_cast<const float*>(source) + row * inputs;
            for (std::int64_t k = 0; k < inputs; ++k) static_cast<float*>(out)[k * PANEL + lane] = from[k];
        }
    }
}

void unpack(Format format, const void* weight, std::int64_t output, std::int64_t inputs, float* out) {
    const char* panel = static_cast<const char*>(weight) + output / PANEL * panel_bytes(format, inputs);
    const int lane = static_cast<int>(output % PANEL);
    if (format == Format::int8) {
        // Not scaled: the caller knows the scales.
        for (std::int64_t k = 0; k < inputs; ++k)
            out[k] = static_cast<signed char>(panel[Int8Format::place(k, lane)]);
        return;
    }
    if (format == Format::bf16) {
        const Bf16* from = reinterpret_cast<const Bf16*>(panel);
        for (std::int64_t k = 0; k < inputs; ++k) out[k] = to_float(from[Bf16Format::place(k, lane)]);
    } else {
        const float* from = reinterpret_cast<const float*>(panel);
        for (std::int64_t k = 0; k < inputs; ++k) out[k] = from[k * PANEL + lane];
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
    else
        run_format<Fp32Format>(args, thread, threads);
}

}  // namespace

extern const LinearKernels linear_kernels;
const LinearKernels linear_kernels = {panel_bytes, pack, unpack, quantized_bytes, quantize, run};

}  // namespace headrace::HEADRACE_ISA
