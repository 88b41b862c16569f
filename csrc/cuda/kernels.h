// The CUDA kernels' host side. Addresses are those of the device that `launch` names; every call
// returns without waiting. An error of a launch is a std::runtime_error that names the kernel. Ids
// are checked before, by check_ids() of ids.h. Sums are in a fixed order, without atomics.
#pragma once

#include "array.h"
#include "compressed.h"
#include "cpu/exclude.h"
#include "cuda/groups.h"
#include "launch.h"

namespace alphafuse {
namespace cuda {

#define CPU_KERNEL(...)
#define KERNEL(result, name, ...) result name(__VA_ARGS__, Launch& launch);
#include "kernels.def"

}  // namespace cuda
}  // namespace alphafuse
