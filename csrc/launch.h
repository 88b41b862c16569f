// Where a kernel of a device runs, and its scratch memory: the last argument of each.
#pragma once

#include <cstdint>

namespace alphafuse {

// What a product may be computed in; sums are float32 always. Half precisions round queries and
// tables to theirs, where they are not of that type already; TF32 to 10 bits of mantissa.
enum class Precision : int { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kTF32 = 3 };

// On the CPU, for kernels that compute products in less than float32 too: bfloat16 alone. Others are
// told the number of threads.
struct Workers {
  int threads;
  Precision precision = Precision::kFloat32;
};

// On a device a kernel is called twice. First to measure: scratch() adds up what is asked for and returns null,
// and the kernel returns before its first launch:
//
//   float* partial = launch.scratch<float>(splits * batch);
//   if (launch.measuring()) return;
//
// Then with that much memory, which is the device's, uninitialised, and the kernel's own for all
// that it puts on the stream. Neither call waits for the device.
class Launch {
 public:
  Launch(int device, void* stream, Precision precision = Precision::kFloat32)
      : device_(device), stream_(stream), precision_(precision) {}

  int device() const { return device_; }    // its index; -1 where the kernel is emulated
  void* stream() const { return stream_; }  // a cudaStream_t of that device
  Precision precision() const { return precision_; }
  bool measuring() const { return measuring_; }

  // Ends measuring.
  void use(void* memory) {
    memory_ = static_cast<char*>(memory);
    measuring_ = false;
    bytes_ = 0;
  }

  // `count` elements, aligned to 256 bytes.
  template <class T>
  T* scratch(int64_t count) {
    char* const at = measuring_ ? nullptr : memory_ + bytes_;
    bytes_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  int64_t bytes() const { return bytes_; }

 private:
  int device_;
  void* stream_;
  Precision precision_;
  char* memory_ = nullptr;
  bool measuring_ = true;
  int64_t bytes_ = 0;
};

}  // namespace alphafuse
