// The memory that the threads of a call work in.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <cstring>
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// Memory of one thread, handed out piece by piece. An arena without memory only measures how much the pieces take
// together.
class Arena {
 public:
  Arena() = default;
  Arena(float* start, int64_t floats) : start_(start) { memset(start_, 0, 4 * floats); }
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

// The memory of all threads of a call. It is allocated before the threads start, so that a call that fails for lack of
// memory has changed nothing yet. Each thread zeroes its own part, which places the pages near that thread.
class Workspace {
 public:
  Workspace(int64_t threads, int64_t floats) : floats_((floats + 16) / 16 * 16) {
    start_ = static_cast<float*>(aligned_alloc(64, 4 * (threads > 1 ? threads : 1) * floats_));
  }
  ~Workspace() { free(start_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  bool failed() const { return !start_; }
  // The part of the calling thread, to be used once per thread.
  Arena part() const { return {start_ + thread() * floats_, floats_}; }

 private:
  static int64_t thread() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
  }

  int64_t floats_;
  float* start_;
};

}  // namespace
