#include "cpu/dispatch.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstring>
#include <stdexcept>

namespace alphafuse {

// instruction_sets.def is CMakeLists.txt's list of what is built, from the baseline to the best, each
// with the features that its kernels were compiled for.
#define INSTRUCTION_SET(name, features) \
  namespace name {                      \
  extern const Kernels kTable;          \
  }
#include "instruction_sets.def"
#undef INSTRUCTION_SET

namespace {

struct InstructionSet {
  const Kernels* kernels;
  bool (*supported)();
};

// Whether the system lets this process use what the processor has. Linux keeps tiles for those that
// ask: then all threads have them, those that are there already too, and forks. It refuses where a signal
// stack (sigaltstack) has no room for them.
[[maybe_unused]] bool permitted(const char* feature) {
  if (std::strcmp(feature, "amx-tile") != 0) return true;
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}

#define FEATURE(name) &&__builtin_cpu_supports(#name) && permitted(#name)
#define INSTRUCTION_SET(name, features) {&name::kTable, [] { return true features; }},
const InstructionSet built[] = {
#include "instruction_sets.def"
};
#undef INSTRUCTION_SET
#undef FEATURE

std::atomic<const Kernels*> current{built[0].kernels};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

const Kernels& kernels() { return *current.load(std::memory_order_relaxed); }

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const InstructionSet& set : built) names.push_back(set.kernels->isa);
  return names;
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const InstructionSet& set : built) {
    if (set.supported()) names.push_back(set.kernels->isa);
  }
  return names;
}

void set_isa(const std::string& name) {
  // amx by name alone, until it has run on a processor that has it: nor is the system asked for it.
  const auto is_wanted = [&](const std::string& isa) {
    return name.empty() ? isa != "amx" : isa == name;
  };
  const Kernels* chosen = nullptr;
  for (const InstructionSet& set : built) {
    if (is_wanted(set.kernels->isa) && set.supported()) chosen = set.kernels;
  }
  if (chosen == nullptr) {
    throw std::invalid_argument("ALPHAFUSE_ISA: got " + name + "; expected one of " +
                                joined(supported_isas()) + " (what this build and machine have)");
  }
  current.store(chosen);
}

}  // namespace alphafuse
