// Memory for numbers that are about to be overwritten.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace cnpass {

// Floats on their own cache lines: a vector that straddles two of them costs twice as much to load.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size) { reserve(size); }

  // Makes room for `size` floats; what was there is lost when it has to grow.
  float* reserve(int64_t size) {
    if (size > size_) {
      data_.reset();
      size_ = 0;
      data_.reset(static_cast<float*>(::operator new[](static_cast<size_t>(size) * sizeof(float), kLine)));
      size_ = size;
    }
    return data_.get();
  }

  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(float* data) const { ::operator delete[](data, kLine); }
  };
  std::unique_ptr<float, Free> data_;
  int64_t size_ = 0;
};

}  // namespace cnpass
