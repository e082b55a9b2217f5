// One token, in place on the state, in N + 1 passes over it. Every pass but the last reads for the next key. The pass
// before the last write also reads for the first query: what that query finds after the write follows from what it
// finds before it. So the last pass only writes, and it goes backwards, because the rows that were read last are still
// in the nearest cache.
#pragma once
#include "chunk.h"

namespace {

// state <- decay state + key u^T, where WRITE, and read[r] = state^T reader[r]; columns of STRIPS vectors.
template <int STRIPS, bool WRITE, int READS>
inline void pass(float* state, int width, int rows, const float* key, const float* u, float decay,
                 const float* const* reader, float* const* read, int column) {
  Vec write[STRIPS], total[READS ? READS : 1][STRIPS];
  for (int j = 0; j < STRIPS; j++) {
    if (WRITE) write[j] = load(u + column + j * LANES);
    for (int r = 0; r < READS; r++) total[r][j] = Vec{};
  }
  const Vec factor = splat(decay);
  for (int n = 0; n < rows; n++) {
    const int i = READS ? n : rows - 1 - n;
    float* at = state + int64_t(i) * width + column;
    const Vec writes = WRITE ? splat(key[i]) : Vec{};
    Vec reads[READS ? READS : 1];
    for (int r = 0; r < READS; r++) reads[r] = splat(reader[r][i]);
    for (int j = 0; j < STRIPS; j++) {
      Vec x = load(at + j * LANES);
      if (WRITE) store(at + j * LANES, x = x * factor + writes * write[j]);
      for (int r = 0; r < READS; r++) total[r][j] += reads[r] * x;
    }
  }
  for (int r = 0; r < READS; r++)
    for (int j = 0; j < STRIPS; j++) store(read[r] + column + j * LANES, total[r][j]);
}

constexpr int STRIPS = LANES == 16 ? 8 : 4;

// `pass` over every column from ``column`` on, COUNT vectors at a time while there are so many, then half of it.
template <bool WRITE, int READS, int COUNT = STRIPS>
inline void passes(float* state, int width, int rows, const float* key, const float* u, float decay,
                   const float* const* reader, float* const* read, int column = 0) {
  for (; column + COUNT * LANES <= width; column += COUNT * LANES)
    pass<COUNT, WRITE, READS>(state, width, rows, key, u, decay, reader, read, column);
  if constexpr (COUNT > 1)
    return passes<WRITE, READS, COUNT / 2>(state, width, rows, key, u, decay, reader, read, column);
  for (; column < width; column++) {
    float total[READS ? READS : 1] = {};
    for (int i = 0; i < rows; i++) {
      float* at = state + int64_t(i) * width + column;
      if (WRITE) *at = *at * decay + key[i] * u[column];
      for (int r = 0; r < READS; r++) total[r] += reader[r][i] * *at;
    }
    for (int r = 0; r < READS; r++) read[r][column] = total[r];
  }
}

inline void read_rows(float* state, int width, int rows, const float* reader, float* read) {
  passes<false, 1>(state, width, rows, nullptr, nullptr, 1.f, &reader, &read);
}

// `passes` for ``reads`` readers, 0 to 2.
template <bool WRITE>
inline void passes_for(int reads, float* state, int width, int rows, const float* key, const float* u, float decay,
                       const float* const* reader, float* const* read) {
  if (reads == 0) passes<WRITE, 0>(state, width, rows, key, u, decay, reader, read);
  if (reads == 1) passes<WRITE, 1>(state, width, rows, key, u, decay, reader, read);
  if (reads == 2) passes<WRITE, 2>(state, width, rows, key, u, decay, reader, read);
}

// Writes ``writes`` keys [N, K] and values [N, V] of one token by the delta rule (without ``delta`` by linear
// attention) and then reads with ``query``. Value n is written with strength beta[n stride], or 1 without a beta. ``u``
// and ``found`` [V] are scratch.
inline void write_and_read(float* state, int width, int rows, int writes, const float* keys, const float* values,
                           const float* beta, int64_t stride, float decay, bool delta, const float* query, float* u,
                           float* found, float* read) {
  for (int n = 0; n < writes; n++) {
    const float *key = keys + int64_t(n) * rows, *value = values + int64_t(n) * width;
    const bool last = n + 1 == writes;
    const float* readers[] = {delta ? key : query, query};
    float* reads[] = {delta ? found : read, read};
    if (n == 0)
      passes_for<false>(delta + last, state, width, rows, nullptr, nullptr, 1.f, readers, reads);
    else
      passes_for<true>(delta + last, state, width, rows, key - rows, u, n == 1 ? decay : 1.f, readers, reads);
    const float strength = beta ? beta[n * stride] : 1.f, before = n ? 1.f : decay,
                match = last ? dot(key, query, rows) : 0.f;
    for (int j = 0; j < width; j++) {
      u[j] = strength * (delta ? value[j] - before * found[j] : value[j]);
      if (last) read[j] = before * read[j] + match * u[j];
    }
  }
  passes<true, 0>(state, width, rows, keys + int64_t(writes - 1) * rows, u, writes == 1 ? decay : 1.f, nullptr,
                  nullptr);
}

struct StepScratch {
  float *keys, *values, *query, *read, *u, *found;  // [N, K], [N, V], [K], [V], [V], [V]

