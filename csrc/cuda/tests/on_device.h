// Where the kernels under test find their arrays. Emulated, that is where the tests have them; on a GPU
// each is copied there, and back after the kernels if they may write to it: to memory of exactly its
// size, so that compute-sanitizer sees an access behind it, and as far from a multiple of 16 bytes.
#pragma once

#include "cuda/groups.h"
#include "cuda/kernels.h"
#include "tests/problem.h"

#if defined(ALPHAFUSE_TESTS_ON_GPU)
#include <exception>
#include <map>

#include "cuda/device.cuh"
#endif

namespace alphafuse {
namespace tests {

#if defined(ALPHAFUSE_WGMMA)
constexpr bool kWithWgmma = true;
#else
constexpr bool kWithWgmma = false;
#endif

#if defined(ALPHAFUSE_TESTS_ON_GPU)

constexpr bool kOnGpu = true;
constexpr int kDevice = 0;

inline void check_cuda(cudaError_t error) { cuda::check("test", error); }

// What nothing catches, such as that there is no GPU, in one line.
inline const auto before_in_one_line = std::set_terminate([] {
  try {
    std::rethrow_exception(std::current_exception());
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
  } catch (...) {
  }
  std::fflush(stdout);
  std::_Exit(1);
});

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) {
    check_cuda(cudaMalloc(&data_, std::max(bytes, std::size_t{1})));
    check_cuda(cudaMemset(data_, 0xff, bytes));
  }
  ~DeviceMemory() { cudaFree(data_); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  unsigned char* data() const { return static_cast<unsigned char*>(data_); }

 private:
  void* data_ = nullptr;
};

// The copies of one run, by where the host has what they are of.
class DeviceCopies {
 public:
  void* of(const void* host, std::size_t bytes, bool written) {
    if (host == nullptr) return nullptr;
    Copy& copy = copies_[host];
    if (copy.memory == nullptr) {
      copy.offset = reinterpret_cast<std::uintptr_t>(host) % 16;
      copy.bytes = bytes;
      copy.memory = std::make_unique<DeviceMemory>(copy.offset + bytes);
      check_cuda(cudaMemcpy(copy.data(), host, bytes, cudaMemcpyHostToDevice));
    } else if (copy.bytes != bytes) {
      throw std::logic_error("an array is given to a kernel with two sizes");
    }
    copy.written = copy.written || written;
    return copy.data();
  }
  // After what was put on the stream: errors of kernels show here.
  void wait() { check_cuda(cudaDeviceSynchronize()); }
  void bring_back() {
    wait();
    for (auto& [host, copy] : copies_) {
      if (!copy.written) continue;
      check_cuda(cudaMemcpy(const_cast<void*>(host), copy.data(), copy.bytes, cudaMemcpyDefault));
    }
  }

 private:
  struct Copy {
    std::unique_ptr<DeviceMemory> memory;
    std::size_t offset = 0, bytes = 0;
    bool written = false;
    unsigned char* data() const { return memory->data() + offset; }
  };
  std::map<const void*, Copy> copies_;
};

#else

constexpr bool kOnGpu = false;
constexpr int kDevice = -1;

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) : data_(new unsigned char[bytes]) {
    std::memset(data_.get(), 0xff, bytes);
  }
  unsigned char* data() const { return data_.get(); }

 private:
  std::unique_ptr<unsigned char[]> data_;
};

class DeviceCopies {
 public:
  void* of(const void* host, std::size_t, bool) { return const_cast<void*>(host); }
  void wait() {}
  void bring_back() {}
};

#endif

// A launch; on(x) is x where its kernels can read it.
class OnDevice : public Launch {
 public:
  explicit OnDevice(Precision precision) : Launch(kDevice, nullptr, precision) {}

  template <class T>
  T* operator()(T* data, int64_t count) {
    const auto bytes = static_cast<std::size_t>(count) * sizeof(T);
    return static_cast<T*>(copies_.of(data, bytes, !std::is_const<T>::value));
  }
  template <class T, Size... names>
  Array<T, names...> operator()(Array<T, names...> array) {
    array.data = (*this)(array.data, product(array.size));
    return array;
  }
  template <class Any>
  Optional<Any> operator()(Optional<Any> given) {
    static_cast<Any&>(given) = (*this)(static_cast<Any&>(given));
    return given;
  }
  template <class Void, Size... names>
  FloatArray<Void, names...> operator()(FloatArray<Void, names...> array) {
    const auto bytes = static_cast<std::size_t>(product(array.size)) * bytes_of(array.dtype);
    array.data = copies_.of(array.data, bytes, !std::is_const<Void>::value);
    return array;
  }
  Tables operator()(Tables tables) {
    for (Table* const table : {&tables.semantic, &tables.id}) {
      const int64_t count = table->cols == 0 ? 0 : (tables.rows - 1) * table->stride + table->cols;
      table->data =
          copies_.of(table->data, static_cast<std::size_t>(count) * bytes_of(table->dtype), false);
    }
    return tables;
  }
  cuda::Groups operator()(cuda::Groups groups) {
    groups.rows = (*this)(groups.rows, groups.count);
    groups.entries = (*this)(groups.entries, groups.count);
    return groups;
  }
  ExcludedIds operator()(ExcludedIds exclude, int64_t batch) {
    if (exclude.offsets == nullptr) return exclude;
    const int64_t count = exclude.offsets[batch];
    return {(*this)(exclude.offsets, batch + 1), (*this)(exclude.ids, count)};
  }

  void wait() { copies_.wait(); }
  void bring_back() { copies_.bring_back(); }

 private:
  template <std::size_t n>
  static int64_t product(const int64_t (&sizes)[n]) {
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    return count;
  }

  DeviceCopies copies_;
};

// Measures a kernel, gives it that much scratch memory, runs it and waits for it; returns its bytes.
template <class Call>
int64_t run(Precision precision, Call call) {
  OnDevice on(precision);
  call(on);
  const auto bytes = static_cast<std::size_t>(on.bytes());
  const DeviceMemory memory(bytes);
  on.use(memory.data());
  call(on);
  on.bring_back();
  if (static_cast<std::size_t>(on.bytes()) > bytes) {
    throw std::runtime_error("scratch: less was measured than is used");
  }
  return on.bytes();
}

}  // namespace tests
}  // namespace alphafuse
