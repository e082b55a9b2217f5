// Compiled once per instruction set, with TPTT_LANES and TPTT_NAME (the suffix of what it exports); with TPTT_TILES only what
// takes its products from tiles.
#include "backward.h"
#include "forward.h"
#ifndef TPTT_TILES
#include "fourier.h"
#include "memory_step.h"
#endif

#define TPTT_JOIN2(a, b) a##_##b
#define TPTT_JOIN(a, b) TPTT_JOIN2(a, b)

extern "C" {
void TPTT_JOIN(tptt_forward, TPTT_NAME)(const TpttProblem* p) { forward(*p); }
void TPTT_JOIN(tptt_backward, TPTT_NAME)(const TpttProblem* p) { backward(*p); }
#ifndef TPTT_TILES
void TPTT_JOIN(tptt_step, TPTT_NAME)(const TpttStep* p) { step(*p); }
void TPTT_JOIN(tptt_memory_step, TPTT_NAME)(const TpttMemoryStep* p) { memory_step(*p); }
void TPTT_JOIN(tptt_fourier, TPTT_NAME)(const TpttFourier* p) { fourier(*p); }
void TPTT_JOIN(tptt_fourier_backward, TPTT_NAME)(const TpttFourier* p) { fourier_backward(*p); }
#endif
}
