// The compiled twin of core/scheduler.py, core/policy.py and core/blocks.py, with stepwise.py's loop around it.
//
// Every decision and every nanosecond must equal those of the Python loop (tests/lab/sim/test_fast.py): change one,
// change the other.  Function names are those of core.  Two things are different:
//   * without the prefix cache blocks are only counted, and with it their keys are numbers instead of digests:
//     lengths stand for texts, so a block's content is known from its request (or shared prefix) and position;
//   * a run of steps that only decode, in which nobody can be admitted, ends or runs out of blocks, is taken in one
//     jump: per step only its cost is evaluated, and all sequences advance together at the end.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <queue>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace nb = nanobind;
using i64 = std::int64_t;
using u64 = std::uint64_t;
using std::vector;

namespace {

constexpr i64 NEVER = -1;
enum Status : i64 { OK = 0, REFUSED = 1, DROPPED = 2 };
enum class Phase { WAITING, RUNNING, FINISHED };
enum class Policy { V1, V1_WHOLE, V0, V0_CHUNKED };
enum class HashAt { PLAN, AFTER_PLAN, AFTER_STEP };
enum class Room { NOW, LATER, NEVER };

struct Config {
    Policy policy;
    i64 budget, seats, max_len, block_size, num_blocks, threshold, watermark;
    bool cached, fcfs, reserve_full;
    HashAt hash_at;
};

struct Cost {
    double base, token, kv_token, floor, pair, sequence, row, decode_only;
    vector<std::pair<double, double>> knots;
};

struct Shape {
    i64 tokens = 0, prefill = 0, decodes = 0, kv = 0, pairs = 0, rows = 0, sequences = 0;
};

struct Seq {
    i64 prompt, limit, num_tokens, prefill_length, computed = 0, priority, order = 0;
    i64 prefix_group, prefix_tokens;
    i64 num_blocks = 0;           // held
    vector<int> table;            // their ids, with the prefix cache only
    i64 num_published = 0;
    Phase phase = Phase::WAITING;
    i64 run_first = 0, run_count = 0;  // the run of tokens under way
};

struct Chunk {
    i64 seq, start, length;
    bool samples;
};

i64 div_up(i64 a, i64 b) { return (a + b - 1) / b; }

// Python's bisect over the knots, and its arithmetic in the same order.
double curve(const Cost& c, i64 tokens) {
    auto at = std::upper_bound(c.knots.begin(), c.knots.end(), static_cast<double>(tokens),
                               [](double x, const std::pair<double, double>& k) { return x < k.first; });
    i64 i = std::min<i64>(std::max<i64>(at - c.knots.begin() - 1, 0), static_cast<i64>(c.knots.size()) - 2);
    const auto& [x0, y0] = c.knots[i];
    const auto& [x1, y1] = c.knots[i + 1];
    return y0 + (y1 - y0) * ((static_cast<double>(tokens) - x0) / (x1 - x0));
}

i64 to_ns(double seconds) { return std::max<i64>(0, std::llrint(seconds * 1e9)); }

// StepCost.seconds for steps that differ in `kv` alone: the same expression in the same order.  A term that is zero
// changes no bit of a sum.
class StepTimes {
  public:
    StepTimes(const Cost& c, const Shape& s)
        : kv_(c.kv_token), pair_(c.pair * static_cast<double>(s.pairs)),
          sequence_(c.sequence * static_cast<double>(s.sequences)), row_(c.row * static_cast<double>(s.rows)),
          decode_only_(s.prefill == 0 ? c.decode_only : 0.0) {
        double work = c.knots.empty() ? c.token * static_cast<double>(s.tokens) : curve(c, s.tokens);
        base_ = c.base + (work > c.floor ? work : c.floor);
    }

    i64 ns(i64 kv) const {
        double t = base_ + kv_ * static_cast<double>(kv);
        t += pair_;
        t += sequence_;
        t += row_;
        t += decode_only_;
        return to_ns(t);
    }

  private:
    double base_, kv_, pair_, sequence_, row_, decode_only_;
};

i64 cost_ns(const Cost& c, const Shape& s) { return StepTimes(c, s).ns(s.kv); }

// core/blocks.py.
class Blocks {
  public:
    Blocks(const Config& config) : config_(config), free_(config.num_blocks) {
        if (!config.cached) return;
        refs_.assign(config.num_blocks, 0);
        keys_.assign(config.num_blocks, 0);
        place_.resize(config.num_blocks);
        for (i64 id = config.num_blocks - 1; id >= 0; --id) blank_.push_back(static_cast<int>(id));
    }

