// Threads that live as long as the process, of OpenMP where it is there or of a small pool of our own,
// and how many of them to call.
#pragma once

#include <cstdint>

namespace alphafuse {

// Throws Interrupted (interrupt.h) where the call is to end: to be called between pieces of work of at
// most milliseconds. run_tasks does so before each task.
void check_interrupt();

// Calls task(context, i) for every i in [0, tasks), at most `threads` at a time, and returns when
// all are done. The first exception of a task is thrown again here; tasks not yet begun are then
// left out. A call from within a task, or while another thread holds the pool, runs in the calling
// thread alone: what a call computes depends on `tasks`, never on who ran them.
void run_tasks(int64_t tasks, int threads, void (*task)(void* context, int64_t index),
               void* context);

// As many of `threads` as have enough to do for so many multiply-adds of a product: to call another
// one takes about as long as a hundred thousand of them, or as set.
int threads_for(int64_t multiply_adds, int threads);
// For tests, whose inputs are small: of 1 on every thread is called.
void set_work_of_thread(int64_t multiply_adds);

}  // namespace alphafuse
