#include "linear.hpp"

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <vector>

HEADRACE_DISPATCH(LinearKernels, linear_kernels)

namespace nb = nanobind;

namespace headrace {
namespace {

Format format_named(const std::string& name) {
    if (name == "fp32") return Format::fp32;
    if (name == "bf16") return Format::bf16;
    if (name == "int8") return Format::int8;
    if (name == "int4") return Format::int4;
    throw std::invalid_argument("format must be fp32, bf16, int8 or int4, not " + name);
}

std::int64_t panels_of(std::int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }

// A matrix as packed; holds no memory of its own.
class Linear {
   public:
    Linear(const std::string& format, std::int64_t outputs, std::int64_t inputs, std::int64_t group) {
        if (outputs < 1 || inputs < 1) throw std::invalid_argument("a matrix has at least one output and one input");
        args_.format = format_named(format);
        args_.outputs = outputs;
        args_.inputs = inputs;
        args_.group = group;
        const bool is_group = group == 16 || group == 32 || group == 64 || group == 128 || group == 256;
        if (args_.format == Format::int4 && (!is_group || inputs % group))
            throw std::invalid_argument("int4 groups hold 16, 32, 64, 128 or 256 inputs and divide them");
    }

    std::int64_t packed_bytes() const {
        return panels_of(args_.outputs) * linear_kernels().panel_bytes(args_);
    }

    void set_weight(Address weight, Address scales, Address bias, Address order) {
        args_.weight = at<const void>(weight);
        args_.scales = at<const float>(scales);
        args_.bias = at<const float>(bias);
        args_.order = at<const std::int32_t>(order);
        for (std::int64_t k = 0; args_.order != nullptr && k < args_.inputs; ++k)
            if (args_.order[k] < 0 || args_.order[k] >= args_.inputs) throw std::out_of_range("no such input");
    }

    void pack(Address source, std::int64_t rows, std::int64_t first_panel, std::int64_t step, Address scales,
              Address zeros) const {
        const PackSource from{at<const void>(source), rows, at<const float>(scales), at<const std::uint8_t>(zeros)};
        if (args_.format == Format::int4 && (from.scales == nullptr || from.zeros == nullptr))
            throw std::invalid_argument("int4 weights come with scales and zero points");
        const std::int64_t bytes = linear_kernels().panel_bytes(args_);
        if (rows < 1 || first_panel < 0 || step < 1 ||
            first_panel + (panels_of(rows) - 1) * step >= panels_of(args_.outputs))
            throw std::invalid_argument("the rows do not fit into the packed matrix");
        char* out = static_cast<char*>(const_cast<void*>(args_.weight));
        parallel([&](int thread, int threads) {
            const Range mine = share(panels_of(rows), thread, threads);
            for (std::int64_t panel = mine.begin; panel < mine.end; ++panel)
                linear_kernels().pack(args_, from, panel, out + (first_panel + panel * step) * bytes);
        });
    }

    void unpack(Address ids, std::int64_t count, Address out) const {
        const std::int64_t* each = at<const std::int64_t>(ids);
        for (std::int64_t i = 0; i < count; ++i)
            if (each[i] < 0 || each[i] >= args_.outputs) throw std::out_of_range("no such row of the packed matrix");
        parallel([&](int thread, int threads) {
            const Range mine = share(count, thread, threads);
            for (std::int64_t i = mine.begin; i < mine.end; ++i)
                linear_kernels().unpack(args_, each[i], at<float>(out) + i * args_.inputs);
        });
    }

    void run(Address x, std::int64_t rows, std::int64_t x_stride, Address y, std::int64_t y_stride, Address residual,
             bool gated) const {
        if (rows < 0 || x_stride < args_.inputs || y_stride < (gated ? args_.outputs / 2 : args_.outputs))
            throw std::invalid_argument("rows overlap, or there are fewer than none");
        if (gated && args_.outputs % (2 * PANEL)) throw std::invalid_argument("gate and up are whole panels");
        LinearArgs args = args_;
        args.x = at<const float>(x);
        args.rows = rows;
        args.x_stride = x_stride;
        args.y = at<float>(y);
        args.y_stride = y_stride;
        args.residual = at<const float>(residual);
        args.gated = gated;
        run_linear(args);
    }

    Address address() const { return reinterpret_cast<Address>(&args_); }

   private:
    LinearArgs args_{};
};

}  // namespace

void run_linear(const LinearArgs& given) {
    if (given.rows == 0) return;
    LinearArgs args = given;
    const std::int64_t bytes = linear_kernels().quantized_bytes(args);
    if (bytes > 0) {
        thread_local std::vector<char> tokens;  // scratch() belongs to the loops
        if (tokens.size() < static_cast<std::size_t>(bytes)) tokens.resize(static_cast<std::size_t>(bytes));
        args.quantized = tokens.data();
        parallel([&](int thread, int threads) { linear_kernels().quantize(args, thread, threads); });
    }
    parallel([&](int thread, int threads) { linear_kernels().run(args, thread, threads); });
}

void bind_linear(nb::module_& module) {
    using Release = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<Linear>(module, "Linear", "A packed matrix [outputs, inputs]; the memory belongs to the caller.")
        .def(nb::init<const std::string&, std::int64_t, std::int64_t, std::int64_t>(), nb::arg("format"),
             nb::arg("outputs"), nb::arg("inputs"), nb::arg("group") = 0)
        .def_prop_ro("packed_bytes", &Linear::packed_bytes)
        .def_prop_ro("address", &Linear::address, "For `Layers.add`; valid while the matrix lives.")
        .def("set_weight", &Linear::set_weight, nb::arg("weight"), nb::arg("scales") = 0, nb::arg("bias") = 0,
             nb::arg("order") = 0,
             "Addresses of `packed_bytes` of memory, of fp32 scales (int8) and bias, both padded to panels of 16, and of the "
             "input (int32) of each column (int4); 0: none.")
        .def("pack", &Linear::pack, nb::arg("source"), nb::arg("rows"), nb::arg("first_panel") = 0, nb::arg("step") = 1,
             nb::arg("scales") = 0, nb::arg("zeros") = 0, Release(),
             "Pack source rows [rows, inputs] (fp32, bf16, int8, or bytes of int4 with fp32 scales and byte zero points "
             "[rows, groups]) into panels first_panel, first_panel + step ...")
        .def("unpack", &Linear::unpack, nb::arg("ids"), nb::arg("count"), nb::arg("out"), Release(),
             "Rows `ids` (int64) of the matrix as fp32 [count, inputs].")
        .def("run", &Linear::run, nb::arg("x"), nb::arg("rows"), nb::arg("x_stride"), nb::arg("y"), nb::arg("y_stride"),
             nb::arg("residual") = 0, nb::arg("gated") = false, Release(),
             "y = x Wᵀ + bias (+ residual, as y); gated: y = silu(gate) * up of alternating panels.");
}

}  // namespace headrace