    i64 num_free() const { return config_.cached ? static_cast<i64>(blank_.size() + findable_.size()) : free_; }
    i64 blocks_for(i64 tokens) const { return div_up(tokens, config_.block_size); }

    Room room(i64 tokens) const {
        i64 need = blocks_for(tokens);
        if (config_.num_blocks - need < config_.watermark) return Room::NEVER;
        return num_free() - need < config_.watermark ? Room::LATER : Room::NOW;
    }

    vector<int> lookup(i64 id, const Seq& s, bool whole) const {
        vector<int> hits;
        if (!config_.cached) return hits;
        i64 most = (s.num_tokens - (whole ? 0 : 1)) / config_.block_size;
        for (i64 i = 0; i < most; ++i) {
            auto found = by_key_.find(key(id, s, i));
            if (found == by_key_.end()) break;
            hits.push_back(found->second);
        }
        return hits;
    }

    bool grow(Seq& s, i64 tokens, const vector<int>& reuse = {}, i64 whole = 0, i64 keep = 0) {
        i64 held = s.num_blocks + static_cast<i64>(reuse.size());
        i64 need = blocks_for(tokens) - held;
        i64 revived = 0;
        for (int block : reuse) revived += refs_[block] == 0;
        if (std::max(need, blocks_for(whole) - held) + revived + keep > num_free()) return false;
        if (!reuse.empty()) {
            for (int block : reuse) {
                if (refs_[block] == 0) findable_.erase(place_[block]);
                ++refs_[block];
            }
            s.table.insert(s.table.end(), reuse.begin(), reuse.end());
            s.num_published = static_cast<i64>(reuse.size());
            s.num_blocks = held;
        }
        if (need > 0) {
            s.num_blocks += need;
            free_ -= need;
            if (config_.cached)
                for (i64 i = 0; i < need; ++i) s.table.push_back(take());
        }
        return true;
    }

    void publish(i64 id, Seq& s, i64 tokens) {
        i64 full = tokens / config_.block_size;
        for (i64 i = s.num_published; i < full; ++i) {
            int block = s.table[i];
            u64 k = key(id, s, i);
            keys_[block] = k;
            if (by_key_.emplace(k, block).first->second != block) twins_[k].push_back(block);
        }
        s.num_published = std::max(s.num_published, full);
    }

    void retract(Seq& s, i64 start) {
        if (!config_.cached) return;
        i64 first = start / config_.block_size;
        for (i64 i = first; i < static_cast<i64>(s.table.size()); ++i) forget(s.table[i]);
        s.num_published = std::min(s.num_published, first);
    }

    void free(Seq& s) {
        free_ += s.num_blocks;
        s.num_blocks = 0;
        for (auto block = s.table.rbegin(); block != s.table.rend(); ++block) {
            if (--refs_[*block] > 0) continue;
            if (keys_[*block] == 0)
                blank_.push_back(*block);
            else
                place_[*block] = findable_.insert(findable_.end(), *block);
        }
        s.table.clear();
        s.num_published = 0;
    }

    // For a jump: blocks taken by all decodes together.
    void take_counted(i64 blocks) { free_ -= blocks; }

  private:
    // What block i of a request holds: its own tokens, or those of the shared prefix when they fill it.  Never 0.
    u64 key(i64 id, const Seq& s, i64 i) const {
        bool shared = (i + 1) * config_.block_size <= s.prefix_tokens;
        u64 owner = shared ? (u64{1} << 31 | static_cast<u64>(s.prefix_group)) : static_cast<u64>(id);
        return (owner + 1) << 32 | static_cast<u64>(i);
    }

    int take() {
        int block;
        if (!blank_.empty()) {
            block = blank_.back();
            blank_.pop_back();
        } else {
            block = findable_.front();
            findable_.pop_front();
            forget(block);
        }
        refs_[block] = 1;
        return block;
    }

    void forget(int block) {
        u64 k = keys_[block];
        if (k == 0) return;
        keys_[block] = 0;
        auto twins = twins_.find(k);
        auto first = by_key_.find(k);
        if (first->second != block) {
            auto& others = twins->second;
            others.erase(std::find(others.begin(), others.end(), block));
        } else if (twins != twins_.end()) {
            first->second = twins->second.front();
            twins->second.erase(twins->second.begin());
        } else {
            by_key_.erase(first);
        }
        if (twins != twins_.end() && twins->second.empty()) twins_.erase(twins);
    }

