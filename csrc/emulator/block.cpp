#include "emulator/block.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "emulator/fiber.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace alphafuse {
namespace emulator {
namespace {

constexpr int kMaxThreads = 1024;  // of a block
constexpr int kWarp = 32;          // lanes
// Bytes of a block: as few as devices have (8.6, 8.9, 12.0), for kernels are to run on them too.
constexpr std::size_t kMaxShared = 99 << 10;
constexpr std::size_t kArena = std::size_t{64} << 20;

// A vector without the C library.
template <class T, int kRoom>
struct List {
  T items[kRoom];
  int count = 0;

  void push(const T& item) {
    if (count == kRoom) fail("the emulator has room for %d only: %s", kRoom, __PRETTY_FUNCTION__);
    items[count++] = item;
  }
  void drop_first(int n) {
    for (int i = n; i < count; ++i) items[i - n] = items[i];
    count -= n;
  }
};

struct Thread {
  explicit Thread(void (*body)()) : fiber(body) {}

  Fiber fiber;
  uint3 index{};
  int number = 0;  // in the block
  bool ended = false;
  const char* waits_for = nullptr;
  Place place{};
  List<Copy, kMaxCopies> copies;  // issued and not waited for
  List<int, 64> groups;           // copies of each committed group
  int open_copies = 0;            // of the group that is not committed
  List<Wgmma, kMaxWgmmas> wgmmas;
  float sums[64];             // see kept_sums
  bool begun_wgmmas = false;  // by begin_wgmmas
};

struct Meeting {
  unsigned mask = 0;  // 0: free
  unsigned arrived = 0, left = 0;
  Execute execute = nullptr;
  void* operands[kWarp] = {};
  Thread* threads[kWarp] = {};
  Place place{};
};

struct Warp {
  Meeting meetings[kWarp];  // a lane is in one at a time
};

struct Group {
  int arrived = 0;
  Place place{};
  Thread* threads[kGroupThreads] = {};
};

struct Barrier {
  int arrived = 0;
  bool odd = false;  // its turn
  Votes votes[2] = {};
  char tokens[2] = {};
  Place place{};
  List<Thread*, kMaxThreads> waiting;
};

// An mbarrier; its place in shared memory is only its name.
struct PhaseBarrier {
  const void* at = nullptr;
  int arrivals = 0, pending = 0;  // of a phase; those that have still to come
  int bytes = 0;                  // expected, less those of the copies
  int parity = 0;
  List<Copy, kMaxBulkCopies> copies;
  List<Thread*, kMaxThreads> waiting;

