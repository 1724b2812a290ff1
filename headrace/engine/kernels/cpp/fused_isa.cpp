// Every row is computed alone, so nothing here depends on the batch.
#include "fused.hpp"

#include "kv_lanes.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

// Call work(offset, lanes) for all of `width`, LANES at a time; the last may be fewer.
template <class Work>
HEADRACE_INLINE void over(std::int64_t width, const Work& work) {
    std::int64_t i = 0;
    for (; i + LANES <= width; i += LANES) work(i, LANES);
    if (i < width) work(i, static_cast<int>(width - i));
}
HEADRACE_INLINE Vec read(const float* p, int lanes) { return lanes == LANES ? load(p) : load_some(p, lanes); }
HEADRACE_INLINE void write(float* p, Vec v, int lanes) {
    if (lanes == LANES)
        store(p, v);
    else
        store_some(p, v, lanes);
}

// 1 / rms, the squares added up in LANES * 2 chains.
HEADRACE_INLINE Vec inverse_rms(const float* x, std::int64_t width, float eps) {
    Vec even = zero(), odd = zero();
    std::int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        const Vec a = load(x + i), b = load(x + i + LANES);
        even = HEADRACE_ISA::fma(a, a, even);
        odd = HEADRACE_ISA::fma(b, b, odd);
    }
    over(width - i, [&](std::int64_t j, int lanes) {
        const Vec a = read(x + i + j, lanes);
        even = HEADRACE_ISA::fma(a, a, even);
    });
    const float mean = sum_of(add(even, odd)) / static_cast<float>(width);
    return all(1.0f / __builtin_sqrtf(mean + eps));
}

void norm(const NormArgs& args, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
        const float* x = args.x + row * args.x_stride;
        float* out = args.out + row * args.out_stride;
        const Vec factor = inverse_rms(x, args.width, args.eps);
        over(args.width, [&](std::int64_t i, int lanes) {
            Vec y = mul(mul(read(x + i, lanes), factor), read(args.weight + i, lanes));
            if (args.add) y = add(read(out + i, lanes), y);
            write(out + i, y, lanes);
        });
    }
}

HEADRACE_INLINE void norm_head(float* x, const float* weight, std::int64_t dim, float eps) {
    const Vec factor = inverse_rms(x, dim, eps);
    over(dim, [&](std::int64_t i, int lanes) {
        write(x + i, mul(mul(read(x + i, lanes), factor), read(weight + i, lanes)), lanes);
    });
}

HEADRACE_INLINE void rotate(float* x, const float* cos, const float* sin, std::int64_t half) {
    over(half, [&](std::int64_t i, int lanes) {
        const Vec a = read(x + i, lanes), b = read(x + half + i, lanes);
        const Vec c = read(cos + i, lanes), s = read(sin + i, lanes);
        write(x + i, HEADRACE_ISA::fnma(b, s, mul(a, c)), lanes);
        write(x + half + i, HEADRACE_ISA::fma(a, s, mul(b, c)), lanes);
    });
}

HEADRACE_INLINE void keep(float* to, float x) { *to = x; }
HEADRACE_INLINE void keep(Bf16* to, float x) { *to = to_bf16(x); }

// Largest magnitude / 127, NaN where a number is not finite: a quantised NaN would look like a number.
HEADRACE_INLINE float int8_scale(const float* x, std::int64_t dim) {
    float most = 0.0f, poison = 0.0f;
    for (std::int64_t i = 0; i < dim; ++i) {
        const float size = x[i] < 0 ? -x[i] : x[i];
        most = size > most ? size : most;
        poison += x[i] - x[i];
    }
    return most / 127.0f + poison;
}

template <class T>
void store_head(const KvLayer& kv, std::int64_t head, std::int64_t slot, const float* x, bool is_key) {
    const std::int64_t block = slot / kv.block_size, offset = slot % kv.block_size;
    const std::int64_t dim = kv.head_dim, page = dim * kv.block_size;
    T* to = static_cast<T*>(const_cast<void*>(kv.pages)) + (head * kv.num_pages + block) * page;
    const std::int64_t step = is_key ? kv.block_size : 1;
    to += is_key ? offset : offset * dim;
    if constexpr (sizeof(T) == 1) {
        const float scale = int8_scale(x, dim);
        const_cast<float*>(kv.scales)[(head * kv.num_pages + block) * kv.block_size + offset] = scale;
        const float factor = scale > 0.0f ? 1.0f / scale : 0.0f;
        for (std::int64_t d = 0; d < dim; ++d) {
            const float y = factor > 0.0f ? x[d] * factor : 0.0f;
            to[d * step] = static_cast<std::int8_t>(static_cast<int>(y + (y < 0 ? -0.5f : 0.5f)));
        }
    } else {
        for (std::int64_t d = 0; d < dim; ++d) keep(to + d * step, x[d]);
    }
}

template <class T>
void store_row(const RotateArgs& args, const float* keys, std::int64_t slot) {
    for (std::int64_t head = 0; head < 2 * args.kv.kv_heads; ++head)
        store_head<T>(args.kv, head, slot, keys + head * args.kv.head_dim, head < args.kv.kv_heads);
}

void rotate_store(const RotateArgs& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t dim = args.kv.head_dim, half = dim / 2;
    const int rotated = args.heads + static_cast<int>(args.kv.kv_heads);
    for (std::int64_t row = begin; row < end; ++row) {
        float* x = args.qkv + row * args.stride;
        const float* cos = args.cos + args.positions[row] * half;
        const float* sin = args.sin + args.positions[row] * half;
        for (int head = 0; head < rotated; ++head) {
            const float* weight = head < args.heads ? args.q_norm : args.k_norm;
            if (weight != nullptr) norm_head(x + head * dim, weight, dim, args.eps);
            rotate(x + head * dim, cos, sin, half);
        }
        const std::int64_t slot = args.slots[row];
        if (slot < 0) continue;
        const float* keys = x + args.heads * dim;
        switch (args.kv.kind) {
            case KvKind::fp32: store_row<float>(args, keys, slot); break;
            case KvKind::bf16: store_row<Bf16>(args, keys, slot); break;
            case KvKind::int8: store_row<std::int8_t>(args, keys, slot); break;
        }
    }
}

// x * Phi(x) in its tanh form (Hendrycks and Gimpel 2016): x * sigmoid(2 y), y = sqrt(2 / pi) (x + 0.044715 x^3).
HEADRACE_INLINE Vec gelu_tanh(Vec x) {
    const Vec inner = HEADRACE_ISA::fma(mul(mul(x, x), x), all(0.044715f), x);
    const Vec y = mul(inner, all(-2.0f * 0.7978845608028654f));
    return div(x, add(all(1.0f), HEADRACE_ISA::exp(y)));
}

void gate(const float* x, std::int64_t x_stride, float* out, std::int64_t out_stride, std::int64_t width, bool gelu,
          std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
        const float* from = x + row * x_stride;
        float* to = out + row * out_stride;
        over(width, [&](std::int64_t i, int lanes) {
            const Vec g = read(from + i, lanes), up = read(from + width + i, lanes);
            write(to + i, mul(gelu ? gelu_tanh(g) : silu(g), up), lanes);
        });
    }
}

}  // namespace

extern const FusedKernels fused_kernels;
const FusedKernels fused_kernels = {norm, rotate_store, gate};

}  // namespace headrace::HEADRACE_ISA