    const Config& config_;
    i64 free_;
    vector<int> refs_;
    vector<u64> keys_;
    vector<int> blank_;
    std::list<int> findable_;
    vector<std::list<int>::iterator> place_;
    std::unordered_map<u64, int> by_key_;
    std::unordered_map<u64, vector<int>> twins_;
};

// Columns of Outcome.segments, in the order of outcome.SEGMENT_COLUMNS.
constexpr i64 SEGMENT_COLUMNS = 12;

struct Result {
    vector<i64> sent, queued, scheduled, ended, status, preemptions, segments, ends, used, runs;
    vector<i64> log;  // decisions, when asked for: see `note`
};

class Simulation {
  public:
    Simulation(const Config& config, const Cost& cost, i64 delay_ns, i64 each_ns, i64 max_concurrency, bool log,
               bool jumps, const i64* planned, const i64* prompt, const i64* output, const i64* max_tokens,
               const i64* priority, const i64* group, const i64* prefix, i64 count)
        : config_(config), cost_(cost), delay_(delay_ns), each_(each_ns), log_(log), jumps_(jumps), blocks_(config_),
          planned_(planned), max_tokens_(max_tokens), count_(count), limited_(max_concurrency > 0) {
        seqs_.resize(count);
        for (i64 i = 0; i < count; ++i) {
            Seq& s = seqs_[i];
            s.prompt = s.num_tokens = s.prefill_length = prompt[i];
            s.limit = prompt[i] + output[i];
            s.priority = priority[i];
            s.prefix_group = group[i];
            s.prefix_tokens = prefix[i];
        }
        for (i64 i = 0; i < max_concurrency; ++i) slots_.push(0);
        for (auto* column : {&out_.sent, &out_.queued, &out_.scheduled, &out_.ended}) column->assign(count, NEVER);
        out_.status.assign(count, OK);
        out_.preemptions.assign(count, 0);
        runs_.resize(count);
    }

    Result run() {
        while (done_ < count_) {
            arrive();
            if (!running_.empty() || num_waiting() > 0) {
                if (!(jumps_ && jump())) step();
            } else if (done_ < count_) {
                now_ = std::max(now_, next_arrival());
            }
        }
        i64 total = 0;
        for (const auto& runs : runs_) total += static_cast<i64>(runs.size());
        out_.runs.reserve(static_cast<size_t>(3 * total));
        for (i64 i = 0; i < count_; ++i)
            for (const auto& [first, length] : runs_[i]) out_.runs.insert(out_.runs.end(), {i, first, length});
        return std::move(out_);
    }

  private:
    // -- the client and the front end (stepwise._Loop) ----------------------------------------------------------------

    void arrive() {
        while (next_ < count_ && planned_[next_] <= now_) {
            i64 free = 0;
            if (limited_) {
                if (slots_.empty() || slots_.top() > now_) break;
                free = slots_.top();
                slots_.pop();
            }
            send(next_, std::max(planned_[next_], free));
            ++next_;
        }
        while (!entering_.empty() && out_.queued[entering_.front()] <= now_) {
            i64 id = entering_.front();
            entering_.pop_front();
            seqs_[id].order = added_++;
            add_waiting(id);
        }
    }

    void send(i64 id, i64 at) {
        out_.sent[id] = at;
        front_free_ = std::max(at, front_free_) + each_;
        i64 queued = front_free_ + delay_;
        i64 longest = seqs_[id].prompt + max_tokens_[id];
        if (longest > config_.max_len || blocks_.blocks_for(longest) > config_.num_blocks) {
            out_.status[id] = REFUSED;
            end(id, queued);
        } else {
            out_.queued[id] = queued;
            entering_.push_back(id);
        }
    }

    i64 next_arrival() const {
        i64 best = INT64_MAX;
        if (!entering_.empty()) best = out_.queued[entering_.front()];
        if (next_ < count_ && !(limited_ && slots_.empty()))
            best = std::min(best, std::max(planned_[next_], limited_ ? slots_.top() : 0));
        return best;
    }

    void end(i64 id, i64 at) {
        out_.ended[id] = at;
        ++done_;
        if (limited_) slots_.push(at);
    }

    // -- core/queues.py -----------------------------------------------------------------------------------------------

