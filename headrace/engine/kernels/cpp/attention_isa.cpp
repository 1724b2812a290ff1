// A tile is up to some tens of (row, head) vectors of one sequence that share each load of keys and values.  Scores are
// vectorised over positions and outputs over the head's numbers, so each is added up in the same order however many
// vectors the tile has: results depend on the row and its past alone.
#include "attention.hpp"

#include "kv_lanes.hpp"

namespace headrace::HEADRACE_ISA {
namespace {

constexpr int MOST = 6;  // vectors in registers at once
constexpr int TILE_GROUPS = KV_TILE / KV_GROUP;
constexpr float UNSEEN = -1e30f;  // the maximum of nothing; finite, so that differences are

// How many groups of sixteen to multiply at once, so that about twelve sums are under way: a multiply-add takes four
// cycles, and two start in each.
constexpr int groups_for(int vectors) {
    const int sums = 12 / (vectors * VECS);
    return sums >= 4 ? 4 : sums >= 2 ? 2 : 1;
}

// e^x for x <= 0, as simd.hpp's; but NaN stays NaN: the failure of a row must be seen.
HEADRACE_INLINE Vec exp_of(Vec x) {
    x = max(all(-87.0f), x);  // in this order NaN comes out
    const Vec n = round(mul(x, all(1.44269504088896341f)));
    Vec r = fnma(n, all(0.693359375f), x);
    r = fnma(n, all(-2.12194440e-4f), r);
    Vec p = all(1.9875691500e-4f);
    p = fma(p, r, all(1.3981999507e-3f));
    p = fma(p, r, all(8.3334519073e-3f));
    p = fma(p, r, all(4.1665795894e-2f));
    p = fma(p, r, all(1.6666665459e-1f));
    p = fma(p, r, all(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), all(1.0f));
    return mul(p, pow2(n));
}

// softcap * tanh(x / softcap); tanh |y| = (1 - e^-2|y|) / (1 + e^-2|y|).
HEADRACE_INLINE Vec capped(Vec x, float softcap) {
    const Vec y = mul(x, all(1.0f / softcap));
    const Vec e = exp_of(mul(abs(y), all(-2.0f)));
    const Vec t = div(sub(all(1.0f), e), add(all(1.0f), e));
    return with_sign(mul(t, all(softcap)), y);
}

HEADRACE_INLINE float one_exp(float x) {
    float lane[LANES];
    store(lane, exp_of(all(x)));
    return lane[0];
}

// Sums must stay in registers, and they do only where the compiler unrolls every loop over them.
#define EACH(index, count) _Pragma("GCC unroll 16") for (int index = 0; index < (count); ++index)

// scores[r][g * 16 ...] = sum over d of queries[d][r] * keys[g][d][...]
template <int R, int G, class T>
HEADRACE_INLINE void score(const float* HEADRACE_RESTRICT queries, std::int64_t head_dim, const T* const* keys,
                           std::int64_t block_size, float* HEADRACE_RESTRICT scores) {
    Vec sums[R][G][VECS];
    EACH(r, R) EACH(g, G) EACH(v, VECS) sums[r][g][v] = zero();
    const T* at[G];
    EACH(g, G) at[g] = keys[g];
    for (std::int64_t d = 0; d < head_dim; ++d, queries += R) {
        EACH(g, G) {
            const Lanes16<T> k = load16(at[g]);
            at[g] += block_size;
            EACH(r, R) {
                const Vec q = all(queries[r]);
                EACH(v, VECS) sums[r][g][v] = HEADRACE_ISA::fma(q, k.v[v], sums[r][g][v]);
            }
        }
    }
    EACH(r, R) EACH(g, G) {
        Lanes16<T> x;
        EACH(v, VECS) x.v[v] = sums[r][g][v];
        store16(scores + r * KV_TILE + g * KV_GROUP, x);
    }
}

// out[r] = out[r] * shrink[r] + sum over positions of weights[r][position] * values[position], for C * 16 columns.
template <int R, int C, class T>
HEADRACE_INLINE void weigh(const float* HEADRACE_RESTRICT weights, const float* shrink, const T* const* values,
                           std::int64_t column, int positions, std::int64_t head_dim, float* HEADRACE_RESTRICT out) {
    Vec sums[R][C][VECS];
    EACH(r, R) EACH(c, C) EACH(v, VECS)
        sums[r][c][v] = mul(load(out + r * head_dim + c * 16 + v * LANES), all(shrink[r]));
    const T* at = values[0] + column;
    for (int position = 0; position < positions; ++position, at += head_dim) {
        if (position % KV_GROUP == 0) at = values[position / KV_GROUP] + column;
        EACH(c, C) {
            const Lanes16<T> x = load16(at + c * 16);
            EACH(r, R) {
                const Vec weight = all(weights[r * KV_TILE + position]);
                EACH(v, VECS) sums[r][c][v] = HEADRACE_ISA::fma(weight, x.v[v], sums[r][c][v]);
            }
        }
    }
    EACH(r, R) EACH(c, C) EACH(v, VECS) store(out + r * head_dim + c * 16 + v * LANES, sums[r][c][v]);
}

template <int R, class T>
void score_rows(const float* queries, std::int64_t head_dim, const T* const* keys, int groups, std::int64_t block_size,
                float* scores) {
    constexpr int G = groups_for(R);
    int g = 0;
    for (; g + G <= groups; g += G) score<R, G>(queries, head_dim, keys + g, block_size, scores + g * KV_GROUP);
    for (; g < groups; ++g) score<R, 1>(queries, head_dim, keys + g, block_size, scores + g * KV_GROUP);
}

template <int R, class T>
void weigh_rows(const float* weights, const float* shrink, const T* const* values, int positions, std::int64_t head_dim,
                float* out) {
    constexpr int C = groups_for(R);
    std::int64_t column = 0;
    for (; column + C * 16 <= head_dim; column += C * 16)
        weigh<R, C>(weights, shrink, values, column, positions, head_dim, out + column);
    for (; column < head_dim; column += 16)
        weigh<R, 1>(weights, shrink, values, column, positions, head_dim, out + column);
}

// Call work(count, first vector) for all vectors, as evenly as MOST at once allows.
template <class Work>
HEADRACE_INLINE void in_parts(int vectors, const Work& work) {
    const int parts = (vectors + MOST - 1) / MOST;
    for (int part = 0, first = 0; part < parts; ++part) {
        const int count = (vectors - first) / (parts - part);
        work(count, first);
        first += count;
    }
}

struct State {
    float* most;   // [vectors] running maximum
    float* mass;   // [vectors][LANES] sum of weights, by lane
    float* out;    // [vectors][head_dim] weighted values, in the order of the cache's kind
};

HEADRACE_INLINE State state_at(float* memory, int vectors) {
    const int padded = (vectors + 15) / 16 * 16;
    return {memory, memory + padded, memory + padded + static_cast<std::int64_t>(vectors) * LANES};
}

std::int64_t state_size(int vectors, std::int64_t head_dim) {
    return (vectors + 15) / 16 * 16 + static_cast<std::int64_t>(vectors) * (LANES + head_dim);
}

template <class T>
void prefetch(const T* data, std::int64_t count) {
    const char* bytes = reinterpret_cast<const char*>(data);
    for (std::int64_t i = 0; i < count * static_cast<std::int64_t>(sizeof(T)); i += 64) _mm_prefetch(bytes + i, _MM_HINT_T0);
}

template <class T>
void partial_of(const KvLayer& kv, const AttentionRules& rules, const AttentionTile& tile, std::int64_t begin,
                std::int64_t end, float* memory, float* workspace) {
    const int vectors = tile.rows * tile.group;
    const std::int64_t dim = kv.head_dim, block = kv.block_size, page = dim * block;
    const State state = state_at(memory, vectors);
    float* queries = workspace;
    float* scores = queries + vectors * dim;
    float* shrink = scores + static_cast<std::int64_t>(vectors) * KV_TILE;
    // Queries as a part of vectors reads them: number by number, one of each vector.
    in_parts(vectors, [&](int count, int first) {
        for (int i = 0; i < count; ++i) {
            const int vector = first + i;
            const float* from = tile.queries + vector / tile.group * tile.query_stride + vector % tile.group * dim;
            float* to = queries + first * dim + i;
            for (std::int64_t d = 0; d < dim; ++d) to[d * count] = from[d] * rules.scale;
        }
    });
    for (int i = 0; i < vectors; ++i) {
        state.most[i] = UNSEEN;
        store(state.mass + i * LANES, zero());
        for (std::int64_t d = 0; d < dim; d += LANES) store(state.out + i * dim + d, zero());
    }
    const T* all_keys = static_cast<const T*>(kv.pages) + tile.kv_head * kv.num_pages * page;
    const T* all_values = all_keys + kv.kv_heads * kv.num_pages * page;
    const float* key_scales = kv.scales + tile.kv_head * kv.num_pages * block;
    const float* value_scales = key_scales + kv.kv_heads * kv.num_pages * block;
    constexpr bool IS_SCALED = sizeof(T) == 1;

    for (std::int64_t from = begin; from < end; from += KV_TILE) {
        const int positions = static_cast<int>(end - from < KV_TILE ? end - from : KV_TILE);
        const int groups = (positions + KV_GROUP - 1) / KV_GROUP;
        const T *keys[TILE_GROUPS], *values[TILE_GROUPS];
        const float *k_scales[TILE_GROUPS], *v_scales[TILE_GROUPS];
        for (int g = 0; g < groups; ++g) {
            const std::int64_t position = from + g * KV_GROUP, offset = position % block;
            const std::int64_t id = tile.block_table[position / block];
            keys[g] = all_keys + id * page + offset;
            values[g] = all_values + id * page + offset * dim;
            if (IS_SCALED) {
                k_scales[g] = key_scales + id * block + offset;
                v_scales[g] = value_scales + id * block + offset;
            }
        }
        // Pages lie anywhere: the processor's own prefetch stops at their ends.  Values come while keys are multiplied.
        for (int g = 0; g < groups; ++g) prefetch(values[g], KV_GROUP * dim);
        in_parts(vectors, [&](int count, int first) {
            const float* q = queries + first * dim;
            float* s = scores + static_cast<std::int64_t>(first) * KV_TILE;
            switch (count) {
                case 1: return score_rows<1>(q, dim, keys, groups, block, s);
                case 2: return score_rows<2>(q, dim, keys, groups, block, s);
                case 3: return score_rows<3>(q, dim, keys, groups, block, s);
                case 4: return score_rows<4>(q, dim, keys, groups, block, s);
                case 5: return score_rows<5>(q, dim, keys, groups, block, s);
                default: return score_rows<6>(q, dim, keys, groups, block, s);
            }
        });
        if (from + KV_TILE < end && block == KV_GROUP) {
            const std::int64_t left = (end - from - 1) / KV_GROUP - TILE_GROUPS + 1;
            for (int g = 0; g < (left < TILE_GROUPS ? left : TILE_GROUPS); ++g)
                prefetch(all_keys + tile.block_table[from / KV_GROUP + TILE_GROUPS + g] * page, page);
        }
        for (int i = 0; i < vectors; ++i) {
            float* s = scores + static_cast<std::int64_t>(i) * KV_TILE;
            // Visible are positions [low, high) of the tile.
            const std::int64_t self = tile.position + i / tile.group - from;
            const std::int64_t high = self + 1 < positions ? self + 1 : positions;
            const std::int64_t low = rules.window > 0 ? self + 1 - rules.window : 0;
            const bool is_cut = high < groups * KV_GROUP || low > 0;
            Vec largest = all(UNSEEN);
            for (int g = 0; g < groups * VECS; ++g) {
                Vec x = load(s + g * LANES);
                if (IS_SCALED) x = mul(x, load(k_scales[g / VECS] + g % VECS * LANES));
                if (rules.softcap > 0.0f) x = capped(x, rules.softcap);
                if (is_cut) x = keep_between(x, static_cast<int>(low - g * LANES), static_cast<int>(high - g * LANES), -__builtin_inff());
                store(s + g * LANES, x);
                largest = max(largest, x);
            }
            const float before = state.most[i], tile_most = max_in(largest);
            const float most = before > tile_most ? before : tile_most;
            state.most[i] = most;
            shrink[i] = most > before ? one_exp(before - most) : 1.0f;
            Vec mass = mul(load(state.mass + i * LANES), all(shrink[i]));
            for (int g = 0; g < groups * VECS; ++g) {
                Vec x = exp_of(sub(load(s + g * LANES), all(most)));
                if (is_cut) x = keep_between(x, static_cast<int>(low - g * LANES), static_cast<int>(high - g * LANES), 0.0f);
                mass = add(mass, x);
                if (IS_SCALED) x = mul(x, load(v_scales[g / VECS] + g % VECS * LANES));
                store(s + g * LANES, x);
            }
            store(state.mass + i * LANES, mass);
        }
        in_parts(vectors, [&](int count, int first) {
            const float* w = scores + static_cast<std::int64_t>(first) * KV_TILE;
            const float* f = shrink + first;
            float* o = state.out + first * dim;
            switch (count) {
                case 1: return weigh_rows<1>(w, f, values, positions, dim, o);
                case 2: return weigh_rows<2>(w, f, values, positions, dim, o);
                case 3: return weigh_rows<3>(w, f, values, positions, dim, o);
                case 4: return weigh_rows<4>(w, f, values, positions, dim, o);
                case 5: return weigh_rows<5>(w, f, values, positions, dim, o);
                default: return weigh_rows<6>(w, f, values, positions, dim, o);
            }
        });
    }
}

void partial(const KvLayer& kv, const AttentionRules& rules, const AttentionTile& tile, std::int64_t begin,
             std::int64_t end, float* state, float* workspace) {
    switch (kv.kind) {
        case KvKind::fp32: return partial_of<float>(kv, rules, tile, begin, end, state, workspace);
        case KvKind::bf16: return partial_of<Bf16>(kv, rules, tile, begin, end, state, workspace);
        case KvKind::int8: return partial_of<std::int8_t>(kv, rules, tile, begin, end, state, workspace);
    }
}

void join(int vectors, std::int64_t head_dim, float* total_memory, const float* part_memory, bool first) {
    if (first) {
        std::memcpy(total_memory, part_memory, sizeof(float) * state_size(vectors, head_dim));
        return;
    }
    const State total = state_at(total_memory, vectors), part = state_at(const_cast<float*>(part_memory), vectors);
    for (int i = 0; i < vectors; ++i) {
        const float most = total.most[i] > part.most[i] ? total.most[i] : part.most[i];
        const Vec mine = exp_of(all(total.most[i] - most)), theirs = exp_of(all(part.most[i] - most));
        total.most[i] = most;
        const auto join_at = [&](float* to, const float* from) {
            store(to, HEADRACE_ISA::fma(load(from), theirs, mul(load(to), mine)));
        };
        join_at(total.mass + i * LANES, part.mass + i * LANES);
        for (std::int64_t d = 0; d < head_dim; d += LANES)
            join_at(total.out + i * head_dim + d, part.out + i * head_dim + d);
    }
}

template <class T>
void finish_of(const KvLayer& kv, const AttentionTile& tile, const float* memory) {
    const int vectors = tile.rows * tile.group;
    const State state = state_at(const_cast<float*>(memory), vectors);
    for (int i = 0; i < vectors; ++i) {
        const Vec factor = div(all(1.0f), all(sum_of(load(state.mass + i * LANES))));
        float* out = tile.out + i / tile.group * tile.out_stride + i % tile.group * kv.head_dim;
        for (std::int64_t d = 0; d < kv.head_dim; d += 16) {
            Lanes16<T> x;
            for (int v = 0; v < VECS; ++v) x.v[v] = mul(load(state.out + i * kv.head_dim + d + v * LANES), factor);
            store16(out + d, x);
        }
    }
}

void finish(const KvLayer& kv, const AttentionTile& tile, const float* state) {
    switch (kv.kind) {
        case KvKind::fp32: return finish_of<float>(kv, tile, state);
        case KvKind::bf16: return finish_of<Bf16>(kv, tile, state);
        case KvKind::int8: return finish_of<std::int8_t>(kv, tile, state);
    }
}

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {state_size, partial, join, finish};

}  // namespace headrace::HEADRACE_ISA
