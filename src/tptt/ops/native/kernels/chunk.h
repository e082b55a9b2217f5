// One chunk of one head: its inputs in float, its decays, and what depends on them alone.
// Legend: C tokens, N writes for each, W = N * C positions, G query groups of C rows. K, V and W are padded to LANES in
// every buffer, with zeros; tokens behind the end write nothing and do not decay.
#pragma once
#include <cstdlib>
#include "abi.h"
#include "products.h"
#include "subnormals.h"

namespace {

// Floats of a row of keys. Wide rows whose lengths share a power of two fall into the same few sets of the first cache.
inline int spread_rows(int width) {
  if (width < 512) return up_to_multiple(width, LANES);
  const int lines = up_to_multiple(width, 16) / 16;
  return 16 * (lines + (lines % 2 == 0));
}

struct Sizes {
  int tokens, writes, positions, groups, queries;  // C, N, W, G, G * C
  int key_width, value_width;                      // K, V
  int keys, values, columns;                       // K, V and W, padded

  explicit Sizes(const TpttProblem& p)
      : tokens(int(p.chunk)), writes(int(p.writes)), positions(tokens * writes), groups(int(p.groups)),
        queries(groups * tokens), key_width(int(p.key_width)), value_width(int(p.value_width)),
        keys(spread_rows(key_width)), values(up_to_multiple(value_width, LANES)),
        columns(up_to_multiple(positions, LANES)) {}

