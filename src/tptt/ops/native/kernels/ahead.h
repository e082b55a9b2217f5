// Prefetching: lines of memory are requested before they are used.
#pragma once
#include <cstdint>

namespace {

// Rows to prefetch while products run, one line of 64 bytes at a time. A processor that requests many lines at once has
// to wait for them, and so does one that requests them too late.
class Ahead {
 public:
  void forget() { rows_ = now_ = 0; }

  // ``outer`` times ``inner`` rows of ``bytes`` from ``first`` on, ``outer_step`` and ``inner_step`` bytes apart.
  void add(const void* first, int outer, int64_t outer_step, int inner, int64_t inner_step, int64_t bytes) {
    const char* start = static_cast<const char*>(first);
    const int lines = int((bytes + 63) / 64);
    all_[rows_++] = {start, start, outer_step, inner_step, outer, inner, inner, lines < MOST_LINES ? lines : MOST_LINES,
                     0};
  }

  bool done() const { return now_ == rows_; }

  void ask() {
    if (done()) return;
    Rows& r = all_[now_];
    __builtin_prefetch(r.row + 64 * r.line);
    if (++r.line < r.lines) return;
    r.line = 0, r.row += r.inner_step;
    if (--r.left) return;
    r.left = r.inner, r.first += r.outer_step, r.row = r.first;
    if (--r.outer == 0) now_++;
  }

 private:
  struct Rows {
    const char *first, *row;
    int64_t outer_step, inner_step;
    int outer, inner, left, lines, line;
  };
  static constexpr int MOST_LINES = 8;  // the processor fetches the rest of a longer row by itself
  Rows all_[8];
  int rows_ = 0, now_ = 0;
};

constexpr int ASK_AFTER = 64;  // vector products per prefetched line; chosen by timing benchmarks.ops

}  // namespace