  bool can_end() const { return pending == 0 && bytes == 0; }
};

// Threads, warps and barrier of a block. ThreadSanitizer orders what one fiber does, so a fiber used
// by a block after another would order the two, and hide a race between them: blocks take turns
// with two casts.
struct Cast {
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Group groups[kMaxThreads / kGroupThreads];
  Barrier barrier;
};

struct SharedArray {
  const void* key;
  unsigned char* data;
  std::size_t bytes;
};

struct Range {
  const unsigned char *from, *to;
};

std::mutex launches;  // one at a time, as on a stream
Fiber launcher;
Cast casts[2];
Cast* cast = &casts[0];
Thread* current = nullptr;  // null: the launcher
List<Thread*, kMaxThreads> ready;
int block_threads = 0, living = 0;
bool hasty = false;
void (*kernel)(void*) = nullptr;
void* kernel_context = nullptr;

unsigned char* shared_memory = nullptr;
std::size_t shared_size = 0;
unsigned char* seen_by_wgmma = nullptr;  // null where no thread of the launch has fenced for it
int fenced_threads = 0;                  // since all had
List<SharedArray, 64> shared_arrays;
List<Range, 64> forbidden;
List<PhaseBarrier, 16> phase_barriers;
// Under ThreadSanitizer every block has shared memory of its own, since the next block's use of the
// same addresses would look like a race; an end that is reached begins anew, in order.
unsigned char* arena = nullptr;
std::size_t arena_used = 0;

char failure[1024];  // empty: none
bool failure_is_index = false;
char launch_token, end_token, fence_token;

uint64_t seed_in_use = 0, random_state = 0;
int multiprocessor_count = 2;

uint32_t draw(uint32_t below) {
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  const uint64_t bits = (random_state * 0x2545f4914f6cdd1du) >> 32;
  return static_cast<uint32_t>((bits * below) >> 32);
}

// --- Scheduling -----------------------------------------------------------------------------------

// Suspends the running fiber; null is the launcher.
void switch_to(Thread* next) {
  Thread* const previous = current;
  if (next == previous) return;
  current = next;
  if (next != nullptr) threadIdx = next->index;
  Fiber& from = previous == nullptr ? launcher : previous->fiber;
  (next == nullptr ? launcher : next->fiber).resume(from);
}

// A thread that can go on; the launcher if there is none. A fair draw alone would keep all warps at
// about one pace: in a hasty block those that were woken last go on, so one warp runs far ahead.
Thread* pick() {
  if (ready.count == 0) return nullptr;
  const auto count = static_cast<uint32_t>(ready.count);
  const auto i = hasty && draw(16) != 0 ? count - 1 : draw(count);
  Thread* const chosen = ready.items[i];
  ready.items[i] = ready.items[--ready.count];
  return chosen;
}

void wait(const char* what, Place place) {
  current->waits_for = what;
  current->place = place;
  switch_to(pick());
  current->waits_for = nullptr;
}

// What every fiber runs: the kernel, once for each block it is in.
void be_a_thread() {
  arrive();
  for (;;) {
    kernel(kernel_context);
    if (current->copies.count > 0) {
      fail("a thread ends before it waited for %d of its copies", current->copies.count);
    }
    if (current->wgmmas.count > 0) {
      fail("a thread ends before it waited for %d of its wgmma", current->wgmmas.count);
    }
    current->ended = true;
    --living;
    switch_to(pick());
  }
}

template <class Act>
void for_all_threads(Act act) {
  for (Cast& each : casts) {
    for (auto& thread : each.threads) act(*thread);
  }
}

// What all threads did happens before what any of them, and the launcher, does from now on.
void order_all() {
  if (!races_are_watched()) return;
  for_all_threads([](Thread& t) { t.fiber.release(&end_token, launcher); });
  for_all_threads([](Thread& t) { t.fiber.acquire(&end_token, launcher); });
  acquire(&end_token);
}

// --- Shared memory --------------------------------------------------------------------------------

unsigned char* allocate_shared(std::size_t bytes) {
  if (races_are_watched()) {
    unsigned char* const memory = arena + arena_used;
    arena_used += (bytes + 255) / 128 * 128;
    return memory;
  }
  void* memory = nullptr;  // of the heap, for AddressSanitizer's zones around it
  if (posix_memalign(&memory, 128, bytes > 0 ? bytes : 1) != 0) abort();
  return static_cast<unsigned char*>(memory);
}

void fill_shared(unsigned char* memory, std::size_t bytes) {
  unpoison(memory, bytes);
  for (std::size_t i = 0; i < bytes; ++i) memory[i] = 0xff;
}

void prepare_shared(bool first_block) {
  if (races_are_watched()) {
    if (arena_used + 2 * kMaxShared > kArena) {
      order_all();
      arena_used = 0;
    }
    shared_arrays.count = 0;
  }
  if (first_block || races_are_watched()) shared_memory = allocate_shared(shared_size);
  fill_shared(shared_memory, shared_size);
  for (int i = 0; i < shared_arrays.count; ++i) {
    fill_shared(shared_arrays.items[i].data, shared_arrays.items[i].bytes);
  }
  forbidden.count = 0;
  phase_barriers.count = 0;
  fenced_threads = 0;
  for (std::size_t i = 0; seen_by_wgmma != nullptr && i < shared_size; ++i) {
    seen_by_wgmma[i] = 0xff;
  }
}

void free_shared() {
  free(seen_by_wgmma);
  seen_by_wgmma = nullptr;
  if (!races_are_watched()) {
    free(shared_memory);
    for (int i = 0; i < shared_arrays.count; ++i) free(shared_arrays.items[i].data);
  }
  shared_memory = nullptr;
  shared_arrays.count = 0;
}

// By hand: ThreadSanitizer would see the C library write, and knows of no order between fibers.
void set_failure(const char* text) {
  std::size_t i = 0;
  for (; text[i] != 0 && i + 1 < sizeof failure; ++i) failure[i] = text[i];
  failure[i] = 0;
}

void check_bulk_copies() {
  for (int i = 0; i < phase_barriers.count; ++i) {
    if (phase_barriers.items[i].copies.count > 0) set_failure("a bulk copy is never waited for");
  }
}

void check_forbidden() {
  for (int i = 0; i < forbidden.count; ++i) {
    for (const unsigned char* p = forbidden.items[i].from; p < forbidden.items[i].to; ++p) {
      if (*p != 0xff) {
        char text[80];
        snprintf(text, sizeof text, "a thread wrote %d bytes behind a shared array",
                 static_cast<int>(p - forbidden.items[i].from) + 1);
        set_failure(text);
        return;
      }
    }
  }
}

// --- A block --------------------------------------------------------------------------------------

std::string describe_deadlock() {
  std::map<std::string, int> places;
  for (int i = 0; i < block_threads; ++i) {
    const Thread& thread = *cast->threads[static_cast<std::size_t>(i)];
    if (thread.ended) continue;
    ++places[std::string(thread.waits_for) + " at " + thread.place.file + ":" +
             std::to_string(thread.place.line)];
  }
  std::string text = "deadlock: " + std::to_string(block_threads - living) + " of " +
                     std::to_string(block_threads) +
                     " threads have ended, the others wait for ever";
  for (const auto& [place, count] : places) {
    text += "\n  " + std::to_string(count) + " for " + place;
  }
  return text;
}

void run_block(const char* op) {
  cast->warps.resize(static_cast<std::size_t>((block_threads + kWarp - 1) / kWarp));
  for (Warp& warp : cast->warps) {
    for (Meeting& meeting : warp.meetings) meeting.mask = meeting.arrived = meeting.left = 0;
  }
  for (Group& group : cast->groups) group.arrived = 0;
  cast->barrier.arrived = 0;
  cast->barrier.waiting.count = 0;
  ready.count = 0;
  for (int i = 0; i < block_threads; ++i) {
    Thread& thread = *cast->threads[static_cast<std::size_t>(i)];
    const auto number = static_cast<unsigned int>(i);
    thread.number = i;
    thread.index = {number % blockDim.x, number / blockDim.x % blockDim.y,
                    number / (blockDim.x * blockDim.y)};
    thread.ended = false;
    thread.copies.count = thread.groups.count = thread.open_copies = 0;
    thread.wgmmas.count = 0;
    thread.begun_wgmmas = false;
    ready.push(&thread);
  }
  living = block_threads;
  hasty = draw(2) != 0;
  switch_to(pick());  // comes back when no thread can go on
  if (failure[0] == 0 && living == 0) check_forbidden();
  if (failure[0] == 0 && living == 0) check_bulk_copies();
  if (failure[0] == 0 && living == 0) return;

  std::string text = failure[0] != 0 ? failure : describe_deadlock();
  failure[0] = 0;
  order_all();
  for_all_threads([](Thread& thread) { thread.fiber.rewind(); });
  free_shared();
  if (failure_is_index) {
    failure_is_index = false;
    throw std::out_of_range(text);
  }
  throw std::runtime_error(op + (": " + text) + "\n  in block (" + std::to_string(blockIdx.x) +
                           ", " + std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) +
                           "); ALPHAFUSE_EMULATOR_SEED=" + std::to_string(seed_in_use));
}

// From now on wgmma sees these bytes of shared memory as they are.
void show_wgmma(const unsigned char* from, const unsigned char* to) {
  if (seen_by_wgmma == nullptr) {
    seen_by_wgmma = static_cast<unsigned char*>(malloc(shared_size));
    if (seen_by_wgmma == nullptr) fail("no memory is left");
    for (std::size_t i = 0; i < shared_size; ++i) seen_by_wgmma[i] = 0xff;
  }
  for (; from < to; ++from) seen_by_wgmma[from - shared_memory] = *from;
}

[[noreturn]] void stop(const char* text, bool is_index) {
  set_failure(text);
  failure_is_index = is_index;
  switch_to(nullptr);
  abort();  // never resumed
}

}  // namespace

