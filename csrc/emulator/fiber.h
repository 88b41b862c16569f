// Fibers: the CUDA threads of a block, all on one OS thread, with explicit switches between them.
// Compiled without sanitizers, which are notified of switches.
#pragma once

#include <cstddef>

namespace alphafuse {
namespace emulator {

class Fiber {
 public:
  // The OS thread that launches kernels; adopt() it before the first switch.
  Fiber() = default;
  // A new stack, on which `body` will run; `body` must not return.
  explicit Fiber(void (*body)());
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes this fiber stand for the calling OS thread.
  void adopt();
  // Back to the beginning of its body, whatever it was suspended in.
  void rewind();
  // Suspends `from`, which is running, and goes on with this one.
  void resume(Fiber& from);

  // For ThreadSanitizer, which takes a fiber for a thread: everything this fiber did so far happens
  // before what a fiber does that acquires the token later. A switch by itself orders nothing.
  void release(void* token, Fiber& running);
  void acquire(void* token, Fiber& running);

 private:
  void start_over();

  void (*body_)() = nullptr;
  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;
  std::size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's
  void* tsan_fiber_ = nullptr;  // ThreadSanitizer's
};

// What a new fiber says first of all, on its own stack.
void arrive();

// Whether ThreadSanitizer watches this program.
bool races_are_watched();
// The running fiber's own release and acquire.
void release(void* token);
void acquire(void* token);
// Unpoisons these bytes for AddressSanitizer.
void unpoison(const void* bytes, std::size_t count);

}  // namespace emulator
}  // namespace alphafuse