  int64_t state() const { return int64_t(keys) * values; }                    // floats of a padded state
  int64_t given_state() const { return int64_t(key_width) * value_width; }  // of the caller's
};

// A thread's memory, handed out piece by piece. One without memory only measures what the pieces take together.
class Arena {
 public:
  Arena() = default;
  explicit Arena(int64_t floats) : start_(static_cast<float*>(aligned_alloc(64, 4 * floats))) {
    if (!start_) abort();
    memset(start_, 0, 4 * floats);
  }
  ~Arena() { free(start_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  float* take(int64_t floats) {
    float* piece = start_ ? start_ + taken_ : nullptr;
    taken_ += (floats + 15) / 16 * 16;
    return piece;
  }
  int64_t taken() const { return taken_; }

 private:
  float* start_ = nullptr;
  int64_t taken_ = 0;
};

// Where a chunk begins: batch row, head, first token.
struct Place {
  int64_t b, h, start;
};
constexpr Place NOWHERE{0, 0, -1};

struct Chunk : Place {
  float *keys, *keys_across, *queries, *values, *beta;  // [W, K], [K, W], [G*C, K] times scale, [W, V], [W]
  float *logs, *rest;                                   // [W]: running sum of the log decays, and what a float loses of it
  float *decay;                                         // [W, W]: D at and below the diagonal, ones without g
  float *since_start, *until_end;                       // [W]; without g unused
  float carried;                                        // gamma
  mutable Ahead ahead;                                  // what this chunk will write and the next one read

  Chunk(const Sizes& z, Arena& arena)
      : Place(NOWHERE), keys(arena.take(int64_t(z.columns) * z.keys)), keys_across(arena.take(int64_t(z.columns) * z.keys)),
        queries(arena.take(int64_t(z.queries) * z.keys)), values(arena.take(int64_t(z.columns) * z.values)),
        beta(arena.take(z.columns)), logs(arena.take(z.columns)), rest(arena.take(z.columns)),
        decay(arena.take(int64_t(z.columns) * z.columns)), since_start(arena.take(z.columns)),
        until_end(arena.take(z.columns)), carried(1.f) {
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

inline void store_row(void* data, int64_t at, bool bfloat16, const float* from, int width) {
  if (bfloat16) {
    uint16_t* to = static_cast<uint16_t*>(data) + at;
    for (int i = 0; i < width; i++) to[i] = to_bfloat16(from[i]);
  } else {
    memcpy(static_cast<float*>(data) + at, from, 4 * width);
  }
}

// Ask for the rows of a tensor of positions, or of queries, of the chunk at a place. Rows of one head lie a page or so apart,
// where the processor does not fetch ahead by itself. Behind the end there is nothing to ask for, which does no harm.
inline void ask_positions(const TpttProblem& p, const Sizes& z, Ahead& ahead, const TpttTensor& x, const Place& at, int width) {
  const int bytes = p.bfloat16 ? 2 : 4;
  ahead.add(static_cast<const char*>(x.data) + offset(x, at.b, at.start, 0, at.h) * bytes, z.tokens, x.token * bytes, z.writes,
            x.write * bytes, width * bytes);
}
inline void ask_queries(const TpttProblem& p, const Sizes& z, Ahead& ahead, const TpttTensor& x, const Place& at, int width) {
  const int bytes = p.bfloat16 ? 2 : 4;
  ahead.add(static_cast<const char*>(x.data) + offset(x, at.b, at.start, 0, at.h * z.groups) * bytes, z.groups, x.head * bytes,
            z.tokens, x.token * bytes, width * bytes);
}

// ``next``: the chunk after this one in the order of the walk, or NOWHERE.
inline void ask_inputs(const TpttProblem& p, const Sizes& z, Ahead& ahead, const Place& next) {
  if (next.start < 0) return;
  ask_positions(p, z, ahead, p.k, next, z.key_width);
  ask_positions(p, z, ahead, p.v, next, z.value_width);
  ask_queries(p, z, ahead, p.q, next, z.key_width);
}

// Rows [G*C, width] of one tensor of queries; zeros behind the end.
inline void load_queries(const TpttProblem& p, const Sizes& z, const Chunk& c, const TpttTensor& x, float* to, int width,
                         int padded, float factor) {
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
      total += g < -1e4 ? -1e4 : g;  // minus infinity is a decay like any other that leaves nothing
    }
    for (int w = i * z.writes; w < (i + 1) * z.writes; w++) c.logs[w] = float(total), c.rest[w] = float(total - c.logs[w]);
  }
  const int last = z.positions - 1;
  for (int w = z.positions; w < z.columns; w++) c.logs[w] = c.logs[last], c.rest[w] = c.rest[last];
  // From LANES writers on to a reader. In two floats a difference of two sums keeps the digits of a small one behind a large one.
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
  load_queries(p, z, c, p.q, c.queries, z.key_width, z.keys, p.scale);
  if (p.g.data) load_decays(p, z, c);
}

// Where a row of queries stands: behind the last write of its token.
inline int position_of(const Sizes& z, int query) { return (query % z.tokens + 1) * z.writes - 1; }

constexpr int BLOCK = 8;  // rows of a triangle at once: of one strip of columns, as many sums as the processor adds side by side

// Rows of the next block, of those that are left: of positions, or of the queries of a group.
inline int block_of(int left) { return left < BLOCK ? left : BLOCK; }

// How many columns of a block of rows, the last at position `last`, reach the lower triangle.
inline int reach(const Sizes& z, int last) {
  int columns = up_to_multiple(last + 1, LANES);
  return columns < z.columns ? columns : z.columns;
}

// A row of a triangle times D; zero, whatever stands there, behind ``position`` and up to ``columns``.
inline void decay_row(const Sizes& z, const Chunk& c, float* x, int position, int columns, float factor = 1.f) {
  const float* decay = c.decay + position * z.columns;
  for (int j = 0; j < columns; j += LANES)
    store(x + j, first_lanes(load(x + j) * splat(factor) * load(decay + j), position + 1 - j));
}

// A [W, W], of which what is below the diagonal counts, and P [G*C, W] lower, with decay, beta and scale.
inline void mix(const TpttProblem& p, const Sizes& z, const Chunk& c, float* a, float* mixing) {
  const int row = z.columns;
  transpose(c.keys, z.keys, c.keys_across, row, row, z.keys);
  for (int m = 0, rows; p.delta && m < z.positions; m += rows) {
    rows = block_of(z.positions - m);
    const int columns = reach(z, m + rows - 1);
    // in parts of 16: where keys are alike and beta is near 2, the rounding of k.k adds up over the sequence
    for (int n = 0; n < z.keys; n += 16) {
      int depth = z.keys - n < 16 ? z.keys - n : 16;
      if (n)
        product<Onto::AFTER>(c.ahead, a + m * row, row, c.keys + m * z.keys + n, z.keys, 1, c.keys_across + n * row, row, rows,
                             columns, depth);
      else
        product<Onto::NOTHING>(c.ahead, a + m * row, row, c.keys + m * z.keys, z.keys, 1, c.keys_across, row, rows, columns,
                               depth);
    }
    for (int i = m; i < m + rows; i++) decay_row(z, c, a + i * row, i, columns, c.beta[i]);
  }
  for (int m = 0, rows; m < z.queries; m += rows) {
    rows = block_of(z.tokens - m % z.tokens);
    const int columns = reach(z, position_of(z, m + rows - 1));
    product<Onto::NOTHING>(c.ahead, mixing + m * row, row, c.queries + m * z.keys, z.keys, 1, c.keys_across, row, rows, columns,
                           z.keys);
    for (int i = m; i < m + rows; i++) decay_row(z, c, mixing + i * row, position_of(z, i), columns);
  }
}

inline void scale_rows(float* x, int width, const float* factors, int rows) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < width; j += LANES) store(x + i * width + j, load(x + i * width + j) * splat(factors[i]));
}

// X <- (I + A)^-1 X by substitution in blocks of 4.
inline void solve(const Sizes& z, const Chunk& c, const float* a, float* x) {
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
inline void solve_across(const Sizes& z, const Chunk& c, const float* a, float* x) {
  const int row = z.columns, width = z.values, size = z.positions;
  for (int m = size - 4; m >= 0; m -= 4) {
    int after = m + 4;
    if (after < size)
      product<Onto::LESS>(c.ahead, x + m * width, width, a + after * row + m, 1, row, x + after * width, width, 4, width,
                          size - after);
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

// u [W, V]: what the chunk's positions write, given the state before it. `u` may not be c.values.
inline void updates(const TpttProblem& p, const Sizes& z, const Chunk& c, const float* a, const float* state, float* u) {
  const int width = z.values;
  if (p.delta) product<Onto::NOTHING>(c.ahead, u, width, c.keys, z.keys, 1, state, width, z.positions, width, z.keys);
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

// to = gamma from + k^^T u [K, V]; `scaled` [W, V] is scratch space, and may be u.
inline void advance(const TpttProblem& p, const Sizes& z, const Chunk& c, const float* u, float* scaled, const float* from,
                    float* to) {
  for (int i = 0; p.g.data && i < z.positions; i++)
    for (int j = 0; j < z.values; j += LANES)
      store(scaled + i * z.values + j, load(u + i * z.values + j) * splat(c.until_end[i]));
  product<Onto::SCALED>(c.ahead, to, z.values, c.keys, 1, z.keys, p.g.data ? scaled : u, z.values, z.keys, z.values, z.positions,
                        from, p.g.data ? c.carried : 1.f);
}

// A state [K, V] of the caller's to a padded one and back.
inline void load_state(const Sizes& z, const float* from, float* to) {
  memset(to, 0, 4 * z.state());
  for (int i = 0; from && i < z.key_width; i++) memcpy(to + i * z.values, from + i * z.value_width, 4 * z.value_width);
}
inline void store_state(const Sizes& z, const float* from, float* to) {
  for (int i = 0; i < z.key_width; i++) memcpy(to + i * z.value_width, from + i * z.values, 4 * z.value_width);
}

}  // namespace
