// Into how many parts work is cut for a device that runs some blocks at a time, wave after wave.
#pragma once

#include <algorithm>
#include <cstdint>

namespace alphafuse {
namespace cuda {

// Parts of what every one of `kept` blocks would go through in `steps`, each part a block's: those that
// end soonest, where `slots` blocks run at a time and a wave is as long as its longest block. Up to
// three waves more than there have to be, and only for a twentieth of the time: each part costs scratch
// memory, and sums to be added up.
inline int64_t parts_of_waves(int64_t kept, int64_t steps, int64_t slots) {
  const auto ceil_of = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  if (kept < 1 || steps < 1) return std::min<int64_t>(steps, 1);
  const int64_t least = ceil_of(kept, slots);
  int64_t best = 1, best_time = least * steps;
  for (int64_t waves = least; waves < least + 4; ++waves) {
    const int64_t parts = std::min(steps, std::max<int64_t>(1, waves * slots / kept));
    const int64_t time = ceil_of(kept * parts, slots) * ceil_of(steps, parts);
    if (20 * time > 19 * best_time) continue;
    best = parts;
    best_time = time;
  }
  return best;
}

}  // namespace cuda
}  // namespace alphafuse