    using Rank = std::tuple<i64, i64, i64>;
    Rank rank(i64 id) const { return {seqs_[id].priority, id, seqs_[id].order}; }
    i64 num_waiting() const { return static_cast<i64>(config_.fcfs ? fcfs_.size() : ranked_.size()); }
    i64 head() const { return config_.fcfs ? fcfs_.front() : std::get<1>(*ranked_.begin()); }
    void add_waiting(i64 id) {
        if (config_.fcfs)
            fcfs_.push_back(id);
        else
            ranked_.insert(rank(id));
    }
    void give_back(i64 id) {
        if (config_.fcfs)
            fcfs_.push_front(id);
        else
            ranked_.insert(rank(id));
    }
    i64 pop_waiting() {
        i64 id = head();
        if (config_.fcfs)
            fcfs_.pop_front();
        else
            ranked_.erase(ranked_.begin());
        return id;
    }

    // -- core/state.py ------------------------------------------------------------------------------------------------

    Chunk serve(i64 id, i64 length) {
        Seq& s = seqs_[id];
        i64 start = s.computed, end = s.computed = start + length;
        left_ -= length;
        if (config_.cached && config_.hash_at == HashAt::PLAN && end % config_.block_size < length)
            blocks_.publish(id, s, end);
        Chunk chunk{id, start, length, end == s.num_tokens};
        chunks_.push_back(chunk);
        return chunk;
    }

    void admit(i64 cached) {
        i64 id = pop_waiting();
        running_.push_back(id);
        admitted_.push_back(id);
        Seq& s = seqs_[id];
        s.phase = Phase::RUNNING;
        s.computed = cached;
        s.prefill_length = s.num_tokens;
    }

    void evict(i64 id) {
        Seq& s = seqs_[id];
        blocks_.free(s);
        s.computed = 0;
        s.phase = Phase::WAITING;
    }

    void drop() {
        i64 id = pop_waiting();
        seqs_[id].phase = Phase::FINISHED;
        dropped_.push_back(id);
    }

    // -- core/policy.py -----------------------------------------------------------------------------------------------

    void plan() {
        switch (config_.policy) {
            case Policy::V1:
            case Policy::V1_WHOLE:
                continue_v1();
                if (preempted_.empty()) admit_v1(config_.policy == Policy::V1_WHOLE);
                return;
            case Policy::V0:
                plan_v0();
                return;
            case Policy::V0_CHUNKED:
                plan_v0_chunked();
        }
    }

    void continue_v1() {
        i64 index = 0;
        while (index < static_cast<i64>(running_.size())) {
            if (left_ <= 0) return;
            i64 id = running_[index];
            Seq& s = seqs_[id];
            i64 length = s.num_tokens - s.computed;
            if (length > 1) {
                if (config_.threshold > 0 && config_.threshold < length) length = config_.threshold;
                length = std::min(length, left_);
            }
            if (blocks_.grow(s, s.computed + length)) {
                serve(id, length);
                ++index;
            } else {
                index = evict_for(index, length);
                if (index < 0) return;
            }
        }
    }

    i64 evict_for(i64 index, i64 length) {
        i64 id = running_[index];
        Seq& s = seqs_[id];
        while (!blocks_.grow(s, s.computed + length)) {
            i64 place = static_cast<i64>(running_.size()) - 1;
            if (!config_.fcfs)
                place = std::max_element(running_.begin(), running_.end(),
                                         [this](i64 a, i64 b) { return rank(a) < rank(b); }) -
                        running_.begin();
            i64 victim = running_[place];
            running_.erase(running_.begin() + place);
            if (place < index) {
                --index;
                withdraw(victim);
            }
            evict(victim);
            preempted_.push_back(victim);
            give_back(victim);
            if (victim == id) return -1;
        }
        serve(id, length);
        return index + 1;
    }

    void withdraw(i64 victim) {
        for (size_t i = 0; i < chunks_.size(); ++i) {
            if (chunks_[i].seq != victim) continue;
            left_ += chunks_[i].length;
            blocks_.retract(seqs_[victim], chunks_[i].start);
            chunks_.erase(chunks_.begin() + static_cast<std::ptrdiff_t>(i));
            return;
        }
    }

    void admit_v1(bool whole) {
        while (left_ > 0 && static_cast<i64>(running_.size()) < config_.seats && num_waiting() > 0) {
            i64 id = head();
            Seq& s = seqs_[id];
            vector<int> reuse = blocks_.lookup(id, s, false);
            i64 cached = static_cast<i64>(reuse.size()) * config_.block_size;
            i64 length = s.num_tokens - cached;
            if (config_.threshold > 0 && config_.threshold < length) length = config_.threshold;
            if (length > left_) {
                if (whole) return;
                length = left_;
            }
            if (!blocks_.grow(s, cached + length, reuse, config_.reserve_full ? s.num_tokens : 0,
                              running_.empty() ? 0 : config_.watermark))
                return;
            admit(cached);
            serve(id, length);
        }
    }

