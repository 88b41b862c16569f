// Calls that may be ended before they are done, as by Ctrl-C.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

namespace alphafuse {

// Thrown where a call is to end before it is done.
struct Interrupted {};

// Within a scope, what this thread calls may be ended, on whichever threads it runs. Ten times a second
// `asked` says in this thread whether it is to be.
class Interruptible {
 public:
  explicit Interruptible(bool (*asked)());
  ~Interruptible();
  Interruptible(const Interruptible&) = delete;
  Interruptible& operator=(const Interruptible&) = delete;

  void check();

 private:
  bool (*asked_)();
  const std::thread::id caller_;
  std::chrono::steady_clock::time_point next_;  // the caller's
  std::atomic<bool> ended_{false};
  Interruptible* outer_;
};

}  // namespace alphafuse
