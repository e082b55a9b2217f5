// One token, in place on the state: N + 1 passes over it. Each pass writes what the one before found and reads for the
// next key, the last for the queries.
#pragma once
#include "chunk.h"

namespace {

// state <- decay state + key u^T, where WRITE, and read = state^T reader; columns of STRIPS vectors.
template <int STRIPS, bool WRITE>
inline void pass(float* state, int width, int rows, const float* key, const float* u, float decay, const float* reader,
                 float* read) {
  Vec write[STRIPS], total[STRIPS];
  for (int j = 0; j < STRIPS; j++) {
    if (WRITE) write[j] = load(u + j * LANES);
    total[j] = Vec{};
  }
  const Vec factor = splat(decay);
  for (int i = 0; i < rows; i++) {
    float* at = state + int64_t(i) * width;
    const Vec reads = splat(reader[i]), writes = WRITE ? splat(key[i]) : Vec{};
    for (int j = 0; j < STRIPS; j++) {
      Vec x = load(at + j * LANES);
      if (WRITE) store(at + j * LANES, x = x * factor + writes * write[j]);
      total[j] += reads * x;
    }
  }
  for (int j = 0; j < STRIPS; j++) store(read + j * LANES, total[j]);
}

// `pass` over every column from n on, STRIPS vectors at a time while there are so many, then half of it.
template <int STRIPS, bool WRITE>
inline void passes(float* state, int width, int rows, const float* key, const float* u, float decay, const float* reader,
                   float* read, int n) {
  for (; n + STRIPS * LANES <= width; n += STRIPS * LANES)
    pass<STRIPS, WRITE>(state + n, width, rows, key, WRITE ? u + n : u, decay, reader, read + n);
  if constexpr (STRIPS > 1) return passes<STRIPS / 2, WRITE>(state, width, rows, key, u, decay, reader, read, n);
  for (; n < width; n++) {
    float total = 0.f;
    for (int i = 0; i < rows; i++) {
      float* at = state + int64_t(i) * width + n;
      if (WRITE) *at = *at * decay + key[i] * u[n];
      total += reader[i] * *at;
    }
    read[n] = total;
  }
}

constexpr int STRIPS = LANES == 16 ? 8 : 4;
inline void read_rows(float* state, int width, int rows, const float* reader, float* read) {
  passes<STRIPS, false>(state, width, rows, nullptr, nullptr, 1.f, reader, read, 0);
}
inline void write_rows(float* state, int width, int rows, const float* key, const float* u, float decay,
                       const float* reader, float* read) {
  passes<STRIPS, true>(state, width, rows, key, u, decay, reader, read, 0);
}

struct StepScratch {
  float *keys, *query, *value, *read, *u;  // [N, K], [K], [V], [V], [V]

  StepScratch(const TpttStep& p, Arena& arena)
      : keys(arena.take(p.writes * p.key_width)), query(arena.take(p.key_width)), value(arena.take(p.value_width)),
        read(arena.take(p.value_width)), u(arena.take(p.value_width)) {}
};

inline void step_head(const TpttStep& p, const StepScratch& s, int64_t b, int64_t h) {
  const int key_width = int(p.key_width), width = int(p.value_width);
  float* state = p.state + (b * p.heads + h) * key_width * width;
  float decay = 1.f;
  if (p.g) decay = exp(splat(p.g[b * p.heads + h] < -1e4f ? -1e4f : p.g[b * p.heads + h]))[0];
  const auto row_of = [&](int64_t n) { return (b * p.writes + n) * p.heads + h; };
  const auto load_query = [&](int64_t g) {
    load_row(p.q, ((b * p.heads + h) * p.groups + g) * key_width, p.bfloat16, s.query, key_width);
  };
  load_query(0);
  for (int64_t n = 0; n < p.writes; n++) load_row(p.k, row_of(n) * key_width, p.bfloat16, s.keys + n * key_width, key_width);
  if (p.delta) read_rows(state, width, key_width, s.keys, s.read);
  for (int64_t n = 0; n < p.writes; n++) {
    load_row(p.v, row_of(n) * width, p.bfloat16, s.value, width);
    const float beta = p.beta ? p.beta[row_of(n)] : 1.f, before = n ? 1.f : decay;
    for (int j = 0; j < width; j++) s.u[j] = beta * (p.delta ? s.value[j] - before * s.read[j] : s.value[j]);
    const float* next = n + 1 < p.writes ? s.keys + (n + 1) * key_width : s.query;
    write_rows(state, width, key_width, s.keys + n * key_width, s.u, before, next, s.read);
  }
  for (int64_t g = 0; g < p.groups; g++) {
    if (g) {
      load_query(g);
      read_rows(state, width, key_width, s.query, s.read);
    }
    for (int j = 0; j < width; j++) s.read[j] *= p.scale;
    store_row(p.o, ((b * p.heads + h) * p.groups + g) * width, p.bfloat16, s.read, width);
  }
}

// one(p, scratch, b, h) for each of ``heads`` and every row of the batch, which share its weights, on p.threads threads.
template <class Scratch, class Problem, class One> inline void each_head(const Problem& p, int64_t heads, One one) {
  const int64_t count = p.batch * heads;
  Arena measured;
  Scratch{p, measured};
#pragma omp parallel num_threads(int(p.threads < count ? p.threads : count)) if (p.threads > 1)
  {
    Arena arena(measured.taken());
    Scratch s(p, arena);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) one(p, s, i % p.batch, i / p.batch);
  }
}

inline void step(const TpttStep& p) { each_head<StepScratch>(p, p.heads, step_head); }

}  // namespace