void fail(const char* format, ...) {
  char text[sizeof failure];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  stop(text, false);
}

void fail_index(const char* format, ...) {
  char text[sizeof failure];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  stop(text, true);
}

void set_seed(uint64_t seed) {
  seed_in_use = seed;
  random_state = (seed + 1) * 0x9e3779b97f4a7c15u;
  if (random_state == 0) random_state = 1;
}

void set_multiprocessors(int count) { multiprocessor_count = count; }
int multiprocessors() { return multiprocessor_count; }

void run(const char* op, dim3 grid, dim3 block, std::size_t shared_bytes, void (*call)(void*),
         void* context) {
  const std::lock_guard<std::mutex> lock(launches);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (threads < 1 || threads > kMaxThreads || blocks < 1 || grid.x > 0x7fffffff || grid.y > 65535 ||
      grid.z > 65535) {
    throw std::runtime_error(std::string(op) + ": invalid configuration argument");
  }
  if (shared_bytes > kMaxShared) {
    throw std::runtime_error(std::string(op) + ": too much shared memory is asked for");
  }

  launcher.adopt();
  if (random_state == 0) {
    const char* const seed = std::getenv("ALPHAFUSE_EMULATOR_SEED");
    set_seed(seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10));
  }
  if (races_are_watched() && arena == nullptr) {
    void* memory = mmap(nullptr, kArena, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    arena = static_cast<unsigned char*>(memory);
  }
  for (Cast& each : casts) {
    while (each.threads.size() < threads) {
      each.threads.push_back(std::make_unique<Thread>(&be_a_thread));
    }
  }
  block_threads = static_cast<int>(threads);
  shared_size = shared_bytes;
  gridDim = grid;
  blockDim = block;
  kernel = call;
  kernel_context = context;
  release(&launch_token);
  for_all_threads([](Thread& thread) { thread.fiber.acquire(&launch_token, launcher); });

  const uint64_t first = draw(static_cast<uint32_t>(blocks));
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t number = (first + i) % blocks;
    blockIdx = {static_cast<unsigned int>(number % grid.x),
                static_cast<unsigned int>(number / grid.x % grid.y),
                static_cast<unsigned int>(number / grid.x / grid.y)};
    prepare_shared(i == 0);
    cast = &casts[i % 2];
    run_block(op);
  }
  order_all();
  free_shared();
}