    void admit_v0(i64 seats, bool chunking) {
        i64 rounding = config_.cached ? config_.block_size : 1;
        i64 limit = chunking ? config_.max_len : std::min(config_.max_len, config_.budget);
        while (num_waiting() > 0) {
            i64 id = head();
            Seq& s = seqs_[id];
            vector<int> reuse = blocks_.lookup(id, s, true);
            i64 cached = std::min(static_cast<i64>(reuse.size()) * config_.block_size, s.num_tokens - 1);
            i64 length = s.num_tokens - cached;
            if (chunking) length = std::min(length, left_ - left_ % rounding);
            if (cached + length > limit) {
                drop();
                continue;
            }
            Room room = blocks_.room(s.num_tokens);
            if (room == Room::NEVER) {
                drop();
                continue;
            }
            if (room == Room::LATER || length <= 0 || length > left_ || seats < 1) return;
            blocks_.grow(s, s.num_tokens, reuse);
            admit(cached);
            serve(id, length);
            --seats;
        }
    }

    // Serves `running_` from the front; leaves decodes, chunks, left-overs and evicted ones in the members below.
    void serve_v0(bool chunking) {
        i64 rounding = config_.cached ? config_.block_size : 1;
        decodes_.clear();
        prompts_.clear();
        evicted_.clear();
        size_t first = 0, last = running_.size();
        while (first < last) {
            i64 id = running_[first];
            Seq& s = seqs_[id];
            i64 length = s.num_tokens - s.computed;
            if (chunking) {
                length = std::min(length, left_ - left_ % rounding);
                if (length == 0) break;
            }
            ++first;
            bool is_prefill = s.computed < s.prefill_length;
            while (blocks_.num_free() == 0) {
                i64 victim = id;
                if (last > first)
                    victim = running_[--last];
                else if (is_prefill && first == 1)
                    break;
                evict(victim);
                evicted_.push_back(victim);
                if (victim == id) break;
            }
            if (s.phase != Phase::RUNNING) continue;
            blocks_.grow(s, s.computed + length);
            Chunk chunk = serve(id, length);
            (is_prefill ? prompts_ : decodes_).push_back(chunk);
        }
        preempted_.insert(preempted_.end(), evicted_.begin(), evicted_.end());
        left_over_.assign(running_.begin() + static_cast<std::ptrdiff_t>(first),
                          running_.begin() + static_cast<std::ptrdiff_t>(last));
    }

    void plan_v0() {
        admit_v0(config_.seats - static_cast<i64>(running_.size()), false);
        if (!chunks_.empty()) return;
        if (!config_.fcfs) make_way();
        serve_v0(false);
        running_ = left_over_;
        for (const Chunk& chunk : decodes_) running_.push_back(chunk.seq);
        for (i64 id : evicted_) give_back(id);
    }

    void plan_v0_chunked() {
        serve_v0(true);
        running_ = left_over_;
        for (const Chunk& chunk : decodes_) running_.push_back(chunk.seq);
        for (const Chunk& chunk : prompts_)
            if (chunk.samples) running_.push_back(chunk.seq);
        for (const Chunk& chunk : prompts_)
            if (!chunk.samples) running_.push_back(chunk.seq);
        chunks_.clear();
        admit_v0(config_.seats - static_cast<i64>(decodes_.size() + prompts_.size()), true);
        chunks_.insert(chunks_.end(), prompts_.begin(), prompts_.end());
        chunks_.insert(chunks_.end(), decodes_.begin(), decodes_.end());
        for (i64 id : evicted_) give_back(id);
    }

    void make_way() {
        std::sort(running_.begin(), running_.end(), [this](i64 a, i64 b) { return rank(a) < rank(b); });
        if (num_waiting() == 0) return;
        i64 first = head();
        while (!running_.empty() && rank(running_.back()) > rank(first)) {
            if (blocks_.room(seqs_[first].num_tokens) == Room::NOW &&
                static_cast<i64>(running_.size()) < config_.seats)
                break;
            i64 victim = running_.back();
            running_.pop_back();
            evict(victim);
            preempted_.push_back(victim);
            give_back(victim);
        }
    }

    // -- core/scheduler.py and stepwise._Loop._step -------------------------------------------------------------------