  StepScratch(const TpttStep& p, Arena& arena)
      : keys(arena.take(p.writes * p.key_width)),
        values(arena.take(p.writes * p.value_width)),
        query(arena.take(p.key_width)),
        read(arena.take(p.value_width)),
        u(arena.take(p.value_width)),
        found(arena.take(p.value_width)) {}
};

inline void step_head(const TpttStep& p, const StepScratch& s, int64_t b, int64_t h) {
  const int keys = int(p.key_width), width = int(p.value_width);
  float* state = p.state + (b * p.heads + h) * keys * width;
  float decay = 1.f;
  if (p.g) decay = exp(splat(p.g[b * p.heads + h] < -1e4f ? -1e4f : p.g[b * p.heads + h]))[0];
  const auto row_of = [&](int64_t n) { return (b * p.writes + n) * p.heads + h; };
  const auto load_query = [&](int64_t g) {
    load_row(p.q, ((b * p.heads + h) * p.groups + g) * keys, p.bfloat16, s.query, keys);
  };
  load_query(0);
  for (int64_t n = 0; n < p.writes; n++) {
    load_row(p.k, row_of(n) * keys, p.bfloat16, s.keys + n * keys, keys);
    load_row(p.v, row_of(n) * width, p.bfloat16, s.values + n * width, width);
  }
  write_and_read(state, width, keys, int(p.writes), s.keys, s.values, p.beta ? p.beta + row_of(0) : nullptr, p.heads,
                 decay, p.delta, s.query, s.u, s.found, s.read);
  for (int64_t g = 0; g < p.groups; g++) {
    if (g) {
      load_query(g);
      read_rows(state, width, keys, s.query, s.read);
    }
    for (int j = 0; j < width; j++) s.read[j] *= p.scale;
    store_row(p.o, ((b * p.heads + h) * p.groups + g) * width, p.bfloat16, s.read, width);
  }
}

// one(p, scratch, b, h) for each of ``heads`` and every row of the batch, which share its weights, on p.threads
// threads.
template <class Scratch, class Problem, class One>
inline TpttStatus each_head(const Problem& p, int64_t heads, One one) {
  const int64_t count = p.batch * heads;
  Arena measured;
  Scratch{p, measured};
  const int threads = int(p.threads < count ? p.threads : count);
  const Workspace workspace(threads, measured.taken());
  if (workspace.failed()) return TPTT_OUT_OF_MEMORY;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const NoSubnormals here;
    Arena arena = workspace.part();
    Scratch s(p, arena);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i++) one(p, s, i % p.batch, i / p.batch);
  }
  return TPTT_OK;
}

inline TpttStatus step(const TpttStep& p) { return each_head<StepScratch>(p, p.heads, step_head); }

}  // namespace
