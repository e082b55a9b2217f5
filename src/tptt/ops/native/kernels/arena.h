// The memory of a thread.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

// A thread's memory, handed out piece by piece. One without memory only measures what the pieces take together.
class Arena {
 public:
  Arena() = default;
  explicit Arena(int64_t floats) : start_(static_cast<float*>(aligned_alloc(64, 4 * floats))) {
    if (!start_) abort();
    memset(start_, 0, 4 * floats);
  }
  ~Arena() { free(start_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  float* take(int64_t floats) {
    float* piece = start_ ? start_ + taken_ : nullptr;
    taken_ += (floats + 15) / 16 * 16;
    return piece;
  }
  int64_t taken() const { return taken_; }

 private:
  float* start_ = nullptr;
  int64_t taken_ = 0;
};

}  // namespace
