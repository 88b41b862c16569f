#include "cpu/dispatch.h"

#include <atomic>
#include <stdexcept>

namespace alphafuse {

namespace scalar {
extern const Kernels kTable;
}
namespace avx2 {
extern const Kernels kTable;
}
namespace avx512 {
extern const Kernels kTable;
}

namespace {

// From the least to the best.
const Kernels* const built[] = {
    &scalar::kTable,
#if defined(ALPHAFUSE_X86)
    &avx2::kTable,
    &avx512::kTable,
#endif
};

bool supported(const std::string& name) {
#if defined(ALPHAFUSE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx2") return avx2;
  if (name == "avx512") {
    return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return name == "scalar";
}

std::atomic<const Kernels*> current{built[0]};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

const Kernels& kernels() { return *current.load(std::memory_order_relaxed); }

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Kernels* candidate : built) names.push_back(candidate->isa);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const std::string& name : built_isas()) {
    if (supported(name)) names.push_back(name);
  }
  return names;
}

void set_isa(const std::string& name) {
  const std::string wanted = name.empty() ? supported_isas().back() : name;
  for (const Kernels* candidate : built) {
    if (wanted == candidate->isa && supported(wanted)) {
      current.store(candidate);
      return;
    }
  }
  throw std::invalid_argument("ALPHAFUSE_ISA: got " + name + "; expected one of " +
                              joined(supported_isas()) + " (what this build and machine have)");
}

}  // namespace alphafuse
