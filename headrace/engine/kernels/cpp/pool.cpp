// The thread pool: one job at a time, every thread takes its static share, spin shortly and then sleep on a futex.
#include "headrace.hpp"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <xmmintrin.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <mutex>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

namespace headrace {
namespace {

using Clock = std::chrono::steady_clock;
using Word = std::atomic<std::uint32_t>;
static_assert(sizeof(Word) == 4 && Word::is_always_lock_free, "a futex is a plain 32-bit word");

void sleep_on(Word& word, std::uint32_t seen) {
    syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void wake_all(Word& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }

// Spin until `done()` for at most SPIN_US; whether it was.
template <class Done>
bool spin(const Done& done) {
    if (done()) return true;
    const auto until = Clock::now() + std::chrono::microseconds(SPIN_US);
    do {
        for (int i = 0; i < 16; ++i) {
            if (done()) return true;
            _mm_pause();
        }
    } while (Clock::now() < until);
    return done();
}

// Denormals cost some hundred cycles each and carry nothing here; all threads must agree, or results would differ.
class FlushDenormals {
   public:
    FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved_); }

   private:
    unsigned saved_;
};

class Pool {
   public:
    int size() const { return static_cast<int>(workers_.size()) + 1; }

    void resize(int count) {
        std::lock_guard<std::mutex> lock(busy_);
        if (count == size()) return;
        stopping_ = true;
        announce();
        for (auto& worker : workers_) worker.join();
        workers_.clear();
        stopping_ = false;
        threads_ = count;
        const std::uint32_t seen = job_.load();
        for (int thread = 1; thread < count; ++thread) workers_.emplace_back([=] { serve(thread, seen); });
    }

    void run(void (*work)(void*, int, int), void* context) {
        FlushDenormals flush;
        // A second caller, or a kernel called from inside a kernel, computes alone: splits do not change results.
        std::unique_lock<std::mutex> lock(busy_, std::defer_lock);
        if (inside_ || !lock.try_lock() || workers_.empty()) {
            work(context, 0, 1);
            return;
        }
        inside_ = true;
        work_ = work;
        context_ = context;
        unfinished_.store(static_cast<std::uint32_t>(workers_.size()), std::memory_order_relaxed);
        announce();
        work(context, 0, threads_);
        const auto all_done = [this] { return unfinished_.load(std::memory_order_acquire) == 0; };
        if (!spin(all_done)) {
            caller_sleeps_.store(true);
            for (std::uint32_t left; (left = unfinished_.load()) != 0;) sleep_on(unfinished_, left);
            caller_sleeps_.store(false);
        }
        inside_ = false;
    }

    // In a forked child there are no workers: forget them without joining.
    void forget() {
        for (auto& worker : workers_) worker.detach();
        new (&workers_) std::vector<std::thread>();
        new (&busy_) std::mutex();
        threads_ = 1;
    }

   private:
    void announce() {
        job_.fetch_add(1);
        if (sleepers_.load() > 0) wake_all(job_);
    }

    void serve(int thread, std::uint32_t seen) {
        FlushDenormals flush;
        inside_ = true;
        for (;;) {
            while (!spin([&] { return job_.load(std::memory_order_acquire) != seen; })) {
                sleepers_.fetch_add(1);
                sleep_on(job_, seen);  // returns at once when there has been a job since
                sleepers_.fetch_sub(1);
            }
            ++seen;
            if (stopping_) return;
            work_(context_, thread, threads_);
            if (unfinished_.fetch_sub(1) == 1 && caller_sleeps_.load()) wake_all(unfinished_);
        }
    }

    std::mutex busy_;
    std::vector<std::thread> workers_;
    int threads_ = 1;
    bool stopping_ = false;
    void (*work_)(void*, int, int) = nullptr;
    void* context_ = nullptr;
    // Each on its own cache line: the workers poll one while the caller writes another.
    alignas(64) Word job_{0};
    alignas(64) Word unfinished_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::atomic<bool> caller_sleeps_{false};
    static thread_local bool inside_;
};

thread_local bool Pool::inside_ = false;

// Never destroyed: workers may be asleep in it when the process ends.
Pool& pool() {
    static Pool& instance = []() -> Pool& {
        static Pool* made = new Pool();
        pthread_atfork(nullptr, nullptr, [] { made->forget(); });
        return *made;
    }();
    return instance;
}

struct Buffer {
    void* data = nullptr;
    std::size_t size = 0;
    ~Buffer() { std::free(data); }
};

}  // namespace

int num_threads() { return pool().size(); }

void set_num_threads(int count) {
    if (count < 1 || count > 1024) throw std::invalid_argument("the number of threads must be between 1 and 1024");
    pool().resize(count);
}

void run_parallel(void (*work)(void*, int, int), void* context) { pool().run(work, context); }

void run_alone(void (*work)(void*, int, int), void* context) {
    FlushDenormals flush;
    work(context, 0, 1);
}

void* scratch(std::size_t bytes) {
    thread_local Buffer buffer;
    if (buffer.size < bytes) {
        const std::size_t size = (bytes + bytes / 4 + 4095) / 4096 * 4096;
        std::free(buffer.data);
        buffer.data = nullptr;
        buffer.size = 0;
        buffer.data = std::aligned_alloc(4096, size);
        if (buffer.data == nullptr) throw std::bad_alloc();
        buffer.size = size;
    }
    return buffer.data;
}

}  // namespace headrace
