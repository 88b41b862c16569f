// A small pool of threads that lives as long as the process.
#pragma once

#include <cstdint>

namespace alphafuse {

// Calls task(context, i) for every i in [0, tasks), at most `threads` at a time, and returns when
// all are done. The first exception of a task is thrown again here; tasks not yet begun are then
// left out. A call from within a task, or while another thread holds the pool, runs in the calling
// thread alone: what a call computes depends on `tasks`, never on who ran them.
void run_tasks(int64_t tasks, int threads, void (*task)(void* context, int64_t index),
               void* context);

}  // namespace alphafuse
