// Whether this process may use the processor's tiles (AMX). Linux grants their large registers on request only.
#pragma once
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

inline bool may_use_tiles() {
#ifdef __linux__
  unsigned a, b, c, d;
  constexpr unsigned BFLOAT16 = 1u << 22, TILES = 1u << 24;  // of leaf 7
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & BFLOAT16) || !(d & TILES)) return false;
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return false;
#endif
}

}  // namespace