// --- Barriers -------------------------------------------------------------------------------------

Votes barrier(int predicate, Place place) {
  Barrier& b = cast->barrier;
  const int turn = b.odd;
  if (b.arrived == 0) {
    b.place = place;
    b.votes[turn] = {0, 0, 1};
  } else if (b.place.line != place.line) {
    fail("threads of a block wait at different barriers: %s:%d and %s:%d", b.place.file,
         b.place.line, place.file, place.line);
  }
  Votes& votes = b.votes[turn];
  votes.count += predicate != 0;
  votes.any |= predicate != 0;
  votes.all &= predicate != 0;
  release(&b.tokens[turn]);
  if (++b.arrived < block_threads) {
    b.waiting.push(current);
    wait("a barrier", place);
  } else {
    b.arrived = 0;
    b.odd = !b.odd;
    for (int i = 0; i < b.waiting.count; ++i) ready.push(b.waiting.items[i]);
    b.waiting.count = 0;
    ready.push(current);  // the last to come is not always the first to go
    switch_to(pick());
  }
  acquire(&b.tokens[turn]);
  return votes;
}

void meet(unsigned mask, Execute execute, void* operands, bool orders_memory, Place place) {
  Thread& self = *current;
  const int own_lane = lane();
  if ((mask >> own_lane & 1) == 0) {
    fail("%s:%d: the mask %08x is without the lane that calls, %d", place.file, place.line, mask,
         own_lane);
  }
  const int first = self.number / kWarp * kWarp;
  if (block_threads - first < kWarp) mask &= (1u << (block_threads - first)) - 1;

  // Lanes that were to meet and wait in different instructions are a deadlock, reported as one.
  Meeting* found = nullptr;
  Meeting* free_one = nullptr;
  for (Meeting& m : cast->warps[static_cast<std::size_t>(first / kWarp)].meetings) {
    if (m.mask == 0) {
      free_one = &m;
    } else if (m.arrived != m.mask && m.mask == mask && m.execute == execute &&
               m.place.line == place.line) {
      found = &m;
    }
  }
  if (found == nullptr) {
    found = free_one;
    found->mask = mask;
    found->arrived = found->left = 0;
    found->execute = execute;
    found->place = place;
  }
  Meeting& m = *found;
  m.arrived |= 1u << own_lane;
  m.operands[own_lane] = operands;
  m.threads[own_lane] = &self;
  if (orders_memory) release(&m);
  if (m.arrived == m.mask) {
    execute(m.operands, mask);
    for (int i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) != 0 && i != own_lane) ready.push(m.threads[i]);
    }
  } else {
    wait("the other lanes of its warp", place);
  }
  if (orders_memory) acquire(&m);
  m.left |= 1u << own_lane;
  if (m.left == m.mask) m.mask = 0;
}

