#include "fused.hpp"

#include <nanobind/nanobind.h>

#include <stdexcept>

HEADRACE_DISPATCH(FusedKernels, fused_kernels)

namespace nb = nanobind;

namespace headrace {

namespace {

// Waking the other threads takes about a microsecond: as long as one of them needs for this many numbers.
constexpr std::int64_t WORTH_SHARING = 4096;

template <class Work>
void over_rows(std::int64_t rows, std::int64_t width, const Work& work) {
    if (rows * width < WORTH_SHARING || rows < 2) {
        alone([&] { work(0, rows); });
    } else {
        parallel([&](int thread, int threads) {
            const Range mine = share(rows, thread, threads);
            if (mine.begin < mine.end) work(mine.begin, mine.end);
        });
    }
}

}  // namespace

void norm(const NormArgs& args, std::int64_t rows) {
    over_rows(rows, args.width, [&](std::int64_t begin, std::int64_t end) { fused_kernels().norm(args, begin, end); });
}

void rotate_store(const RotateArgs& args, std::int64_t rows) {
    const std::int64_t width = (args.heads + 2 * args.kv.kv_heads) * args.kv.head_dim;
    over_rows(rows, width,
              [&](std::int64_t begin, std::int64_t end) { fused_kernels().rotate_store(args, begin, end); });
}

namespace {

void norm_at(Address x, std::int64_t x_stride, Address weight, float eps, Address out, std::int64_t out_stride,
             std::int64_t rows, std::int64_t width, bool add) {
    norm({at<const float>(x), x_stride, at<const float>(weight), eps, at<float>(out), out_stride, width, add}, rows);
}

void rotate_store_at(Address qkv, std::int64_t stride, std::int64_t rows, int heads, Address q_norm, Address k_norm,
                     float eps, Address cos, Address sin, Address positions, Address slots, int kind, Address pages,
                     Address scales, std::int64_t num_pages, std::int64_t block_size, int kv_heads,
                     std::int64_t head_dim) {
    if (block_size % KV_GROUP || head_dim % KV_GROUP || kind < 0 || kind > 2)
        throw std::invalid_argument("block size and head size must be multiples of 16");
    rotate_store({at<float>(qkv), stride, heads, at<const float>(q_norm), at<const float>(k_norm), eps,
                  at<const float>(cos), at<const float>(sin), at<const std::int32_t>(positions),
                  at<const std::int64_t>(slots),
                  {static_cast<KvKind>(kind), at<const void>(pages), at<const float>(scales), num_pages, block_size,
                   kv_heads, head_dim}},
                 rows);
}

void gate_at(Address x, std::int64_t x_stride, Address out, std::int64_t out_stride, std::int64_t rows,
             std::int64_t width, bool gelu) {
    over_rows(rows, 2 * width, [&](std::int64_t begin, std::int64_t end) {
        fused_kernels().gate(at<const float>(x), x_stride, at<float>(out), out_stride, width, gelu, begin, end);
    });
}

}  // namespace

void bind_fused(nb::module_& module) {
    using Release = nb::call_guard<nb::gil_scoped_release>;
    module.def("norm", &norm_at, nb::arg("x"), nb::arg("x_stride"), nb::arg("weight"), nb::arg("eps"), nb::arg("out"),
               nb::arg("out_stride"), nb::arg("rows"), nb::arg("width"), nb::arg("add") = false, Release(),
               "out = x / rms(x) * weight (with `add`: out += that), fp32 rows of `width`.");
    module.def("rotate_store", &rotate_store_at, nb::arg("qkv"), nb::arg("stride"), nb::arg("rows"), nb::arg("heads"),
               nb::arg("q_norm"), nb::arg("k_norm"), nb::arg("eps"), nb::arg("cos"), nb::arg("sin"), nb::arg("positions"),
               nb::arg("slots"), nb::arg("kind"), nb::arg("pages"), nb::arg("scales"), nb::arg("num_pages"),
               nb::arg("block_size"), nb::arg("kv_heads"), nb::arg("head_dim"), Release(),
               "Norm and rotate queries and keys of fp32 rows [q, k, v] in place; store keys and values in their slots.\n"
               "positions int32, slots int64 (negative: padding), cos and sin fp32 [positions, head_dim / 2].");
    module.def("gate", &gate_at, nb::arg("x"), nb::arg("x_stride"), nb::arg("out"), nb::arg("out_stride"), nb::arg("rows"),
               nb::arg("width"), nb::arg("gelu") = false, Release(),
               "out = silu(gate) * up, or gelu in its tanh form, for fp32 rows [gate, up] of `width` each.");
}

}  // namespace headrace
