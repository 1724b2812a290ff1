// All layers of a decoder in one call: what is left to Python is once a step, not once an operation.
#include "fused.hpp"
#include "linear.hpp"

#include <nanobind/nanobind.h>

#include <stdexcept>
#include <vector>

namespace nb = nanobind;

namespace headrace {
namespace {

// Weights of one layer; nothing of it is owned.  Norms behind attention and MLP are null where a family has none.
struct Layer {
    const float *input_norm, *attention_norm, *mlp_norm, *output_norm, *q_norm, *k_norm;
    const float *cos, *sin;
    const LinearArgs *qkv, *output, *gate_up, *down;
    AttentionRules rules;
    KvLayer kv;
};

class Layers {
   public:
    Layers(std::int64_t hidden, int heads, float eps) : hidden_(hidden), heads_(heads), eps_(eps) {}

    void add(Address input_norm, Address attention_norm, Address mlp_norm, Address output_norm, Address q_norm,
             Address k_norm, Address cos, Address sin, Address qkv, Address output, Address gate_up, Address down,
             float scale, float softcap, std::int64_t window, int kind, Address pages, Address scales,
             std::int64_t num_pages, std::int64_t block_size, int kv_heads, std::int64_t head_dim) {
        const KvLayer kv{static_cast<KvKind>(kind), at<const void>(pages), at<const float>(scales), num_pages, block_size,
                         kv_heads, head_dim};
        const Layer layer{at<const float>(input_norm), at<const float>(attention_norm), at<const float>(mlp_norm),
                          at<const float>(output_norm), at<const float>(q_norm), at<const float>(k_norm),
                          at<const float>(cos), at<const float>(sin), at<const LinearArgs>(qkv),
                          at<const LinearArgs>(output), at<const LinearArgs>(gate_up), at<const LinearArgs>(down),
                          {scale, softcap, window}, kv};
        const std::int64_t width = (heads_ + 2 * kv_heads) * head_dim;
        if (layer.qkv->inputs != hidden_ || layer.qkv->outputs != width || layer.output->outputs != hidden_ ||
            layer.gate_up->inputs != hidden_ || layer.down->inputs * 2 != layer.gate_up->outputs ||
            layer.down->outputs != hidden_)
            throw std::invalid_argument("the matrices of a layer do not fit each other");
        layers_.push_back(layer);
    }

    // hidden [rows, hidden] in place; `space`: rows * (hidden + widest of qkv + attended, gated) numbers, see `space_for`.
    void run(Address hidden_at, std::int64_t rows, Address space_at, Address positions, Address slots,
             std::int64_t num_spans, Address first_rows, Address starts, Address lengths, Address seats,
             Address block_tables, std::int64_t table_stride) const {
        const AttentionSpans spans{num_spans, at<const std::int32_t>(first_rows), at<const std::int32_t>(starts),
                                   at<const std::int32_t>(lengths), at<const std::int32_t>(seats),
                                   at<const std::int32_t>(block_tables), table_stride};
        float* const hidden = at<float>(hidden_at);
        float* const normed = at<float>(space_at);
        float* const wide = normed + rows * hidden_;
        for (const Layer& layer : layers_) {
            norm({hidden, hidden_, layer.input_norm, eps_, normed, hidden_, hidden_, false}, rows);
            const std::int64_t width = layer.qkv->outputs, attended = heads_ * layer.kv.head_dim;
            float* const qkv = wide;
            float* const out = wide + rows * width;
            multiply(*layer.qkv, normed, rows, qkv, nullptr, false);
            rotate_store({qkv, width, heads_, layer.q_norm, layer.k_norm, eps_, layer.cos, layer.sin,
                          at<const std::int32_t>(positions), at<const std::int64_t>(slots), layer.kv},
                         rows);
            attend(layer.kv, layer.rules, spans, qkv, width, out, attended, heads_);
            accumulate(*layer.output, out, rows, hidden, normed, layer.attention_norm);
            norm({hidden, hidden_, layer.mlp_norm, eps_, normed, hidden_, hidden_, false}, rows);
            multiply(*layer.gate_up, normed, rows, wide, nullptr, true);
            accumulate(*layer.down, wide, rows, hidden, normed, layer.output_norm);
        }
    }

    // Numbers that `run` needs for a row.
    std::int64_t space_for_row() const {
        std::int64_t widest = 0;
        for (const Layer& layer : layers_) {
            const std::int64_t attention = layer.qkv->outputs + heads_ * layer.kv.head_dim;
            const std::int64_t inner = layer.down->inputs;
            widest = widest > attention ? widest : attention;
            widest = widest > inner ? widest : inner;
        }
        return hidden_ + widest;
    }

   private:
    static void multiply(const LinearArgs& linear, const float* x, std::int64_t rows, float* y, const float* residual,
                         bool gated) {
        LinearArgs args = linear;
        args.x = x;
        args.rows = rows;
        args.x_stride = linear.inputs;
        args.y = y;
        args.y_stride = gated ? linear.outputs / 2 : linear.outputs;
        args.residual = residual;
        args.gated = gated;
        run_linear(args);
    }

    // hidden += x W, or the norm of that.
    void accumulate(const LinearArgs& linear, const float* x, std::int64_t rows, float* hidden, float* normed,
                    const float* weight) const {
        if (weight == nullptr) return multiply(linear, x, rows, hidden, hidden, false);
        multiply(linear, x, rows, normed, nullptr, false);
        norm({normed, hidden_, weight, eps_, hidden, hidden_, hidden_, true}, rows);
    }

    std::int64_t hidden_;
    int heads_;
    float eps_;
    std::vector<Layer> layers_;
};

}  // namespace

void bind_layers(nb::module_& module) {
    using Release = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<Layers>(module, "Layers", "A decoder's layers; weights and cache belong to the caller.")
        .def(nb::init<std::int64_t, int, float>(), nb::arg("hidden"), nb::arg("heads"), nb::arg("eps"))
        .def("add", &Layers::add, nb::arg("input_norm"), nb::arg("attention_norm"), nb::arg("mlp_norm"),
             nb::arg("output_norm"), nb::arg("q_norm"), nb::arg("k_norm"), nb::arg("cos"), nb::arg("sin"), nb::arg("qkv"),
             nb::arg("output"), nb::arg("gate_up"), nb::arg("down"), nb::arg("scale"), nb::arg("softcap"),
             nb::arg("window"), nb::arg("kind"), nb::arg("pages"), nb::arg("scales"), nb::arg("num_pages"),
             nb::arg("block_size"), nb::arg("kv_heads"), nb::arg("head_dim"),
             "Addresses of fp32 norms (0: none) and tables, and of matrices (`Linear.address`); the rest as for `attend`.")
        .def("space_for_row", &Layers::space_for_row)
        .def("run", &Layers::run, nb::arg("hidden"), nb::arg("rows"), nb::arg("space"), nb::arg("positions"),
             nb::arg("slots"), nb::arg("num_spans"), nb::arg("first_rows"), nb::arg("starts"), nb::arg("lengths"),
             nb::arg("seats"), nb::arg("block_tables"), nb::arg("table_stride"), Release(),
             "All layers on fp32 hidden [rows, hidden], in place; `space` holds rows * space_for_row numbers.");
}

}  // namespace headrace
