// How a thread treats subnormal numbers: those too small for a float with all its digits.
#pragma once
#include <cstdint>
#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace {

// While an object of this class lives, its thread reads subnormal numbers as zero and makes none. Strong decays would
// make many, and processors are very slow with them.
class NoSubnormals {
 public:
#if defined(__SSE2__)
  NoSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~NoSubnormals() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
  NoSubnormals() {
    asm volatile("mrs %0, fpcr" : "=r"(before_));
    asm volatile("msr fpcr, %0" ::"r"(before_ | uint64_t(1) << 24));
  }
  ~NoSubnormals() { asm volatile("msr fpcr, %0" ::"r"(before_)); }
#else
  NoSubnormals() {}
#endif
  NoSubnormals(const NoSubnormals&) = delete;
  NoSubnormals& operator=(const NoSubnormals&) = delete;

 private:
#if defined(__SSE2__)
  unsigned before_;
#elif defined(__aarch64__)
  uint64_t before_;
#endif
};

}  // namespace
