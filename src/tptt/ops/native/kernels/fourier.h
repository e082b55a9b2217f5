// Random Fourier features of many vectors, and their gradient, each in one pass over memory.
#pragma once
#include <cmath>

#include "chunk.h"

namespace {

constexpr int ROWS_AT_ONCE = 32;  // their angles stay in the second cache

// out = [cos(angles), sin(angles)] / sqrt(count)
inline void waves(const float* angles, int count, float* out) {
  const float size = 1.f / std::sqrt(float(count));
  int i = 0;
  for (; i + LANES <= count; i += LANES) {
    Vec sine, cosine;
    sincos(load(angles + i), sine, cosine);
    store(out + i, splat(size) * cosine);
    store(out + count + i, splat(size) * sine);
  }
  for (; i < count; i++) {
    out[i] = size * std::cos(angles[i]);
    out[count + i] = size * std::sin(angles[i]);
  }
}

// d_angles from what `waves` gave: its halves are each other's derivatives.
inline void waves_backward(const float* out, const float* d_out, int count, float* d_angles) {
  int i = 0;
  for (; i + LANES <= count; i += LANES)
    store(d_angles + i, load(d_out + count + i) * load(out + i) - load(d_out + i) * load(out + count + i));
  for (; i < count; i++) d_angles[i] = d_out[count + i] * out[i] - d_out[i] * out[count + i];
}

// block(first row, rows, scratch [ROWS_AT_ONCE, padded]) for all rows.
template <class Block>
inline TpttStatus each_block(const TpttFourier& p, Block block) {
  const Workspace workspace(p.threads, ROWS_AT_ONCE * p.padded);
  if (workspace.failed()) return TPTT_OUT_OF_MEMORY;
#pragma omp parallel num_threads(int(p.threads)) if (p.threads > 1)
  {
    const NoSubnormals here;
    Arena arena = workspace.part();
    float* scratch = arena.take(ROWS_AT_ONCE * p.padded);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < p.rows; first += ROWS_AT_ONCE)
      block(first, int(p.rows - first < ROWS_AT_ONCE ? p.rows - first : ROWS_AT_ONCE), scratch);
  }
  return TPTT_OK;
}

inline TpttStatus fourier(const TpttFourier& p) {
  const int height = int(p.height), count = int(p.count), padded = int(p.padded);
  return each_block(p, [&](int64_t first, int rows, float* angles) {
    product<Onto::NOTHING>(angles, padded, p.mapped + first * height, height, 1, p.frequencies, padded, rows, padded,
                           height);
    for (int i = 0; i < rows; i++) waves(angles + i * padded, count, p.out + (first + i) * 2 * count);
  });
}

inline TpttStatus fourier_backward(const TpttFourier& p) {
  const int height = int(p.height), count = int(p.count), padded = int(p.padded);
  return each_block(p, [&](int64_t first, int rows, float* d_angles) {
    for (int i = 0; i < rows; i++) {
      const int64_t at = (first + i) * 2 * count;
      waves_backward(p.out + at, p.d_out + at, count, d_angles + i * padded);
    }
    product<Onto::NOTHING>(p.d_mapped + first * height, height, d_angles, padded, 1, p.frequencies, height, rows,
                           height, count);
  });
}

}  // namespace
