#include "cpu/threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "cpu/interrupt.h"
#include "cpu/openmp.h"

namespace alphafuse {
namespace {

constexpr std::chrono::milliseconds kBetweenQuestions{100};

thread_local Interruptible* current_call = nullptr;

struct Job {
  void (*task)(void*, int64_t);
  void* context;
  int64_t tasks;
  Interruptible* call;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  void work() {
    Interruptible* const before = std::exchange(current_call, call);
    run();
    current_call = before;
  }

 private:
  void run() {
    for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) {
      try {
        check_interrupt();
        task(context, i);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
        next.store(tasks);
      }
    }
  }
};

// A thread that sleeps takes tens of microseconds to wake, as long as a small call takes: who waits
// looks around for so long first, and lets others run meanwhile, such as PyTorch's own threads. Calls
// of a training step or of a server follow each other.
constexpr std::chrono::microseconds kLookAround{200};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
bool holds_soon(const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + kLookAround;
  do {
    for (int i = 0; i < 64; ++i) {
      if (condition()) return true;
      pause();
    }
    sched_yield();
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

class Pool {
 public:
  // Not to be called by two threads at once: `busy` below sees to that.
  void run(Job& job, int workers) {
    while (static_cast<int>(threads_.size()) < workers) {
      const int index = static_cast<int>(threads_.size());
      threads_.emplace_back([this, index] { serve(index); });
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      wanted_ = workers;
      running_.store(workers);
      round_.fetch_add(1);
    }
    wake_.notify_all();
    job.work();
    const auto all_done = [this] { return running_.load() == 0; };
    if (holds_soon(all_done)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, all_done);
  }

 private:
  [[noreturn]] void serve(int index) {
    uint64_t seen = 0;
    for (;;) {
      Job* job;
      const auto called = [&] { return round_.load() != seen; };
      holds_soon(called);
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, called);
        seen = round_.load();
        if (index >= wanted_) continue;
        job = job_;
      }
      job->work();
      std::lock_guard<std::mutex> lock(mutex_);
      if (running_.fetch_sub(1) == 1) done_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int wanted_ = 0;
  std::atomic<int> running_{0};
  std::atomic<uint64_t> round_{0};
};

// Never destroyed: its threads must not meet a dead mutex while the process exits.
Pool* pool = nullptr;
std::atomic<bool> busy{false}, forked{false};
std::atomic<int64_t> work_of_thread{1 << 17};

// A forked child has none of its parent's threads, neither of the pool, which is left as it is, nor of
// OpenMP, whoever has called those.
void forget_threads() {
  pool = nullptr;
  busy.store(false);
  forked.store(true);
}
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, forget_threads);

struct Release {
  ~Release() { busy.store(false); }
};

}  // namespace

Interruptible::Interruptible(bool (*asked)())
    : asked_(asked),
      caller_(std::this_thread::get_id()),
      next_(std::chrono::steady_clock::now() + kBetweenQuestions),
      outer_(std::exchange(current_call, this)) {}

Interruptible::~Interruptible() { current_call = outer_; }

void Interruptible::check() {
  if (ended_.load(std::memory_order_relaxed)) throw Interrupted();
  if (std::this_thread::get_id() != caller_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now < next_) return;
  next_ = now + kBetweenQuestions;
  if (!asked_()) return;
  ended_.store(true, std::memory_order_relaxed);
  throw Interrupted();
}

void check_interrupt() {
  if (current_call != nullptr) current_call->check();
}

int threads_for(int64_t multiply_adds, int threads) {
  const int64_t enough = multiply_adds / work_of_thread.load(std::memory_order_relaxed);
  return static_cast<int>(std::clamp<int64_t>(enough, 1, std::max(threads, 1)));
}

void set_work_of_thread(int64_t multiply_adds) {
  work_of_thread.store(std::max<int64_t>(multiply_adds, 1));
}

void run_tasks(int64_t tasks, int threads, void (*task)(void*, int64_t), void* context) {
  const int64_t helpers = (tasks < threads ? tasks : threads) - 1;
  if (helpers < 1 || busy.exchange(true)) {
    for (int64_t i = 0; i < tasks; ++i) {
      check_interrupt();
      task(context, i);
    }
    return;
  }
  Release release_when_done;
  static const OpenMP openmp = find_openmp();
  Job job{task, context, tasks, current_call, {}, {}, nullptr};
  if (openmp != nullptr && !forked.load()) {
    openmp([](void* of) { static_cast<Job*>(of)->work(); }, &job,
           static_cast<unsigned>(helpers) + 1, 0);
  } else {
    if (pool == nullptr) pool = new Pool;
    pool->run(job, static_cast<int>(helpers));
  }
  if (job.failed.load()) std::rethrow_exception(job.error);
}

}  // namespace alphafuse
