// A block of CUDA threads: launched, scheduled, synchronised; its shared memory; its faults.
//
// The threads of a block are fibers on one OS thread. A thread runs until it waits (for a barrier,
// for the other lanes of its warp) and which one goes on then is drawn at random, so that what is
// not ordered by a barrier comes in many orders; ALPHAFUSE_EMULATOR_SEED draws other ones. Blocks
// run one after the other, beginning with a random one.
//
// Everything here is compiled without sanitizers and, inside a fiber, calls nothing of the C
// library that ThreadSanitizer intercepts (memcpy, containers): it would take the emulator's own
// bookkeeping for that of the kernel. What kernels include is device.h.
#pragma once

#include <cstddef>
#include <cstdint>

struct uint3 {
  unsigned int x, y, z;
};
struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)
      : x(x_), y(y_), z(z_) {}
};

// The built-in variables, those of the running thread.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace alphafuse {
namespace emulator {

// Where in a kernel something happens.
struct Place {
  const char* file;
  int line;
};

// Runs `call(context)` as every thread of every block. Throws std::out_of_range for what
// fail_index() reports and std::runtime_error, which names `op`, for every other fault: a deadlock,
// a barrier that not all threads reach, a write behind a shared array, a copy never waited for.
void run(const char* op, dim3 grid, dim3 block, std::size_t shared_bytes, void (*call)(void*),
         void* context);

// Draws other schedules from now on.
void set_seed(uint64_t seed);

// Of the device, by which launches cut their work; blocks run one after the other all the same.
void set_multiprocessors(int count);
int multiprocessors();

// Ends the launch with an error.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void fail_index(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- Barriers -------------------------------------------------------------------------------------

struct Votes {
  int count, any, all;
};
// All threads of the block meet.
Votes barrier(int predicate, Place place);

// The lanes of `mask` meet in one instruction; the last to come does it for all of them: `execute`
// gets each lane's operands.
using Execute = void (*)(void* const* operands, unsigned mask);
void meet(unsigned mask, Execute execute, void* operands, bool orders_memory, Place place);

int lane();

// Orders this thread's memory accesses for those of others that fence too.
void fence();

// --- Shared memory --------------------------------------------------------------------------------

// Every byte of it begins as 0xff: NaN, or -1.
unsigned char* dynamic_shared(std::size_t& bytes);
// The block's array of the declaration that `key` is part of.
void* static_shared(const void* key, std::size_t bytes);
// Bytes that no thread may write to: looked at when the block ends.
void forbid(const unsigned char* from, const unsigned char* to);

// --- Asynchronous copies --------------------------------------------------------------------------

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes, size;  // what is read; what is written, zeros after `bytes`
};
constexpr int kMaxCopies = 256;  // of a thread, at a time

void issue_copy(const Copy& copy);
void commit_copies();
// Takes the copies of all committed groups but the newest `keep` off the thread's list.
int finished_copies(int keep, Copy (&copies)[kMaxCopies]);

// --- mbarriers ------------------------------------------------------------------------------------
//
// A phase ends as late as it can: when it is waited for. Then the copies that it waits for are made.

constexpr int kMaxBulkCopies = 16;  // of a phase

void init_phases(const void* barrier, int arrivals);
// And so many bytes of copies are to be waited for.
void arrive_at(const void* barrier, int bytes, Place place);
void issue_bulk_copy(const void* barrier, const Copy& copy);
// Until the phase of this parity is over, -1; or until it can end: the number of copies that the thread
// has to make, before it calls end_phase.
int wait_for_phase(const void* barrier, int parity, Copy (&copies)[kMaxBulkCopies], Place place);
void end_phase(const void* barrier);

// --- wgmma ----------------------------------------------------------------------------------------

constexpr int kGroupThreads = 128;  // four warps, which multiply together

// A multiplication that is on its way: its sums, and what it multiplies.
struct Wgmma {
  float *top, *bottom;
  int sums;              // of either
  uint64_t left, right;  // in shared memory
  bool bfloat16;
  bool of_registers;  // the left factor is not in shared memory; the right one lies the other way
  float rows[2][16];  // its rows then, for either sum
};
constexpr int kMaxWgmmas = 16;

// All threads of the group meet.
void meet_group(Place place);
// The thread's wgmma.fence, after which its registers may be multiplied into.
void begin_wgmmas();
void issue_wgmma(const Wgmma& wgmma);
// The thread's sums from before its first multiplication that is on its way.
float* kept_sums();
// Takes what is on its way off the thread's list.
int finished_wgmmas(Wgmma (&wgmmas)[kMaxWgmmas]);

// fence.proxy.async: what this thread has written to shared memory is to be seen by wgmma, which sees
// it as it was when the last thread of the block had fenced.
void fence_proxy();
// Whether it sees these bytes of shared memory as they are.
bool wgmma_sees(const unsigned char* from, int bytes);

}  // namespace emulator
}  // namespace alphafuse
