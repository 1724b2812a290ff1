// The extension module `headrace.engine.kernels._native`: one `bind_*` a family of kernels (see headrace.hpp).
#include "headrace.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace headrace {

void bind_probe(nb::module_& module);
void bind_linear(nb::module_& module);
void bind_attention(nb::module_& module);
void bind_fused(nb::module_& module);
void bind_sample(nb::module_& module);
void bind_layers(nb::module_& module);

namespace {

void use_isa_named(const std::string& name) {
    for (Isa each : {Isa::avx2, Isa::avx512, Isa::avx512_bf16})
        if (name == name_of(each)) return use_isa(each);
    throw std::invalid_argument("no instruction set is named " + name);
}

}  // namespace
}  // namespace headrace

NB_MODULE(_native, module) {
    using namespace headrace;
    using Release = nb::call_guard<nb::gil_scoped_release>;
    nb::set_leak_warnings(false);
    module.def("isa", [] { return name_of(isa()); }, "The instruction set in use: \"avx2\", \"avx512\", \"avx512_bf16\".");
    module.def("best_isa", [] { return name_of(best_isa()); },
               "The best that processor and system have; \"none\" where no kernel runs.");
    module.def("use_isa", &use_isa_named, nb::arg("name"), "Use a lower one than the best (tests and benchmarks do).");
    module.def("num_threads", &num_threads);
    module.def("set_num_threads", &set_num_threads, nb::arg("count"), Release(),
               "Threads of the pool, the caller included.  Waits for work in progress.");
    bind_probe(module);
    bind_linear(module);
    bind_attention(module);
    bind_fused(module);
    bind_sample(module);
    bind_layers(module);
}
