#include "cpu/threads.h"

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace alphafuse {
namespace {

struct Job {
  void (*task)(void*, int64_t);
  void* context;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  void work() {
    for (int64_t i = next.fetch_add(1); i < tasks; i = next.fetch_add(1)) {
      try {
        task(context, i);
      } catch (...) {
        if (!failed.exchange(true)) error = std::current_exception();
        next.store(tasks);
      }
    }
  }
};

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
      running_ = workers;
      ++round_;
    }
    wake_.notify_all();
    job.work();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return running_ == 0; });
  }

 private:
  [[noreturn]] void serve(int index) {
    uint64_t seen = 0;
    for (;;) {
      Job* job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return round_ != seen; });
        seen = round_;
        if (index >= wanted_) continue;
        job = job_;
      }
      job->work();
      std::lock_guard<std::mutex> lock(mutex_);
      if (--running_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int wanted_ = 0;
  int running_ = 0;
  uint64_t round_ = 0;
};

// Never destroyed: its threads must not meet a dead mutex while the process exits.
Pool* pool = nullptr;
std::atomic<bool> busy{false};

// A forked child has none of its parent's threads; the parent's pool is left as it is.
void forget_pool() {
  pool = nullptr;
  busy.store(false);
}

struct Release {
  ~Release() { busy.store(false); }
};

}  // namespace

void run_tasks(int64_t tasks, int threads, void (*task)(void*, int64_t), void* context) {
  const int64_t helpers = (tasks < threads ? tasks : threads) - 1;
  if (helpers < 1 || busy.exchange(true)) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  Release release_when_done;
  if (pool == nullptr) {
    static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
    static_cast<void>(registered);
    pool = new Pool;
  }
  Job job{task, context, tasks, {}, {}, nullptr};
  pool->run(job, static_cast<int>(helpers));
  if (job.failed.load()) std::rethrow_exception(job.error);
}

}  // namespace alphafuse
