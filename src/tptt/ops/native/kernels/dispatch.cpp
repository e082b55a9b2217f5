// The exported functions: instruction sets by number, the best one of this machine, and a call into one of them.
#include "abi.h"
#ifdef TPTT_AMX
#include "tile_permission.h"
#endif

#define TPTT_DECLARE_RECURRENCE(name)            \
  int tptt_forward_##name(const TpttProblem* p); \
  int tptt_backward_##name(const TpttProblem* p);
#define TPTT_DECLARE(name)                              \
  TPTT_DECLARE_RECURRENCE(name)                         \
  int tptt_step_##name(const TpttStep* p);              \
  int tptt_memory_step_##name(const TpttMemoryStep* p); \
  int tptt_fourier_##name(const TpttFourier* p);        \
  int tptt_fourier_backward_##name(const TpttFourier* p);

extern "C" {
TPTT_DECLARE(portable)
#ifdef TPTT_X86
TPTT_DECLARE(avx2)
TPTT_DECLARE(avx512)
#endif
#ifdef TPTT_AMX
TPTT_DECLARE_RECURRENCE(amx)
#endif

// 0 portable, 1 AVX2 with FMA, 2 AVX-512, 3 AVX-512 with AMX for what is bfloat16
int tptt_best() {
#ifdef TPTT_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
#ifdef TPTT_AMX
    if (may_use_tiles()) return 3;
#endif
    return 2;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

// ../library_file.py looks for this text in the file before it loads it: a library from other sources is never called.
extern const char tptt_sources[];
const char tptt_sources[] = "tptt kernel sources " TPTT_SOURCES;

// Sizes of the structs, so that a caller with other ones finds out before it calls.
void tptt_sizes(int64_t* sizes) {
  sizes[0] = sizeof(TpttProblem);
  sizes[1] = sizeof(TpttStep);
  sizes[2] = sizeof(TpttMemoryStep);
  sizes[3] = sizeof(TpttFourier);
}

#ifdef TPTT_X86
#define TPTT_CHOOSE(what, p)                   \
  switch (set) {                               \
    case 3:                                    \
    case 2: return tptt_##what##_avx512(p);    \
    case 1: return tptt_##what##_avx2(p);      \
    default: return tptt_##what##_portable(p); \
  }
#else
#define TPTT_CHOOSE(what, p) \
  (void)set;                 \
  return tptt_##what##_portable(p);
#endif
#ifdef TPTT_AMX
#define TPTT_CHOOSE_RECURRENCE(what, p)                     \
  if (set == 3 && p->bfloat16) return tptt_##what##_amx(p); \
  TPTT_CHOOSE(what, p)
#else
#define TPTT_CHOOSE_RECURRENCE(what, p) TPTT_CHOOSE(what, p)
#endif

int tptt_forward(int set, const TpttProblem* p) { TPTT_CHOOSE_RECURRENCE(forward, p) }
int tptt_backward(int set, const TpttProblem* p) { TPTT_CHOOSE_RECURRENCE(backward, p) }
int tptt_step(int set, const TpttStep* p) { TPTT_CHOOSE(step, p) }
int tptt_memory_step(int set, const TpttMemoryStep* p) { TPTT_CHOOSE(memory_step, p) }
int tptt_fourier(int set, const TpttFourier* p) { TPTT_CHOOSE(fourier, p) }
int tptt_fourier_backward(int set, const TpttFourier* p) { TPTT_CHOOSE(fourier_backward, p) }
}
