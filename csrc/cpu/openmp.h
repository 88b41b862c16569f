// The OpenMP runtime of the process, if it has one: the threads that PyTorch computes with.
//
// They wait for their next piece of work awake, for milliseconds, so a second pool would share the cores
// with them. Found while running, and not linked: there would be two runtimes.
#pragma once

namespace alphafuse {

// Runs body(context) on so many threads, the caller's among them. Never in a forked child, whose parent
// has used it: it would wait for threads that are not there.
using OpenMP = void (*)(void (*body)(void*), void* context, unsigned threads, unsigned flags);

// Null where there is none.
OpenMP find_openmp();

}  // namespace alphafuse
