#include "emulator/fiber.h"

#include <pthread.h>
#include <sys/mman.h>

#include <new>

// What the sanitizers offer to programs with fibers; null where the program has no such sanitizer.
#define ALPHAFUSE_WEAK __attribute__((weak))
extern "C" {
ALPHAFUSE_WEAK void __sanitizer_start_switch_fiber(void** save, const void* stack,
                                                   std::size_t size);
ALPHAFUSE_WEAK void __sanitizer_finish_switch_fiber(void* saved, const void** stack,
                                                    std::size_t* size);
ALPHAFUSE_WEAK void __asan_unpoison_memory_region(const volatile void* address, std::size_t size);
ALPHAFUSE_WEAK void* __tsan_get_current_fiber();
ALPHAFUSE_WEAK void* __tsan_create_fiber(unsigned flags);
ALPHAFUSE_WEAK void __tsan_destroy_fiber(void* fiber);
ALPHAFUSE_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
ALPHAFUSE_WEAK void __tsan_acquire(void* token);
ALPHAFUSE_WEAK void __tsan_release(void* token);

// Stores the stack pointer of the running fiber in *save and goes on at `load`.
void alphafuse_switch_stack(void** save, void* load);
}

// The registers that a call must preserve go onto the stack that is left, and come back from the
// other one. (`ucontext` and `longjmp` do more, and ThreadSanitizer intercepts them.)
#if defined(__x86_64__)
asm(R"(
.text
.hidden alphafuse_switch_stack
.globl alphafuse_switch_stack
.type alphafuse_switch_stack, @function
alphafuse_switch_stack:
  pushq %rbx
  pushq %rbp
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbp
  popq %rbx
  ret
.size alphafuse_switch_stack, . - alphafuse_switch_stack
)");
#else
#error "the emulator switches stacks in assembly: write alphafuse_switch_stack for this machine"
#endif

namespace alphafuse {
namespace emulator {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kStackBytes = 64 * kPage;
constexpr int kSavedRegisters = 6;
constexpr unsigned kNoOrder = 1;  // a switch of ThreadSanitizer's fibers that orders nothing

}  // namespace

Fiber::Fiber(void (*body)()) : body_(body), stack_bytes_(kStackBytes) {
  void* memory = mmap(nullptr, kPage + stack_bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, kPage, PROT_NONE);  // a stack that overflows stops here
  stack_ = static_cast<char*>(memory) + kPage;
  start_over();
}

Fiber::~Fiber() {
  if (body_ == nullptr) return;
  unpoison(stack_, stack_bytes_);
  munmap(stack_ - kPage, kPage + stack_bytes_);
  if (tsan_fiber_ != nullptr) __tsan_destroy_fiber(tsan_fiber_);
}

void Fiber::adopt() {
  // Asked of the system each time: the next launch may come from another thread.
  pthread_attr_t attributes;
  void* stack = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &stack_bytes_);
  pthread_attr_destroy(&attributes);
  stack_ = static_cast<char*>(stack);
  if (__tsan_get_current_fiber) tsan_fiber_ = __tsan_get_current_fiber();
}

void Fiber::rewind() {
  unpoison(stack_, stack_bytes_);
  if (tsan_fiber_ != nullptr) __tsan_destroy_fiber(tsan_fiber_);
  start_over();
}

void Fiber::start_over() {
  void** top = reinterpret_cast<void**>(stack_ + stack_bytes_);
  *--top = nullptr;  // where a backtrace ends; a call's alignment
  *--top = reinterpret_cast<void*>(body_);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  stack_pointer_ = top;
  fake_stack_ = nullptr;
  if (__tsan_create_fiber) tsan_fiber_ = __tsan_create_fiber(0);
}

void Fiber::resume(Fiber& from) {
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(tsan_fiber_, kNoOrder);
  if (__sanitizer_start_switch_fiber) {
    __sanitizer_start_switch_fiber(&from.fake_stack_, stack_, stack_bytes_);
  }
  alphafuse_switch_stack(&from.stack_pointer_, stack_pointer_);
  if (__sanitizer_finish_switch_fiber) {
    __sanitizer_finish_switch_fiber(from.fake_stack_, nullptr, nullptr);
  }
}

void arrive() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
}

void Fiber::release(void* token, Fiber& running) {
  if (!__tsan_switch_to_fiber) return;
  __tsan_switch_to_fiber(tsan_fiber_, kNoOrder);
  __tsan_release(token);
  __tsan_switch_to_fiber(running.tsan_fiber_, kNoOrder);
}

void Fiber::acquire(void* token, Fiber& running) {
  if (!__tsan_switch_to_fiber) return;
  __tsan_switch_to_fiber(tsan_fiber_, kNoOrder);
  __tsan_acquire(token);
  __tsan_switch_to_fiber(running.tsan_fiber_, kNoOrder);
}

bool races_are_watched() { return __tsan_switch_to_fiber != nullptr; }

void release(void* token) {
  if (__tsan_release) __tsan_release(token);
}

void acquire(void* token) {
  if (__tsan_acquire) __tsan_acquire(token);
}

void unpoison(const void* bytes, std::size_t count) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(bytes, count);
}

}  // namespace emulator
}  // namespace alphafuse