    void step() {
        bool had_work = !running_.empty() || num_waiting() > 0;
        chunks_.clear();
        admitted_.clear();
        preempted_.clear();
        dropped_.clear();
        left_ = config_.budget;
        plan();
        if (config_.cached && config_.hash_at == HashAt::AFTER_PLAN) publish_chunks();
        idle_ = had_work && chunks_.empty() && dropped_.empty() ? idle_ + 1 : 0;
        if (idle_ > (preempted_.empty() ? 0 : 1)) throw std::runtime_error("no progress: nothing can be scheduled");
        Shape shape;
        for (const Chunk& c : chunks_) {
            shape.tokens += c.length;
            shape.rows += c.samples;
            if (c.start < seqs_[c.seq].prefill_length) {
                shape.prefill += c.length;
                shape.pairs += c.length * (2 * c.start + c.length);
            } else {
                ++shape.decodes;
                shape.kv += c.start + c.length;
            }
        }
        shape.sequences = static_cast<i64>(chunks_.size());
        i64 started = now_;
        if (!chunks_.empty()) now_ += cost_ns(cost_, shape);
        i64 number = num_steps_;
        segment(1, started, shape, num_waiting(), static_cast<i64>(preempted_.size()));
        out_.ends.push_back(now_);
        out_.used.push_back(config_.num_blocks - blocks_.num_free());
        ++num_steps_;
        for (i64 id : admitted_)
            if (out_.scheduled[id] == NEVER) out_.scheduled[id] = started;
        for (i64 id : preempted_) ++out_.preemptions[id];
        if (log_) note();
        commit(number);
    }

    void publish_chunks() {
        for (const Chunk& c : chunks_) {
            Seq& s = seqs_[c.seq];
            if ((c.start + c.length) % config_.block_size < c.length && s.num_blocks > 0 && s.phase == Phase::RUNNING)
                blocks_.publish(c.seq, s, c.start + c.length);
        }
    }

    void commit(i64 number) {
        for (i64 id : dropped_) {
            out_.status[id] = DROPPED;
            end(id, now_);
        }
        if (config_.cached && config_.hash_at == HashAt::AFTER_STEP) publish_chunks();
        ended_.clear();
        for (const Chunk& c : chunks_) {
            if (!c.samples) continue;
            Seq& s = seqs_[c.seq];
            emit(c.seq, number, 1);
            if (++s.num_tokens >= s.limit) finish(c.seq);
        }
        free_ended();
    }

    void emit(i64 id, i64 number, i64 count) {
        auto& runs = runs_[id];
        if (!runs.empty() && runs.back().first + runs.back().second == number)
            runs.back().second += count;
        else
            runs.emplace_back(number, count);
    }

    void finish(i64 id) {
        seqs_[id].phase = Phase::FINISHED;
        ended_.push_back(id);
        end(id, now_);
    }

    void free_ended() {
        if (ended_.empty()) return;
        for (i64 id : ended_) blocks_.free(seqs_[id]);
        running_.erase(std::remove_if(running_.begin(), running_.end(),
                                      [this](i64 id) { return seqs_[id].phase != Phase::RUNNING; }),
                       running_.end());
    }

    // `count` steps that differ in their context alone.
    void segment(i64 count, i64 started, const Shape& s, i64 waiting, i64 preempted) {
        out_.segments.insert(out_.segments.end(),
                             {count, started, s.tokens, s.prefill, s.decodes, s.kv, s.pairs, s.rows, s.sequences,
                              static_cast<i64>(running_.size()), waiting, preempted});
    }

    // Per step: chunks (request, start, length), admitted, preempted, dropped, each after its number.
    void note() {
        out_.log.push_back(static_cast<i64>(chunks_.size()));
        for (const Chunk& c : chunks_) out_.log.insert(out_.log.end(), {c.seq, c.start, c.length});
        for (const auto* list : {&admitted_, &preempted_, &dropped_}) {
            out_.log.push_back(static_cast<i64>(list->size()));
            out_.log.insert(out_.log.end(), list->begin(), list->end());
        }
    }

    // -- jumps --------------------------------------------------------------------------------------------------------

