#include "sample.hpp"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

HEADRACE_DISPATCH(SampleKernels, sample_kernels)

namespace nb = nanobind;

namespace headrace {
namespace {

// splitmix64's mixing (Steele, Lea, Flood 2014); sampler.uniform is the same in Python.
std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

double uniform(std::uint64_t seed, std::uint64_t position) {
    const std::uint64_t mixed = mix(mix(seed) + 0x9E3779B97F4A7C15u * (position + 1));
    return static_cast<double>(mixed >> 12) / static_cast<double>(1ull << 52);
}

struct Choice {
    float temperature;
    std::int64_t top_k;  // the vocabulary's size: off
    double top_p;        // 1: off
    float min_p;         // 0: off
    double number;       // in [0, 1)
};

// Buffers of one thread for a vocabulary.
struct Room {
    std::vector<float> weights, scaled, kept, sorted;
    std::vector<std::int32_t> ids;
    std::vector<double> sums;
    void fit(std::int64_t vocab) {
        const std::size_t size = static_cast<std::size_t>(vocab) + 64;
        if (weights.size() >= size) return;
        weights.resize(size);
        scaled.resize(size);
        kept.resize(size);
        ids.resize(size);
        sums.resize(size / SUM_BLOCK + 2);
    }
};

// A value of a candidate, as a whole number that grows while the value falls from 0.
std::uint32_t depth_of(float scaled) {
    const float size = scaled < 0 ? -scaled : 0.0f;
    std::uint32_t bits;
    std::memcpy(&bits, &size, 4);
    return bits;
}

// The largest value at which `stop(count, mass)` of the candidates at and above it holds; -inf where it never does.  Candidates
// are added up in buckets of their values' leading bits, then those of the bucket in which it comes to hold by the bits that
// follow: nothing is sorted, and the time does not depend on how flat the values lie.
template <class Stop>
float threshold(const Room& room, std::int64_t count, const Stop& stop) {
    struct Candidate {
        std::uint32_t depth;
        float scaled, weight;
    };
    static thread_local std::vector<Candidate> inside;
    static thread_local std::vector<std::int32_t> counts(1 << 11);
    static thread_local std::vector<double> masses(1 << 11);
    inside.clear();
    for (std::int64_t i = 0; i < count; ++i)
        inside.push_back({depth_of(room.scaled[i]), room.scaled[i], room.kept[i]});
    std::int64_t before = 0;
    double mass = 0;
    float reached = -std::numeric_limits<float>::infinity();
    for (const auto& [shift, bits] : {std::pair{20, 11}, std::pair{10, 10}, std::pair{0, 10}}) {
        const std::uint32_t buckets = 1u << bits;
        std::fill_n(counts.begin(), buckets, 0);
        std::fill_n(masses.begin(), buckets, 0.0);
        for (const Candidate& each : inside) {
            const std::uint32_t bucket = each.depth >> shift & (buckets - 1);
            ++counts[bucket];
            masses[bucket] += each.weight;
        }
        std::uint32_t chosen = buckets, last = buckets;
        for (std::uint32_t bucket = 0; bucket < buckets && chosen == buckets; ++bucket) {
            if (counts[bucket] == 0) continue;
            last = bucket;
            if (stop(before + counts[bucket], mass + masses[bucket])) {
                chosen = bucket;
            } else {
                before += counts[bucket];
                mass += masses[bucket];
            }
        }
        if (chosen == buckets) {
            if (shift == 20) return reached;  // all of them are not enough
            // The whole bucket was enough, its parts add up to a little less: rounding.  The last part it is.
            chosen = last;
        }
        std::size_t kept = 0;
        for (const Candidate& each : inside)
            if ((each.depth >> shift & (buckets - 1)) == chosen) inside[kept++] = each;
        inside.resize(kept);
        reached = inside.front().scaled;
        if (kept == 1) break;
    }
    return reached;
}

std::int64_t choose(const float* x, std::int64_t vocab, const Choice& choice, Room& room) {
    const SampleKernels& kernels = sample_kernels();
    const float most = x[kernels.largest(x, vocab)];
    kernels.weigh(x, vocab, most, choice.temperature, room.weights.data(), room.sums.data());
    const std::int64_t blocks = (vocab + SUM_BLOCK - 1) / SUM_BLOCK;
    double total = 0;
    for (std::int64_t b = 0; b < blocks; ++b) total += room.sums[b];

    const bool has_k = choice.top_k < vocab, has_p = choice.top_p < 1.0, has_min = choice.min_p > 0.0f;
    if (!has_k && !has_p && !has_min) {
        const double goal = choice.number * total;
        double sum = 0;
        std::int64_t last = 0;
        for (std::int64_t b = 0; b < blocks; ++b) {
            if (sum + room.sums[b] <= goal) {
                sum += room.sums[b];
                continue;
            }
            const std::int64_t end = std::min<std::int64_t>(vocab, (b + 1) * SUM_BLOCK);
            for (std::int64_t i = b * SUM_BLOCK; i < end; ++i) {
                if (room.weights[i] <= 0.0f) continue;
                sum += room.weights[i];
                last = i;
                if (sum > goal) return i;
            }
        }
        return last;  // a block's own rounding: its last token
    }

    // Candidates: everything that can survive.  Most of a vocabulary cannot, so a cut is looked for that leaves few and enough.
    float cut = -std::numeric_limits<float>::infinity();
    if (has_min) {
        cut = std::log(choice.min_p);
    } else {
        const float cuts[CUTS] = {-2.0f, -4.0f, -6.0f, -8.0f, -11.0f, -16.0f, -24.0f, -48.0f};
        std::int64_t counts[CUTS];
        double masses[CUTS];
        kernels.survey(x, room.weights.data(), vocab, most, choice.temperature, cuts, counts, masses);
        for (int c = 0; c < CUTS; ++c) {
            // With top-k the nucleus is one of the k only.  Masses are sums in fp32, so they decide with a margin.
            if (has_k ? counts[c] >= choice.top_k : masses[c] * (1.0 - 1e-4) > choice.top_p * total) {
                cut = cuts[c];
                break;
            }
        }
    }
    const std::int64_t count = kernels.gather(x, room.weights.data(), vocab, most, choice.temperature, cut,
                                              room.scaled.data(), room.kept.data(), room.ids.data());
    float kth = -std::numeric_limits<float>::infinity();
    if (has_k && count > choice.top_k)
        kth = threshold(room, count, [&](std::int64_t n, double) { return n >= choice.top_k; });
    float nucleus = -std::numeric_limits<float>::infinity();
    if (has_p) {
        if (has_k || has_min) {
            total = 0;
            for (std::int64_t i = 0; i < count; ++i)
                if (room.scaled[i] >= kth) total += room.kept[i];
        }
        const double enough = choice.top_p * total;
        nucleus = threshold(room, count, [&](std::int64_t, double mass) { return mass >= enough; });
    }
    const float limit = std::max(kth, nucleus);
    double sum = 0;
    for (std::int64_t i = 0; i < count; ++i)
        if (room.scaled[i] >= limit) sum += room.kept[i];
    const double goal = choice.number * sum;
    sum = 0;
    std::int64_t last = room.ids[0];
    for (std::int64_t i = 0; i < count; ++i) {
        if (room.scaled[i] < limit || room.kept[i] <= 0.0f) continue;
        sum += room.kept[i];
        last = room.ids[i];
        if (sum > goal) return last;
    }
    return last;
}

// Rows of logits: greedy where the temperature is 0.
void sample(Address logits, std::int64_t stride, std::int64_t rows, std::int64_t vocab, Address temperatures,
            Address top_ks, Address top_ps, Address min_ps, Address seeds, Address positions, Address tokens) {
    parallel([&](int thread, int threads) {
        static thread_local Room room;
        const Range mine = share(rows, thread, threads);
        for (std::int64_t row = mine.begin; row < mine.end; ++row) {
            const float* x = at<const float>(logits) + row * stride;
            const float temperature = at<const float>(temperatures)[row];
            std::int64_t& token = at<std::int64_t>(tokens)[row];
            if (temperature <= 0.0f) {
                token = sample_kernels().largest(x, vocab);
                continue;
            }
            room.fit(vocab);
            const std::int64_t top_k = at<const std::int64_t>(top_ks)[row];
            token = choose(x, vocab,
                           {temperature, top_k > 0 && top_k < vocab ? top_k : vocab, at<const double>(top_ps)[row],
                            at<const float>(min_ps)[row],
                            uniform(at<const std::uint64_t>(seeds)[row], at<const std::uint64_t>(positions)[row])},
                           room);
        }
    });
}

// Row by row: log-probability and rank of a token, and the `width` most likely ones, the lower id first among equals.
void describe(Address logits, std::int64_t stride, std::int64_t rows, std::int64_t vocab, Address tokens,
              std::int64_t width, Address logprobs, Address ranks, Address top_ids, Address top_logprobs) {
    width = std::min(width, vocab);
    parallel([&](int thread, int threads) {
        const SampleKernels& kernels = sample_kernels();
        const Range mine = share(rows, thread, threads);
        std::vector<std::pair<float, std::int64_t>> best;
        for (std::int64_t row = mine.begin; row < mine.end; ++row) {
            const float* x = at<const float>(logits) + row * stride;
            const float most = x[kernels.largest(x, vocab)];
            const double norm = static_cast<double>(most) + std::log(kernels.sum_exp(x, vocab, most));
            const float own = x[at<const std::int64_t>(tokens)[row]];
            at<float>(logprobs)[row] = static_cast<float>(own - norm);
            at<std::int64_t>(ranks)[row] = kernels.count_above(x, vocab, own) + 1;
            best.clear();
            for (std::int64_t i = 0; i < vocab && width > 0; ++i) {
                if (static_cast<std::int64_t>(best.size()) == width && !(x[i] > best.back().first)) continue;
                if (static_cast<std::int64_t>(best.size()) == width) best.pop_back();
                auto place = best.end();
                while (place != best.begin() && (place - 1)->first < x[i]) --place;
                best.insert(place, {x[i], i});
            }
            for (std::int64_t i = 0; i < width; ++i) {
                at<std::int64_t>(top_ids)[row * width + i] = best[i].second;
                at<float>(top_logprobs)[row * width + i] = static_cast<float>(best[i].first - norm);
            }
        }
    });
}

void mask_row(Address logits, std::int64_t vocab, Address bits) {
    sample_kernels().mask(at<float>(logits), vocab, at<const std::uint8_t>(bits));
}

}  // namespace

void bind_sample(nb::module_& module) {
    using Release = nb::call_guard<nb::gil_scoped_release>;
    module.def("uniform", &uniform, nb::arg("seed"), nb::arg("position"), "As sampler.uniform.");
    module.def("sample", &sample, nb::arg("logits"), nb::arg("stride"), nb::arg("rows"), nb::arg("vocab"),
               nb::arg("temperatures"), nb::arg("top_ks"), nb::arg("top_ps"), nb::arg("min_ps"), nb::arg("seeds"),
               nb::arg("positions"), nb::arg("tokens"), Release(),
               "Choose tokens (int64) from fp32 logits [rows, vocab]: the largest where temperatures (fp32) is 0, else by\n"
               "top_ks (int64, 0: off), top_ps (fp64), min_ps (fp32) and the number of (seeds, positions) (uint64).");
    module.def("describe", &describe, nb::arg("logits"), nb::arg("stride"), nb::arg("rows"), nb::arg("vocab"),
               nb::arg("tokens"), nb::arg("width"), nb::arg("logprobs"), nb::arg("ranks"), nb::arg("top_ids"),
               nb::arg("top_logprobs"), Release(),
               "Log-probabilities (fp32) and ranks (int64) of tokens (int64), and the `width` most likely of each row.");
    module.def("mask_row", &mask_row, nb::arg("logits"), nb::arg("vocab"), nb::arg("bits"), Release(),
               "-inf where the bit of a token is not set.");
}

}  // namespace headrace
