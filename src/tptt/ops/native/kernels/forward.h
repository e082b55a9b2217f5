// Forward, chunk after chunk. Derivation: ../../README.md, "Chunkwise form".
#pragma once
#include "chunk.h"

namespace {

inline int64_t count_of_chunks(const TpttProblem& p) { return (p.tokens + p.chunk - 1) / p.chunk; }
inline int64_t count_of_segments(const TpttProblem& p) { return (count_of_chunks(p) + p.segment - 1) / p.segment; }

struct ForwardScratch {
  float *a, *mixing, *u, *out, *state;

  ForwardScratch(const Sizes& z, Arena& arena)
      : a(arena.take(int64_t(z.columns) * z.columns)), mixing(arena.take(int64_t(z.queries) * z.columns)),
        u(arena.take(int64_t(z.columns) * z.values)), out(arena.take(int64_t(z.queries) * z.values)),
        state(arena.take(int64_t(z.keys) * z.values)) {}
};

// o [G*C, V] = q~ S + P u, in the caller's layout.
inline void read_out(const TpttProblem& p, const Sizes& z, const Chunk& c, const ForwardScratch& s) {
  const int width = z.values, row = z.columns;
  product<Onto::NOTHING>(c.ahead, s.out, width, c.queries, z.keys, 1, s.state, width, z.queries, width, z.keys);
  for (int m = 0; m < z.queries; m += 4) {
    if (p.g.data)
      for (int i = m; i < m + 4; i++) scale_rows(s.out + i * width, width, c.since_start + position_of(z, i), 1);
    product<Onto::SUM>(c.ahead, s.out + m * width, width, s.mixing + m * row, row, 1, s.u, width, 4, width,
                       position_of(z, m + 3) + 1);
  }
  for (int g = 0; g < z.groups; g++)
    for (int i = 0; i < z.tokens && c.start + i < p.tokens; i++)
      store_row(p.o.data, offset(p.o, c.b, c.start + i, 0, c.h * z.groups + g), p.bfloat16, s.out + (g * z.tokens + i) * width,
                z.value_width);
}

inline void forward_head(const TpttProblem& p, const Sizes& z, Chunk& c, ForwardScratch& s, int64_t b, int64_t h) {
  const int64_t of_state = int64_t(z.key_width) * z.value_width, which = b * p.heads + h, chunks = count_of_chunks(p);
  load_state(z, p.initial_state ? p.initial_state + which * of_state : nullptr, s.state);
  for (int64_t n = 0; n < chunks; n++) {
    if (p.saved && n % p.segment == 0)
      store_state(z, s.state, p.saved + (which * count_of_segments(p) + n / p.segment) * of_state);
    load_chunk(p, z, b, h, n * z.tokens, c);
    c.ahead.forget();
    ask_queries(p, z, c, p.o, c.start, z.value_width);
    ask_inputs(p, z, c, c.start + z.tokens);
    mix(p, z, c, s.a, s.mixing);
    updates(p, z, c, s.a, s.state, s.u);
    read_out(p, z, c, s);
    advance(p, z, c, s.u, s.u, s.state, s.state);
  }
  store_state(z, s.state, p.final_state + which * of_state);
}

inline void forward(const TpttProblem& p) {
  const Sizes z(p);
  Arena measured;
  Chunk{z, measured}, ForwardScratch{z, measured};
#pragma omp parallel num_threads(int(p.threads))
  {
    Arena arena(measured.taken());
    Chunk c(z, arena);
    ForwardScratch s(z, arena);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < p.batch * p.heads; i++) forward_head(p, z, c, s, i / p.heads, i % p.heads);
  }
}

}  // namespace
