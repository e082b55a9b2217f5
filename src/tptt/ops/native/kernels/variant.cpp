// Compiled once per instruction set, with TPTT_LANES and TPTT_NAME (the suffix of what it exports). With TPTT_TILES it
// has only the functions that compute their products on tiles.
#include "backward.h"
#include "forward.h"
#ifndef TPTT_TILES
#include "fourier.h"
#include "memory_step.h"
#endif

#define TPTT_JOIN2(a, b) a##_##b
#define TPTT_JOIN(a, b) TPTT_JOIN2(a, b)

extern "C" {
int TPTT_JOIN(tptt_forward, TPTT_NAME)(const TpttProblem* p) { return forward(*p); }
int TPTT_JOIN(tptt_backward, TPTT_NAME)(const TpttProblem* p) { return backward(*p); }
#ifndef TPTT_TILES
int TPTT_JOIN(tptt_step, TPTT_NAME)(const TpttStep* p) { return step(*p); }
int TPTT_JOIN(tptt_memory_step, TPTT_NAME)(const TpttMemoryStep* p) { return memory_step(*p); }
int TPTT_JOIN(tptt_fourier, TPTT_NAME)(const TpttFourier* p) { return fourier(*p); }
int TPTT_JOIN(tptt_fourier_backward, TPTT_NAME)(const TpttFourier* p) { return fourier_backward(*p); }
#endif
}
