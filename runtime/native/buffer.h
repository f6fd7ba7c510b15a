// Memory for numbers that are about to be overwritten.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

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

// Buffers that their last users left, for the next ones: fresh memory costs a page fault every 4 KiB, which
// for a weight is as much as a third of programming it.
class BufferPool : public std::enable_shared_from_this<BufferPool> {
 public:
  std::shared_ptr<Buffer> take() {
    auto buffer = std::make_unique<Buffer>();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (!left_.empty()) {
        buffer = std::move(left_.back());
        left_.pop_back();
      }
    }
    return {buffer.release(), [pool = shared_from_this()](Buffer* used) { pool->leave(used); }};
  }

 private:
  void leave(Buffer* used) {
    std::unique_ptr<Buffer> buffer(used);
    const std::lock_guard<std::mutex> lock(mutex_);
    left_.push_back(std::move(buffer));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Buffer>> left_;
};

}  // namespace cnpass
