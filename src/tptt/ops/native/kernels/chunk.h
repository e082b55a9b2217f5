// One chunk of one head: its inputs in float, its decays, and what depends on them alone.
// Legend: C tokens, N writes per token, W = N * C positions, G query groups of C rows. Every buffer pads K, V, W and G
// * C with zeros to a multiple of PADDING. Tokens behind the end of the sequence write nothing and do not decay.
#pragma once
#include "abi.h"
#include "subnormals.h"
#ifdef TPTT_TILES
#include "tiles.h"
#else
#include "operands.h"
#endif

namespace {

// Floats of a row of keys. Wide rows whose lengths share a power of two fall into the same few sets of the first cache.
inline int spread_rows(int width) {
  const int padded = up_to_multiple(width, PADDING), step = PADDING < 16 ? 16 : PADDING;
  if (width < 512) return padded;
  const int steps = up_to_multiple(width, step) / step;
  return step * (steps + (steps % 2 == 0));
}

// A forward or backward that reads and writes this many bytes (q, k, v, o and their gradients) stores its outputs past
// the caches: the caches hold less, so the next reader would not find the outputs there anyway.
constexpr int64_t STREAMED_FORWARD = 128 << 20, STREAMED_BACKWARD = 56 << 20;
inline bool past_caches(const TpttProblem& p) {
  const int64_t rows = p.batch * p.tokens * p.heads * (p.bfloat16 ? 2 : 4);  // bytes of one number per token and head
  const int64_t read = p.groups * p.key_width + p.writes * (p.key_width + p.value_width),
                out = p.groups * p.value_width;
  return p.d_o.data ? rows * (2 * read + out) >= STREAMED_BACKWARD : rows * (read + out) >= STREAMED_FORWARD;
}

// Where a chunk begins: batch row, head, first token.
struct Place {
  int64_t b, h, start;
};
constexpr Place NOWHERE{0, 0, -1};

struct Sizes {
  int tokens, writes, positions, groups, queries;  // C, N, W, G, G * C
  int key_width, value_width;                      // K, V
  int keys, values, columns, readers;              // K, V, W and G * C, padded
  int rows, first;                                 // W + G * C, padded, and the first of them that reads the state
  bool streams;                                    // outputs go past the caches
  bool from_zero, to_nobody;                       // there is no initial state; nobody uses the final one
  int64_t length;                                  // T

  explicit Sizes(const TpttProblem& p)
      : tokens(int(p.chunk)),
        writes(int(p.writes)),
        positions(tokens * writes),
        groups(int(p.groups)),
        queries(groups * tokens),
        key_width(int(p.key_width)),
        value_width(int(p.value_width)),
        keys(spread_rows(key_width)),
        values(up_to_multiple(value_width, PADDING)),
        columns(up_to_multiple(positions, PADDING)),
        readers(up_to_multiple(queries, PADDING)),
        rows(columns + readers),
        first(p.delta ? 0 : columns),
        streams(past_caches(p)),
        from_zero(!(p.d_o.data ? p.d_initial_state : p.initial_state)),
        to_nobody(!(p.d_o.data ? p.d_final_state : p.final_state)),
        length(p.tokens) {}

  // Whether the state before a chunk is zero, and whether nobody uses the state behind it (or its gradient). Most
  // sequences start without a state and end without one, and short sequences then need noticeably fewer products.
  bool zero_before(const Place& at) const { return from_zero && at.start == 0; }
  bool nothing_after(const Place& at) const { return to_nobody && at.start + tokens >= length; }

  int64_t state() const { return int64_t(keys) * values; }                  // floats of a padded state
  int64_t given_state() const { return int64_t(key_width) * value_width; }  // floats of a state of the caller
};

struct Chunk : Place {
  float *keys, *queries, *values, *beta;  // [W, K] and, behind it, [G*C, K]; [W, V], [W]
  float *logs, *rest;                     // [W]: running sum of the log decays, and what a float loses of it
  float* decay;                           // [W, W]: D at and below the diagonal, ones without g
  float *since_start, *until_end;         // [W]; without g unused
  float carried;                          // gamma
  Left rows, key_columns;                 // of products: keys and queries; [K, W]
  Right keys_across;                      // [K, W]
  Ahead ahead;                            // what this chunk will write and the next one will read

