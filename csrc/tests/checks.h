// What the native test programs share: counting what was checked, comparing, running in a child.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

namespace alphafuse {
namespace tests {

inline int checked = 0, failed = 0;

inline void expect(bool good, const std::string& what) {
  ++checked;
  if (good) return;
  ++failed;
  std::printf("FAILED: %s\n", what.c_str());
}

// The largest error of `count` values relative to the largest expected one, or to `scale` if that is
// more; infinite for a NaN.
template <class Got, class Expected>
double worst_error(const Got& got, const Expected& expected, std::size_t count,
                   double scale = 1e-3) {
  double worst = 0;
  for (std::size_t i = 0; i < count; ++i) scale = std::fmax(scale, std::fabs(expected[i]));
  for (std::size_t i = 0; i < count; ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - expected[i]);
    if (std::isnan(error)) return INFINITY;
    worst = std::fmax(worst, error);
  }
  return worst / scale;
}

// Runs `body` in a child process: how it ended, and the last line it printed that says why.
struct Outcome {
  bool good;
  std::string reason;
};
template <class Body>
Outcome in_child(Body body) {
  int ends[2];
  if (pipe(ends) != 0) std::abort();
  std::fflush(nullptr);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 1);
    dup2(ends[1], 2);
    close(ends[0]);
    int status = 1;
    try {
      status = body() ? 0 : 1;
      if (status != 0) std::printf("wrong result\n");
    } catch (const std::exception& error) {
      std::printf("exception: %s\n", error.what());
    }
    std::fflush(nullptr);
    _exit(status);
  }
  close(ends[1]);
  std::string output;
  char buffer[4096];
  for (ssize_t n; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) output.append(buffer, n);
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  std::string reason;
  for (const char* sign : {"SUMMARY: ", "runtime error: ", "exception: ", "wrong result"}) {
    const auto at = output.find(sign);
    if (at == std::string::npos) continue;
    reason = output.substr(at, output.find('\n', at) - at);
    break;
  }
  return {WIFEXITED(status) && WEXITSTATUS(status) == 0 && reason.empty(), reason};
}

// The last line of a test program, which CI reads.
inline int report() {
  std::printf("%d passed, %d failed\n", checked - failed, failed);
  return failed != 0;
}

}  // namespace tests
}  // namespace alphafuse
