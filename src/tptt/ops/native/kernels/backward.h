// Backward: chunk group by chunk group from the last, each recomputed from its saved state, then chunk by chunk in
// reverse. Derivation and the names E, Z, M: ../../README.md, "Backward".
#pragma once
#include "forward.h"

namespace {

constexpr int BAND = 512;  // columns of keys

// M = [A; P], Z = [-E; dO'] and X = [beta k; q], and their gradients, hold the rows of positions first and the rows of
// queries behind them. dO' is the scale times dO.
struct BackwardScratch {
  float *d_states, *d_state, *z, *d_out, *d_m, *d_x, *d_queries, *d_keys, *writes,
      *scaled;  // d_out in z, d_queries in d_x
  float *passing, *from_start, *to_end;
  // of products
  Left z_rows, u_rows, read_columns;                 // Z, u, [k; q]^T
  Right read, written, d_next, z_columns, u_across;  // S, k^^T u, dS', Z~, u^T
  Across state_across;                               // S^T and dS'^T

  BackwardScratch(const Sizes& s, int together, Arena& arena)
      : z_rows(s.rows, s.values, arena),
        u_rows(s.columns, s.values, arena),
        read_columns(s.keys, s.rows, arena),
        read(s.values, s.keys, arena),
        written(s.values, s.columns, arena),
        d_next(s.values, s.keys, arena),
        z_columns(s.values, s.rows, arena),
        u_across(s.columns, s.values, arena, true),
        state_across(s.rows, s.keys, s.values, arena) {
    const int64_t w = s.columns, r = s.rows, k = s.keys, v = s.values;
    d_state = d_states = arena.take(together * s.state());
    z = arena.take(r * v), d_out = z + w * v;
    d_m = arena.take(r * w);
    d_x = arena.take(r * k), d_queries = d_x + w * k;
    d_keys = arena.take(w * k), writes = arena.take(w * k), scaled = arena.take(w * v);
    passing = arena.take(w), from_start = arena.take(w), to_end = arena.take(w);
  }
};

// -E [W, V] in Z, E = T^T (P^T dO' + k^ dS').
inline void through_updates(const TpttProblem& p, const Sizes& z, Chunk& c, const Kept& kept, BackwardScratch& s) {
  const int width = z.values, row = z.columns;
  const float* mixing = kept.m + row * row;
  if (z.nothing_after(c)) {
    memset(s.z, 0, 4 * int64_t(z.positions) * width);
  } else {
    s.d_next.take(s.d_state, width, width, z.keys);
    product<Onto::NOTHING>(c.ahead, s.z, width, c.rows, 0, z.positions, s.d_next, width, z.keys);
    if (p.g.data) scale_rows(s.z, width, c.until_end, z.positions);
  }
  for (int m = 0; m < z.positions; m += 4) {
    int token = m / z.writes;  // the first that reads any of these four
    for (int g = 0; g < z.groups; g++) {
      int first = g * z.tokens + token;
      product<Onto::SUM>(c.ahead, s.z + m * width, width, mixing + first * row + m, 1, row, s.d_out + first * width,
                         width, 4, width, z.tokens - token);
    }
  }
  if (p.delta) solve_across(z, c, kept.m, s.z);
  for (int i = 0; i < z.positions * width; i += LANES) store(s.z + i, -load(s.z + i));
  s.z_rows.take(s.z, width, z.rows, width);
}

// dM = Z u^T, as far as M reaches.
inline void through_mixing(const TpttProblem& p, const Sizes& z, Chunk& c, const Kept& kept, BackwardScratch& s) {
  s.u_across.take_across(kept.u, z.values, z.columns, z.values);
  triangles(z, c, s.z_rows, s.u_across, z.values, s.d_m);
  for (int i = 0; p.delta && i < z.positions; i++) s.d_m[i * z.columns + i] = 0;
}

// dX~ = Z S^T and dk^ = u dS'^T.
inline void through_states(const Sizes& z, Chunk& c, const Kept& kept, BackwardScratch& s) {
  const int width = z.values;
  const int reading = z.rows - z.first;
  if (z.zero_before(c)) {
    memset(s.d_x + z.first * z.keys, 0, 4 * int64_t(reading) * z.keys);
  } else {
    s.state_across.take(kept.state, width, z.keys, width);
    s.state_across.product_of(c.ahead, s.d_x + z.first * z.keys, z.keys, s.z_rows, z.first, reading, z.keys, width);
  }
  if (z.nothing_after(c)) {
    memset(s.d_keys, 0, 4 * int64_t(z.columns) * z.keys);
  } else {
    s.u_rows.take(kept.u, width, z.columns, width);
    s.state_across.take(s.d_state, width, z.keys, width);
    s.state_across.product_of(c.ahead, s.d_keys, z.keys, s.u_rows, 0, z.columns, z.keys, width);
  }
}

// The gradient of the log decays: the sum over all (writer, reader) pairs that a decay lies between, never a difference
// of larger sums. Each row of the other gradients is multiplied by its own decay here as well, right after it was read.
inline void through_decays(const TpttProblem& p, const Sizes& z, Chunk& c, const Kept& kept, BackwardScratch& s) {
  const int row = z.columns;
  for (int w = 0; w < z.positions; w++) {
    s.from_start[w] = p.delta ? c.since_start[w] * dot(s.d_x + w * z.keys, s.writes + w * z.keys, z.keys) : 0.f;
    if (p.delta) scale_rows(s.d_x + w * z.keys, z.keys, c.since_start + w, 1);
    s.to_end[w] = c.until_end[w] * dot(s.d_keys + w * z.keys, c.keys + w * z.keys, z.keys);
    scale_rows(s.d_keys + w * z.keys, z.keys, c.until_end + w, 1);
  }
  for (int i = 0; i < z.queries; i++) {
    int at = position_of(z, i);
    s.from_start[at] += c.since_start[at] * dot(s.d_queries + i * z.keys, c.queries + i * z.keys, z.keys);
    scale_rows(s.d_queries + i * z.keys, z.keys, c.since_start + at, 1);
  }
  const float across = c.carried * dot(kept.state, s.d_state, int(z.state()));
  memset(s.passing, 0, 4 * row);
  float reads = 0, written = 0;
  for (int w = 0; w < z.positions; w++) {  // to_end becomes the sum of the values before it
    float own = s.to_end[w];
    s.to_end[w] = written;
    written += own;
  }
  for (int w = z.positions - 1; w >= 0; w--) {
    int token = w / z.writes;
    for (int j = 0; j <= w; j += LANES) {
      Vec x = load(s.passing + j);
      if (p.delta) x += load(s.d_m + w * row + j) * load(kept.m + w * row + j);
      if (w % z.writes == z.writes - 1)
        for (int g = 0; g < z.groups; g++) {
          int i = z.columns + g * z.tokens + token;
          x += load(s.d_m + i * row + j) * load(kept.m + i * row + j);
        }
      store(s.passing + j, x);
    }
    reads += s.from_start[w];
    if (w % z.writes == 0 && c.start + token < p.tokens) {
      Vec pairs{};
      for (int j = 0; j < w; j += LANES) pairs += first_lanes(load(s.passing + j), w - j);
      const float before = sum(pairs) + s.to_end[w];
      static_cast<float*>(p.d_g.data)[offset(p.d_g, c.b, c.start + token, 0, c.h)] = before + reads + across;
    }
  }
}

// dX += dM k and dk += dM^T X, one band of columns at a time: a band stays in the cache between the blocks of rows.
inline void through_products(const TpttProblem& p, const Sizes& z, Chunk& c, BackwardScratch& s) {
  const int row = z.columns, width = z.keys;
  float* d_mixing = s.d_m + row * row;
  for (int w = 0; p.delta && w < z.positions; w++) decay_row(z, c, s.d_m + w * row, w);
  for (int i = 0; i < z.queries; i++) decay_row(z, c, d_mixing + i * row, position_of(z, i));
  for (int n = 0; n < width; n += BAND) {
    const int columns = width - n < BAND ? width - n : BAND;
    const float *keys = c.keys + n, *writes = s.writes + n, *queries = c.queries + n;
    float *d_read = s.d_x + n, *d_keys = s.d_keys + n, *d_queries = s.d_queries + n;
    for (int m = 0; p.delta && m < z.positions; m += 4) {
      product<Onto::SUM>(c.ahead, d_read + m * width, width, s.d_m + m * row, row, 1, keys, width, 4, columns, m + 4);
      product<Onto::SUM>(c.ahead, d_keys + m * width, width, s.d_m + m * row + m, 1, row, writes + m * width, width, 4,
                         columns, z.positions - m);
    }
    for (int m = 0; m < z.queries; m += 4)
      product<Onto::SUM>(c.ahead, d_queries + m * width, width, d_mixing + m * row, row, 1, keys, width, 4, columns,
                         position_of(z, m + 3) + 1);
    for (int m = 0; m < z.positions; m += 4) {
      int token = m / z.writes;
      for (int g = 0; g < z.groups; g++) {
        int first = g * z.tokens + token;
        product<Onto::SUM>(c.ahead, d_keys + m * width, width, d_mixing + first * row + m, 1, row,
                           queries + first * width, width, 4, columns, z.tokens - token);
      }
    }
  }
}

// dbeta, dv, dk and dq of the chunk, in the caller's layout. Leaves dv in the place of v.
inline void store_gradients(const TpttProblem& p, const Sizes& z, Chunk& c, BackwardScratch& s) {
  const int tokens = p.tokens - c.start < z.tokens ? int(p.tokens - c.start) : z.tokens;
  for (int w = 0; w < tokens * z.writes; w++) {
    int64_t t = c.start + w / z.writes, n = w % z.writes;
    float *value = c.values + w * z.values, *key = s.d_keys + w * z.keys;
    const float *e = s.z + w * z.values, *read = s.d_x + w * z.keys;
    Vec beta = splat(c.beta[w]);
    if (p.d_beta.data) {
      float d = -dot(e, value, z.values);
      if (p.delta) d += dot(read, c.keys + w * z.keys, z.keys);
      static_cast<float*>(p.d_beta.data)[offset(p.d_beta, c.b, t, n, c.h)] = d;
    }
    for (int j = 0; p.delta && j < z.keys; j += LANES) store(key + j, load(key + j) + beta * load(read + j));
    for (int j = 0; j < z.values; j += LANES) store(value + j, -beta * load(e + j));
    // the padding must be zero for the next head, and it is NaN where beta or E is not finite
    for (int j = z.value_width; j < z.values; j++) value[j] = 0.f;
    store_row(p.d_k.data, offset(p.d_k, c.b, t, n, c.h), p.bfloat16, key, z.key_width, 1.f, z.streams);
    store_row(p.d_v.data, offset(p.d_v, c.b, t, n, c.h), p.bfloat16, value, z.value_width, 1.f, z.streams);
  }
  for (int i = 0; i < z.queries; i++) {
    int64_t t = c.start + i % z.tokens;
    if (t >= p.tokens) continue;
    float* row = s.d_queries + i * z.keys;
    store_row(p.d_q.data, offset(p.d_q, c.b, t, 0, c.h * z.groups + i / z.tokens), p.bfloat16, row, z.key_width, 1.f,
              z.streams);
  }
}

// dS = gamma dS' + X~^T Z, with beta on the side of Z, which it scales in place.
inline void retreat(const TpttProblem& p, const Sizes& z, Chunk& c, BackwardScratch& s) {
  const int width = z.values, depth = z.rows - z.first;
  for (int w = 0; p.delta && w < z.positions; w++) {
    const float factor = c.beta[w] * (p.g.data ? c.since_start[w] : 1.f);
    scale_rows(s.z + w * width, width, &factor, 1);
  }
  for (int i = 0; p.g.data && i < z.queries; i++)
    scale_rows(s.d_out + i * width, width, c.since_start + position_of(z, i), 1);
  s.read_columns.take_across(c.keys + z.first * z.keys, z.keys, z.keys, depth, true);
  s.z_columns.take(s.z + z.first * width, width, width, depth);
  product<Onto::SCALED>(c.ahead, s.d_state, width, s.read_columns, 0, z.keys, s.z_columns, width, depth, s.d_state,
                        p.g.data ? c.carried : 1.f);
}

// ``next``: the chunk that comes after this one, or NOWHERE.
inline void backward_chunk(const TpttProblem& p, const Sizes& z, Chunk& c, const Place& next, const Kept& kept,
                           BackwardScratch& s) {
  c.ahead.forget();
  if (!z.streams) {
    ask_positions(p, z, c.ahead, p.d_k, c, z.key_width);
    ask_positions(p, z, c.ahead, p.d_v, c, z.value_width);
    ask_queries(p, z, c.ahead, p.d_q, c, z.key_width);
  }
  ask_inputs(p, z, c.ahead, next);
  if (next.start >= 0) ask_queries(p, z, c.ahead, p.d_o, next, z.value_width);
  load_queries(p, z, c, p.d_o, s.d_out, z.value_width, z.values, p.scale);
  for (int w = 0; p.delta && w < z.positions; w++)
    for (int j = 0; j < z.keys; j += LANES)
      store(s.writes + w * z.keys + j, load(c.keys + w * z.keys + j) * splat(c.beta[w]));
  through_updates(p, z, c, kept, s);
  through_mixing(p, z, c, kept, s);
  through_states(z, c, kept, s);
  if (p.g.data) through_decays(p, z, c, kept, s);
  through_products(p, z, c, s);
  store_gradients(p, z, c, s);
  if (!z.zero_before(c)) retreat(p, z, c, s);
}

// Fills ``kept`` for the chunks from ``first`` to ``end``, from the state before them.
template <class PlaceOf>
inline void recompute_chunk_group(const TpttProblem& p, const Sizes& z, Chunk& c, const Kept* kept, BackwardScratch& s,
                                  const float* state, PlaceOf place, int64_t first, int64_t end) {
  load_state(z, state, kept[0].state);
  for (int64_t n = first; n < end; n++) {
    const Kept& now = kept[n - first];
    load_chunk(p, z, place(n), c);
    c.ahead.forget();
    if (n + 1 < end)
      ask_inputs(p, z, c.ahead, place(n + 1));
    else
      ask_queries(p, z, c.ahead, p.d_o, c, z.value_width);
    mix(p, z, c, now.m);
    if (p.delta) read_state(z, c, now.state, s.read, 0, z.positions, now.u);
    updates(p, z, c, now.m, now.u);
    if (n + 1 < end) advance(p, z, c, now.u, s.scaled, s.written, now.state, kept[n + 1 - first].state);
  }
}

// The chunk groups from the last to the first, and for each of them the heads of the task in turn.
inline void backward_task(const TpttProblem& p, const Sizes& z, Chunk& c, const Kept* kept, BackwardScratch& s,
                          const Task& task) {
  const int64_t chunks = count_of_chunks(p);
  for (int i = 0; i < task.heads; i++)
    load_state(z, state_of(p, z, p.d_final_state, task, i), s.d_states + i * z.state());
  for (int64_t group = count_of_chunk_groups(p) - 1; group >= 0; group--) {
    const int64_t first = group * p.chunk_group, end = first + p.chunk_group < chunks ? first + p.chunk_group : chunks;
    for (int i = 0; i < task.heads; i++) {
      auto place = [&](int64_t n) { return Place{task.b, task.h + i, n * z.tokens}; };
      const bool last_head = i + 1 == task.heads;
      const int64_t begins = last_head ? first - p.chunk_group : first;  // what comes after this head's chunk group
      const Place then = begins < 0 ? NOWHERE : Place{task.b, task.h + (last_head ? 0 : i + 1), begins * z.tokens};
      s.d_state = s.d_states + i * z.state();
      if (!p.kept) recompute_chunk_group(p, z, c, kept, s, saved_state(p, z, task, i, group), place, first, end);
      for (int64_t n = end - 1; n >= first; n--) {
        if (p.kept || n != end - 1) load_chunk(p, z, place(n), c);  // the recomputation has left the last one there
        backward_chunk(p, z, c, n > first ? place(n - 1) : then, p.kept ? saved_chunk(p, z, c) : kept[n - first], s);
      }
    }
  }
  for (int i = 0; i < task.heads; i++)
    store_state(z, s.d_states + i * z.state(), state_of(p, z, p.d_initial_state, task, i));
}

inline TpttStatus backward(const TpttProblem& p) {
  const Sizes z(p);
  const Tasks tasks(p);
  const int64_t chunks = count_of_chunks(p), most = p.kept ? 0 : p.chunk_group < chunks ? p.chunk_group : chunks;
  Arena measured;
  Chunk{z, measured}, BackwardScratch{z, tasks.together, measured};
  measured.take(most * Kept::FLOATS_OF_POINTERS);
  for (int64_t i = 0; i < most; i++) measured.take(Kept::floats(z));
  const Workspace workspace(p.threads, measured.taken());
  if (workspace.failed()) return TPTT_OUT_OF_MEMORY;
#pragma omp parallel num_threads(int(p.threads))
  {
    const NoSubnormals here;
    const Unit unit;
    Arena arena = workspace.part();
    Chunk c(z, arena);
    BackwardScratch s(z, tasks.together, arena);
    Kept* kept = reinterpret_cast<Kept*>(arena.take(most * Kept::FLOATS_OF_POINTERS));
    for (int64_t i = 0; i < most; i++) kept[i] = Kept(z, arena.take(Kept::floats(z)));
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < tasks.count; i++) backward_task(p, z, c, kept, s, tasks.get(i));
    end_streams();
  }
  return TPTT_OK;
}

}  // namespace
