#include "probe.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <chrono>
#include <stdexcept>
#include <string>

HEADRACE_DISPATCH(ProbeKernels, probe_kernels)

namespace nb = nanobind;

namespace headrace {
namespace {

template <class Work>
double best_seconds(int repeats, const Work& work) {
    double best = 1e9;
    for (int i = 0; i < repeats; ++i) {
        const auto started = std::chrono::steady_clock::now();
        work();
        const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - started;
        best = taken.count() < best ? taken.count() : best;
    }
    return best;
}

double peak_rate(const std::string& kind, std::int64_t rounds) {
    const ProbeKernels& kernels = probe_kernels();
    auto* kernel = kind == "fp32"   ? kernels.fp32
                   : kind == "bf16" ? kernels.bf16
                   : kind == "int8" ? kernels.int8
                   : kind == "int4" ? kernels.int4
                                    : nullptr;
    if (kernel == nullptr) throw std::invalid_argument("kind must be fp32, bf16, int8 or int4");
    double operations = 0;
    const double seconds = best_seconds(5, [&] {
        parallel([&](int thread, int threads) {
            float sink = 0;
            const double mine = kernel(rounds, &sink);
            if (thread == 0) operations = mine * threads;
            if (sink == 1234.5f) operations += 1;
        });
    });
    return operations / seconds;
}

double read_rate(Address data, std::int64_t bytes, int repeats) {
    bytes = bytes / 512 * 512;
    const double seconds = best_seconds(repeats, [&] {
        parallel([&](int thread, int threads) {
            const Range mine = share(bytes, thread, threads, 512);
            float sink = 0;
            probe_kernels().read(at<const char>(data) + mine.begin, mine.end - mine.begin, &sink);
            static volatile float kept;
            if (sink == 1234.5f) kept = sink;
        });
    });
    return static_cast<double>(bytes) / seconds;
}

}  // namespace

void bind_probe(nb::module_& module) {
    using Release = nb::call_guard<nb::gil_scoped_release>;
    module.def("peak_rate", &peak_rate, nb::arg("kind"), nb::arg("rounds") = 200000, Release(),
               "Operations/s of multiply-adds in registers, all threads of the pool: the limit of \"fp32\", \"bf16\", \"int8\" "
               "or \"int4\".");
    module.def("read_rate", &read_rate, nb::arg("data"), nb::arg("bytes"), nb::arg("repeats") = 3, Release(),
               "Bytes/s of reading `bytes` at address `data` once, all threads of the pool; the best of `repeats`.");
}

}  // namespace headrace