    // Whether admission, asked now, would leave the head of `waiting` where it is, and would do so in every following
    // step that only decodes: seats and the rest of the budget stay, and free blocks only become fewer.
    bool blocked() {
        if (num_waiting() == 0) return true;
        i64 running = static_cast<i64>(running_.size()), left = config_.budget - running;
        Seq& s = seqs_[head()];
        bool v1 = config_.policy == Policy::V1 || config_.policy == Policy::V1_WHOLE;
        if (v1) {
            if (running >= config_.seats || left <= 0) return true;
            if (config_.cached) return false;  // what is found may change while others publish and evict
            i64 length = s.num_tokens;
            if (config_.threshold > 0 && config_.threshold < length) length = config_.threshold;
            if (length > left) {
                if (config_.policy == Policy::V1_WHOLE) return true;
                length = left;
            }
            i64 need = std::max(blocks_.blocks_for(length), blocks_.blocks_for(config_.reserve_full ? s.num_tokens : 0));
            return need + config_.watermark > blocks_.num_free();
        }
        if (config_.cached || !config_.fcfs) return false;
        bool chunking = config_.policy == Policy::V0_CHUNKED;
        i64 room_left = chunking ? left : config_.budget;
        i64 limit = chunking ? config_.max_len : std::min(config_.max_len, config_.budget);
        i64 length = chunking ? std::min(s.num_tokens, room_left) : s.num_tokens;
        if (length > limit) return false;
        Room room = blocks_.room(s.num_tokens);
        if (room == Room::NEVER) return false;
        return room == Room::LATER || length <= 0 || length > room_left || running >= config_.seats;
    }

    // Take as many steps at once as are sure to be alike; false when the next one is not.
    bool jump() {
        i64 n = static_cast<i64>(running_.size()), size = config_.block_size;
        if (n == 0 || n > config_.budget) return false;
        bool v0 = config_.policy == Policy::V0 || config_.policy == Policy::V0_CHUNKED;
        if (config_.cached && config_.policy == Policy::V0_CHUNKED && n > config_.budget - config_.budget % size)
            return false;  // its budget for decodes is rounded down
        if (v0 && !config_.fcfs && num_waiting() > 0) return false;
        if (!config_.fcfs && config_.policy == Policy::V0) return false;  // it sorts `running` in every step
        i64 most = INT64_MAX, kv = 0;
        need_.assign(static_cast<size_t>(size), 0);
        for (i64 id : running_) {
            const Seq& s = seqs_[id];
            i64 room = s.num_blocks * size - s.computed;  // tokens that still fit
            if (s.num_tokens - s.computed != 1 || s.computed < s.prefill_length || room >= size || room < 0)
                return false;
            ++need_[static_cast<size_t>(room)];
            most = std::min(most, s.limit - s.num_tokens);
            kv += s.num_tokens;
        }
        if (most < 2 || !blocked()) return false;
        i64 taken = 0, steps = 0, arrival = next_arrival(), first = num_steps_, started = now_;
        const i64 in_use = config_.num_blocks - blocks_.num_free();
        const i64 free = blocks_.num_free() - (v0 ? 1 : 0);  // V0 wants a free block even when it needs none
        Shape shape;
        shape.tokens = shape.decodes = shape.rows = shape.sequences = n;
        shape.kv = kv;
        const StepTimes times(cost_, shape);
        for (i64 phase = 0; steps < most; ++steps) {
            i64 need = need_[static_cast<size_t>(phase)];
            if (taken + need > free || (steps > 0 && arrival <= now_)) break;
            if (++phase == size) phase = 0;
            taken += need;
            now_ += times.ns(kv);
            kv += n;
            out_.ends.push_back(now_);
            out_.used.push_back(in_use + taken);
            if (log_) note_decodes(steps);
        }
        if (steps == 0) return false;
        segment(steps, started, shape, num_waiting(), 0);
        num_steps_ += steps;
        idle_ = 0;
        advance(steps, first, taken);
        return true;
    }

    void note_decodes(i64 step) {
        out_.log.push_back(static_cast<i64>(running_.size()));
        for (i64 id : running_) out_.log.insert(out_.log.end(), {id, seqs_[id].computed + step, 1});
        out_.log.insert(out_.log.end(), {0, 0, 0});
    }

    void advance(i64 steps, i64 first, i64 taken) {
        if (config_.cached)
            advance_cached(steps);
        else
            blocks_.take_counted(taken);
        ended_.clear();
        for (i64 id : running_) {
            Seq& s = seqs_[id];
            s.computed += steps;
            s.num_tokens += steps;
            if (!config_.cached) s.num_blocks = std::max(s.num_blocks, blocks_.blocks_for(s.computed));
            emit(id, first, steps);
            if (s.num_tokens >= s.limit) finish(id);
        }
        free_ended();
    }