int lane() { return current->number % kWarp; }

void meet_group(Place place) {
  const int first = current->number / kGroupThreads * kGroupThreads;
  if (block_threads < first + kGroupThreads) {
    fail("%s:%d: wgmma needs four warps, but the block has no more", place.file, place.line);
  }
  Group& group = cast->groups[first / kGroupThreads];
  if (group.arrived > 0 && group.place.line != place.line) {
    fail("threads of four warps wait at different wgmma: %s:%d and %s:%d", group.place.file,
         group.place.line, place.file, place.line);
  }
  group.place = place;
  group.threads[group.arrived] = current;
  if (++group.arrived < kGroupThreads) {
    wait("the other threads of its four warps", place);
    return;
  }
  group.arrived = 0;
  for (Thread* thread : group.threads) ready.push(thread);
  switch_to(pick());
}

void fence() {
  release(&fence_token);
  acquire(&fence_token);
}

// --- Shared memory and copies, for the kernels ----------------------------------------------------

unsigned char* dynamic_shared(std::size_t& bytes) {
  bytes = shared_size;
  return shared_memory;
}

void* static_shared(const void* key, std::size_t bytes) {
  for (int i = 0; i < shared_arrays.count; ++i) {
    if (shared_arrays.items[i].key == key) return shared_arrays.items[i].data;
  }
  unsigned char* const data = allocate_shared(bytes);
  fill_shared(data, bytes);
  shared_arrays.push({key, data, bytes});
  return data;
}

void forbid(const unsigned char* from, const unsigned char* to) {
  for (int i = 0; i < forbidden.count; ++i) {
    if (forbidden.items[i].from == from) return;
  }
  forbidden.push({from, to});
}

void issue_copy(const Copy& copy) {
  current->copies.push(copy);
  ++current->open_copies;
}

void commit_copies() {
  current->groups.push(current->open_copies);
  current->open_copies = 0;
}

int finished_copies(int keep, Copy (&copies)[kMaxCopies]) {
  Thread& self = *current;
  const int groups = self.groups.count > keep ? self.groups.count - keep : 0;
  int count = 0;
  for (int i = 0; i < groups; ++i) count += self.groups.items[i];
  for (int i = 0; i < count; ++i) copies[i] = self.copies.items[i];
  self.groups.drop_first(groups);
  self.copies.drop_first(count);
  return count;
}