  Chunk(const Sizes& z, Arena& arena)
      : Place(NOWHERE),
        keys(arena.take(int64_t(z.rows) * z.keys)),
        queries(keys + int64_t(z.columns) * z.keys),
        values(arena.take(int64_t(z.columns) * z.values)),
        beta(arena.take(z.columns)),
        logs(arena.take(z.columns)),
        rest(arena.take(z.columns)),
        decay(arena.take(int64_t(z.columns) * z.columns)),
        since_start(arena.take(z.columns)),
        until_end(arena.take(z.columns)),
        carried(1.f),
        rows(z.rows, z.keys, arena),
        key_columns(z.keys, z.columns, arena),
        keys_across(z.columns, z.keys, arena, true) {
    for (int i = 0; decay && i < z.columns * z.columns; i++) decay[i] = 1.f;
  }
};

inline int64_t offset(const TpttTensor& x, int64_t b, int64_t t, int64_t n, int64_t h) {
  return b * x.batch + t * x.token + n * x.write + h * x.head;
}

// `width` elements from element `at` on, to floats times `factor`; and back.
inline void load_row(const void* data, int64_t at, bool bfloat16, float* to, int width, float factor = 1.f) {
  int i = 0;
  if (bfloat16) {
    const uint16_t* from = static_cast<const uint16_t*>(data) + at;
    for (; i + LANES <= width; i += LANES) store(to + i, from_bfloat16(from + i) * splat(factor));
    for (; i < width; i++) to[i] = from_bfloat16(from[i]) * factor;
  } else {
    const float* from = static_cast<const float*>(data) + at;
    for (; i + LANES <= width; i += LANES) store(to + i, load(from + i) * splat(factor));
    for (; i < width; i++) to[i] = from[i] * factor;
  }
}

template <class T>
inline void store_lanes(void* to, T x, bool streams) {
  if (streams && reinterpret_cast<uintptr_t>(to) % sizeof x == 0)
    stream(to, x);
  else
    memcpy(to, &x, sizeof x);
}
inline void store_row(void* data, int64_t at, bool bfloat16, const float* from, int width, float factor = 1.f,
                      bool streams = false) {
  int i = 0;
  if (bfloat16) {
    uint16_t* to = static_cast<uint16_t*>(data) + at;
    for (; i + LANES <= width; i += LANES) store_lanes(to + i, to_bfloat16(load(from + i) * splat(factor)), streams);
    for (; i < width; i++) to[i] = to_bfloat16(from[i] * factor);
  } else {
    float* to = static_cast<float*>(data) + at;
    for (; i + LANES <= width; i += LANES) store_lanes(to + i, load(from + i) * splat(factor), streams);
    for (; i < width; i++) to[i] = from[i] * factor;
  }
}

// Prefetch the rows of a tensor of positions, or of queries, that belong to the chunk at a place. Rows of one head lie
// about a page apart, and the processor does not prefetch across pages by itself. Addresses behind the end do no harm.
inline void ask_positions(const TpttProblem& p, const Sizes& z, Ahead& ahead, const TpttTensor& x, const Place& at,
                          int width) {
  const int bytes = p.bfloat16 ? 2 : 4;
  ahead.add(static_cast<const char*>(x.data) + offset(x, at.b, at.start, 0, at.h) * bytes, z.tokens, x.token * bytes,
            z.writes, x.write * bytes, width * bytes);
}
inline void ask_queries(const TpttProblem& p, const Sizes& z, Ahead& ahead, const TpttTensor& x, const Place& at,
                        int width) {
  const int bytes = p.bfloat16 ? 2 : 4;
  ahead.add(static_cast<const char*>(x.data) + offset(x, at.b, at.start, 0, at.h * z.groups) * bytes, z.groups,
            x.head * bytes, z.tokens, x.token * bytes, width * bytes);
}

// ``next``: the chunk after this one in the order of the walk, or NOWHERE.
inline void ask_inputs(const TpttProblem& p, const Sizes& z, Ahead& ahead, const Place& next) {
  if (next.start < 0) return;
  ask_positions(p, z, ahead, p.k, next, z.key_width);
  ask_positions(p, z, ahead, p.v, next, z.value_width);
  ask_queries(p, z, ahead, p.q, next, z.key_width);
}

// Rows [G*C, width] of one tensor of queries; zeros behind the end.
inline void load_queries(const TpttProblem& p, const Sizes& z, const Chunk& c, const TpttTensor& x, float* to,
                         int width, int padded, float factor) {
  for (int g = 0; g < z.groups; g++)
    for (int i = 0; i < z.tokens; i++) {
      float* row = to + int64_t(g * z.tokens + i) * padded;
      if (c.start + i < p.tokens)
        load_row(x.data, offset(x, c.b, c.start + i, 0, c.h * z.groups + g), p.bfloat16, row, width, factor);
      else
        memset(row, 0, 4 * padded);
    }
}

inline void load_decays(const TpttProblem& p, const Sizes& z, Chunk& c) {
  double total = 0;
  for (int i = 0; i < z.tokens; i++) {
    if (c.start + i < p.tokens) {
      double g = static_cast<const float*>(p.g.data)[offset(p.g, c.b, c.start + i, 0, c.h)];
      total += g < -1e4 ? -1e4 : g;  // so that minus infinity leaves nothing, and makes no NaN
    }
    for (int w = i * z.writes; w < (i + 1) * z.writes; w++)
      c.logs[w] = float(total), c.rest[w] = float(total - c.logs[w]);
  }
  const int last = z.positions - 1;
  for (int w = z.positions; w < z.columns; w++) c.logs[w] = c.logs[last], c.rest[w] = c.rest[last];
  // Log decay from LANES neighbouring writers to one reader. The sums have two floats each, so that a small difference
  // of two large sums keeps its digits.
  auto between = [&](int reader, int writers) {
    return (splat(c.logs[reader]) - load(c.logs + writers)) + (splat(c.rest[reader]) - load(c.rest + writers));
  };
  for (int i = 0; i < z.positions; i++) {
    float* row = c.decay + i * z.columns;
    for (int j = 0; j <= i; j += LANES) store(row + j, exp(between(i, j)));
  }
  for (int w = 0; w < z.columns; w += LANES) {
    store(c.since_start + w, exp(load(c.logs + w) + load(c.rest + w)));
    store(c.until_end + w, exp(between(last, w)));
  }
  c.carried = c.since_start[last];
}

inline void load_chunk(const TpttProblem& p, const Sizes& z, const Place& at, Chunk& c) {
  static_cast<Place&>(c) = at;
  for (int i = 0, w = 0; i < z.tokens; i++)
    for (int n = 0; n < z.writes; n++, w++) {
      const int64_t t = at.start + i;
      float *key = c.keys + w * z.keys, *value = c.values + w * z.values;
      if (t < p.tokens) {
        load_row(p.k.data, offset(p.k, at.b, t, n, at.h), p.bfloat16, key, z.key_width);
        load_row(p.v.data, offset(p.v, at.b, t, n, at.h), p.bfloat16, value, z.value_width);
        c.beta[w] = p.beta.data ? static_cast<const float*>(p.beta.data)[offset(p.beta, at.b, t, n, at.h)] : 1.f;
      } else {
        memset(key, 0, 4 * z.keys);
        memset(value, 0, 4 * z.values);
        c.beta[w] = 0;
      }
    }
  load_queries(p, z, c, p.q, c.queries, z.key_width, z.keys, 1.f);
  if (p.g.data) load_decays(p, z, c);
  c.rows.take(c.keys, z.keys, z.rows, z.keys, true);
}

// The position of a query row: that of the last write of its token.
inline int position_of(const Sizes& z, int query) { return (query % z.tokens + 1) * z.writes - 1; }

// How many columns of a block of rows, the last at position `last`, reach the lower triangle.
inline int reach(const Sizes& z, int last) {
  int columns = up_to_multiple(last + 1, LANES);
  return columns < z.columns ? columns : z.columns;
}

// M [W + G*C, W] = X Y, as far as the two triangles reach. Rows of positions are summed in parts of 16 terms; on tiles,
// where whole squares are computed, the processor sums in such parts by itself.
inline void triangles(const Sizes& z, Chunk& c, const Left& x, Right& y, int depth, float* m) {
  const int row = z.columns;
#ifdef TPTT_TILES
  product<Onto::NOTHING>(c.ahead, m + z.first * row, row, x, z.first, z.rows - z.first, y, row, depth);
#else
  constexpr int BLOCK = 8;  // rows; for one strip of columns that is as many sums as the processor adds side by side
  for (int i = z.first; i < z.positions; i += BLOCK) {
    const int rows = z.positions - i < BLOCK ? z.positions - i : BLOCK;
    product_in_parts(c.ahead, m + i * row, row, x, i, rows, y, reach(z, i + rows - 1), depth);
  }
  for (int i = 0, rows; i < z.queries; i += rows) {
    rows = z.tokens - i % z.tokens < BLOCK ? z.tokens - i % z.tokens : BLOCK;
    const int at = z.columns + i;
    product<Onto::NOTHING>(c.ahead, m + at * row, row, x, at, rows, y, reach(z, position_of(z, i + rows - 1)), depth);
  }
#endif
}

// Multiplies a row of a triangle by D; what stands behind ``position`` becomes zero, whatever it was.
inline void decay_row(const Sizes& z, const Chunk& c, float* x, int position, float factor = 1.f) {
  const float* decay = c.decay + position * z.columns;
  for (int j = 0; j < z.columns; j += LANES)
    store(x + j, first_lanes(load(x + j) * splat(factor) * load(decay + j), position + 1 - j));
}

// M = [A; P] with decay and beta: A [W, W] counts below its diagonal, P [G*C, W] is lower triangular.
inline void mix(const TpttProblem& p, const Sizes& z, Chunk& c, float* m) {
  c.keys_across.take_across(c.keys, z.keys, z.columns, z.keys, true);
  // summed in parts: where keys are alike and beta is near 2, the rounding of k.k adds up over the sequence
  triangles(z, c, c.rows, c.keys_across, z.keys, m);
  for (int i = 0; p.delta && i < z.positions; i++) decay_row(z, c, m + i * z.columns, i, c.beta[i]);
  for (int i = 0; i < z.queries; i++) decay_row(z, c, m + (z.columns + i) * z.columns, position_of(z, i));
}

inline void scale_rows(float* x, int width, const float* factors, int rows) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < width; j += LANES) store(x + i * width + j, load(x + i * width + j) * splat(factors[i]));
}