    // The ids of blocks matter: hand them out and publish them in the order of the steps.
    void advance_cached(i64 steps) {
        i64 size = config_.block_size;
        for (i64 k = 1; k <= steps; ++k) {
            for (i64 id : running_) {
                Seq& s = seqs_[id];
                i64 end = s.computed + k;
                if (end > s.num_blocks * size) blocks_.grow(s, end);
                if (config_.hash_at == HashAt::PLAN && end % size == 0) blocks_.publish(id, s, end);
            }
            if (config_.hash_at == HashAt::PLAN) continue;
            for (i64 id : running_)
                if ((seqs_[id].computed + k) % size == 0) blocks_.publish(id, seqs_[id], seqs_[id].computed + k);
        }
    }

    Config config_;
    Cost cost_;
    i64 delay_, each_;
    bool log_, jumps_;
    Blocks blocks_;
    const i64 *planned_, *max_tokens_;
    i64 count_;
    bool limited_;
    vector<Seq> seqs_;
    i64 now_ = 0, next_ = 0, done_ = 0, added_ = 0, front_free_ = 0, num_steps_ = 0, idle_ = 0, left_ = 0;
    std::priority_queue<i64, vector<i64>, std::greater<i64>> slots_;
    std::deque<i64> entering_, fcfs_;
    std::set<Rank> ranked_;
    vector<i64> running_, left_over_, evicted_, ended_, admitted_, preempted_, dropped_, need_;
    vector<Chunk> chunks_, decodes_, prompts_;
    vector<vector<std::pair<i64, i64>>> runs_;
    Result out_;
};

using Column = nb::ndarray<const i64, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

nb::object as_array(vector<i64>&& values, i64 columns) {
    auto* kept = new vector<i64>(std::move(values));
    nb::capsule owner(kept, [](void* p) noexcept { delete static_cast<vector<i64>*>(p); });
    size_t rows = kept->size() / static_cast<size_t>(columns);
    if (columns == 1) return nb::cast(nb::ndarray<nb::numpy, i64, nb::ndim<1>>(kept->data(), {rows}, owner));
    return nb::cast(
        nb::ndarray<nb::numpy, i64, nb::ndim<2>>(kept->data(), {rows, static_cast<size_t>(columns)}, owner));
}

template <typename T> T choice(const std::string& name, std::initializer_list<std::pair<const char*, T>> known) {
    for (const auto& [word, value] : known)
        if (name == word) return value;
    throw std::invalid_argument("unknown name " + name);
}

nb::tuple simulate(const std::string& policy, vector<i64> sizes, bool cached, bool fcfs, bool reserve_full,
                   const std::string& hash_at, vector<double> coefficients,
                   vector<std::pair<double, double>> knots, i64 delay_ns, i64 each_ns, i64 max_concurrency,
                   Column planned, Column prompt, Column output, Column max_tokens, Column priority, Column group,
                   Column prefix, bool log, bool jumps) {
    if (sizes.size() != 7 || coefficients.size() != 8) throw std::invalid_argument("sizes or coefficients");
    Config config{choice<Policy>(policy, {{"v1", Policy::V1},
                                          {"v1-whole", Policy::V1_WHOLE},
                                          {"v0", Policy::V0},
                                          {"v0-chunked", Policy::V0_CHUNKED}}),
                  sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], cached, fcfs, reserve_full,
                  choice<HashAt>(hash_at, {{"plan", HashAt::PLAN},
                                           {"after_plan", HashAt::AFTER_PLAN},
                                           {"after_step", HashAt::AFTER_STEP}})};
    const auto& c = coefficients;
    Cost cost{c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], std::move(knots)};
    Simulation simulation(config, cost, delay_ns, each_ns, max_concurrency, log, jumps, planned.data(), prompt.data(),
                          output.data(), max_tokens.data(), priority.data(), group.data(), prefix.data(),
                          static_cast<i64>(planned.size()));
    Result r;
    {
        nb::gil_scoped_release release;
        r = simulation.run();
    }
    return nb::make_tuple(as_array(std::move(r.sent), 1), as_array(std::move(r.queued), 1),
                          as_array(std::move(r.scheduled), 1), as_array(std::move(r.ended), 1),
                          as_array(std::move(r.status), 1), as_array(std::move(r.preemptions), 1),
                          as_array(std::move(r.segments), SEGMENT_COLUMNS), as_array(std::move(r.ends), 1),
                          as_array(std::move(r.used), 1), as_array(std::move(r.runs), 3),
                          as_array(std::move(r.log), 1));
}

}  // namespace

NB_MODULE(_fast, m) { m.def("simulate", &simulate); }