// --- mbarriers ------------------------------------------------------------------------------------

namespace {

PhaseBarrier& phase_barrier(const void* at) {
  for (int i = 0; i < phase_barriers.count; ++i) {
    if (phase_barriers.items[i].at == at) return phase_barriers.items[i];
  }
  fail("an mbarrier is used that was not initialised");
}

void wake(PhaseBarrier& b) {
  for (int i = 0; i < b.waiting.count; ++i) ready.push(b.waiting.items[i]);
  b.waiting.count = 0;
}

}  // namespace

void init_phases(const void* barrier, int arrivals) {
  PhaseBarrier b;
  b.at = barrier;
  b.arrivals = b.pending = arrivals;
  phase_barriers.push(b);
}

void arrive_at(const void* barrier, int bytes, Place place) {
  PhaseBarrier& b = phase_barrier(barrier);
  if (b.pending == 0) {
    fail(
        "%s:%d: an mbarrier is arrived at more often than it was initialised for, or before its "
        "last phase was waited for",
        place.file, place.line);
  }
  release(&b);
  b.bytes += bytes;
  --b.pending;
  if (b.can_end()) wake(b);
}

void issue_bulk_copy(const void* barrier, const Copy& copy) {
  PhaseBarrier& b = phase_barrier(barrier);
  release(&b);
  b.copies.push(copy);
  b.bytes -= copy.bytes;
  if (b.can_end()) wake(b);
}

int wait_for_phase(const void* barrier, int parity, Copy (&copies)[kMaxBulkCopies], Place place) {
  PhaseBarrier& b = phase_barrier(barrier);
  while (b.parity == parity && !b.can_end()) {
    b.waiting.push(current);
    wait("an mbarrier", place);
  }
  acquire(&b);
  if (b.parity != parity) return -1;
  for (int i = 0; i < b.copies.count; ++i) copies[i] = b.copies.items[i];
  return b.copies.count;
}

void end_phase(const void* barrier) {
  PhaseBarrier& b = phase_barrier(barrier);
  for (int i = 0; i < b.copies.count; ++i) {
    const Copy& copy = b.copies.items[i];
    show_wgmma(copy.to, copy.to + copy.size);
  }
  b.copies.count = 0;
  b.pending = b.arrivals;
  b.parity ^= 1;
  release(&b);
  wake(b);
}

// --- wgmma ----------------------------------------------------------------------------------------

void begin_wgmmas() { current->begun_wgmmas = true; }

void issue_wgmma(const Wgmma& wgmma) {
  Thread& self = *current;
  if (!self.begun_wgmmas) fail("wgmma without wgmma.fence after its registers were written");
  if (self.wgmmas.count > 0 && self.wgmmas.items[0].top != wgmma.top) {
    fail("the emulator has room for one sum of wgmma at a time");
  }
  if (self.wgmmas.count == 0) {
    for (int i = 0; i < wgmma.sums; ++i) {
      self.sums[i] = wgmma.top[i];
      self.sums[32 + i] = wgmma.bottom[i];
    }
  }
  self.wgmmas.push(wgmma);
}

float* kept_sums() { return current->sums; }

int finished_wgmmas(Wgmma (&wgmmas)[kMaxWgmmas]) {
  Thread& self = *current;
  const int count = self.wgmmas.count;
  for (int i = 0; i < count; ++i) wgmmas[i] = self.wgmmas.items[i];
  self.wgmmas.count = 0;
  self.begun_wgmmas = false;
  return count;
}

void fence_proxy() {
  if (++fenced_threads < block_threads) return;
  fenced_threads = 0;
  show_wgmma(shared_memory, shared_memory + shared_size);
}

bool wgmma_sees(const unsigned char* from, int bytes) {
  if (seen_by_wgmma == nullptr) return false;
  for (int i = 0; i < bytes; ++i) {
    if (from[i] != seen_by_wgmma[from - shared_memory + i]) return false;
  }
  return true;
}

}  // namespace emulator
}  // namespace alphafuse