// X <- (I + A)^-1 X by substitution in blocks of 4.
inline void solve(const Sizes& z, Chunk& c, const float* a, float* x) {
  const int row = z.columns, width = z.values;
  for (int m = 0; m < z.positions; m += 4) {
    if (m) product<Onto::LESS>(c.ahead, x + m * width, width, a + m * row, row, 1, x, width, 4, width, m);
    for (int j = 0; j < width; j += LANES) {
      float* at = x + m * width + j;
      Vec done[4];
      for (int i = 0; i < 4; i++) {
        done[i] = load(at + i * width);
        for (int n = 0; n < i; n++) done[i] -= splat(a[(m + i) * row + m + n]) * done[n];
        store(at + i * width, done[i]);
      }
    }
  }
}

// X <- (I + A)^-T X.
inline void solve_across(const Sizes& z, Chunk& c, const float* a, float* x) {
  const int row = z.columns, width = z.values, size = z.positions;
  for (int m = size - 4; m >= 0; m -= 4) {
    int after = m + 4;
    if (after < size)
      product<Onto::LESS>(c.ahead, x + m * width, width, a + after * row + m, 1, row, x + after * width, width, 4,
                          width, size - after);
    for (int j = 0; j < width; j += LANES) {
      float* at = x + m * width + j;
      Vec done[4];
      for (int i = 3; i >= 0; i--) {
        done[i] = load(at + i * width);
        for (int n = i + 1; n < 4; n++) done[i] -= splat(a[(m + n) * row + m + i]) * done[n];
        store(at + i * width, done[i]);
      }
    }
  }
}

