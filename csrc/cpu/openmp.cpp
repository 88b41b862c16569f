#include "cpu/openmp.h"

#if defined(__linux__)
#include <dlfcn.h>
#include <link.h>

#include <string>
#endif

namespace alphafuse {

#if defined(__linux__)
// Of several the one that PyTorch brings.
OpenMP find_openmp() {
  struct Names {
    std::string of_torch, any;
  } names;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* data) {
        const std::string path = info->dlpi_name;
        const std::string file = path.substr(path.rfind('/') + 1);
        for (const char* runtime : {"libgomp", "libiomp5", "libomp"}) {
          if (file.rfind(runtime, 0) != 0) continue;
          auto& found = *static_cast<Names*>(data);
          if (found.any.empty()) found.any = path;
          if (path.find("torch") != std::string::npos) found.of_torch = path;
        }
        return 0;
      },
      &names);
  const std::string& path = names.of_torch.empty() ? names.any : names.of_torch;
  void* const library = path.empty() ? nullptr : dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
  return library == nullptr ? nullptr : reinterpret_cast<OpenMP>(dlsym(library, "GOMP_parallel"));
}
#else
OpenMP find_openmp() { return nullptr; }
#endif

}  // namespace alphafuse