// u [W, V]: what the chunk's positions write, given k S there. `u` may not be c.values.
inline void updates(const TpttProblem& p, const Sizes& z, Chunk& c, const float* a, float* u) {
  const int width = z.values;
  for (int i = 0; i < z.positions; i++) {
    Vec beta = splat(c.beta[i]), decay = splat(p.g.data ? c.since_start[i] : 1.f);
    for (int j = 0; j < width; j += LANES) {
      Vec x = load(c.values + i * width + j);
      if (p.delta) x -= decay * load(u + i * width + j);
      store(u + i * width + j, beta * x);
    }
  }
  if (p.delta) solve(z, c, a, u);
}

// to = gamma from + k^^T u; `scaled` [W, V] is scratch space, and may be u.
inline void advance(const TpttProblem& p, const Sizes& z, Chunk& c, const float* u, float* scaled, Right& written,
                    const float* from, float* to) {
  const int width = z.values;
  for (int i = 0; p.g.data && i < z.positions; i++)
    for (int j = 0; j < width; j += LANES)
      store(scaled + i * width + j, load(u + i * width + j) * splat(c.until_end[i]));
  c.key_columns.take_across(c.keys, z.keys, z.keys, z.columns, true);
  written.take(p.g.data ? scaled : u, width, width, z.columns);
  product<Onto::SCALED>(c.ahead, to, width, c.key_columns, 0, z.keys, written, width, z.positions, from,
                        p.g.data ? c.carried : 1.f);
}

// Copy a state [K, V] of the caller to a padded one, and back.
inline void load_state(const Sizes& z, const float* from, float* to) {
  memset(to, 0, 4 * z.state());
  for (int i = 0; from && i < z.key_width; i++) memcpy(to + i * z.values, from + i * z.value_width, 4 * z.value_width);
}
inline void store_state(const Sizes& z, const float* from, float* to) {
  for (int i = 0; to && i < z.key_width; i++) memcpy(to + i * z.value_width, from + i * z.values, 4 * z.value_width);
}

}  // namespace
