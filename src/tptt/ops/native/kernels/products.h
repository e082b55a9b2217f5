// Small matrix products: C (+)= A B with A read through two strides (so also transposed), B and C by rows.
#pragma once
#include "ahead.h"
#include "vectors.h"

namespace {

enum class Onto {
  NOTHING,  // C = AB
  SUM,      // C = C + AB
  LESS,     // C = C - AB
  SCALED,   // C = factor D + AB, D of C's strides
  AFTER     // C = C + (AB summed by itself): one more accumulator against rounding
};

template <int ROWS, int STRIPS, Onto ONTO, bool ASKS>
inline __attribute__((always_inline)) void tile(Ahead& ahead, float* c, int c_row, const float* a, int a_row,
                                                int a_step, const float* b, int b_row, int depth, const float* d,
                                                float factor) {
  constexpr int EVERY = ASK_AFTER / (ROWS * (STRIPS == 3 ? 4 : STRIPS));  // a power of two
  Vec acc[ROWS][STRIPS];
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < STRIPS; j++) {
      if (ONTO == Onto::SUM || ONTO == Onto::LESS)
        acc[i][j] = load(c + i * c_row + j * LANES);
      else if (ONTO == Onto::SCALED)
        acc[i][j] = load(d + i * c_row + j * LANES) * splat(factor);
      else
        acc[i][j] = Vec{};
    }
  for (int n = 0; n < depth; n++) {
    if (ASKS && n % EVERY == EVERY - 1) ahead.ask();
    Vec right[STRIPS];
    for (int j = 0; j < STRIPS; j++) right[j] = load(b + int64_t(n) * b_row + j * LANES);
    for (int i = 0; i < ROWS; i++) {
      Vec left = splat(a[i * a_row + n * a_step]);
      for (int j = 0; j < STRIPS; j++) {
        if (ONTO == Onto::LESS)
          acc[i][j] -= left * right[j];
        else
          acc[i][j] += left * right[j];
      }
    }
  }
  for (int i = 0; i < ROWS; i++)
    for (int j = 0; j < STRIPS; j++) {
      float* at = c + i * c_row + j * LANES;
      store(at, ONTO == Onto::AFTER ? load(at) + acc[i][j] : acc[i][j]);
    }
}

template <int ROWS, int STRIPS, Onto ONTO, bool ASKS>
inline __attribute__((always_inline)) void strip(Ahead& ahead, float* c, int c_row, const float* a, int a_row,
                                                 int a_step, const float* b, int b_row, int rows, int depth,
                                                 const float* d, float factor) {
  int m = 0;
  for (; m + ROWS <= rows; m += ROWS)
    tile<ROWS, STRIPS, ONTO, ASKS>(ahead, c + m * c_row, c_row, a + m * a_row, a_row, a_step, b, b_row, depth,
                                   d + m * c_row, factor);
  if constexpr (ROWS > 4)
    for (; m + 4 <= rows; m += 4)
      tile<4, STRIPS, ONTO, ASKS>(ahead, c + m * c_row, c_row, a + m * a_row, a_row, a_step, b, b_row, depth,
                                  d + m * c_row, factor);
  for (; m < rows; m++)
    tile<1, STRIPS, ONTO, ASKS>(ahead, c + m * c_row, c_row, a + m * a_row, a_row, a_step, b, b_row, depth,
                                d + m * c_row, factor);
}

// y [rows] = A x, A [rows, width]: LANES rows at a time; their sums across lanes are taken together.
inline void matrix_vector(const float* a, const float* x, int rows, int width, float* y) {
  constexpr int BESIDE = 4;  // sums that grow side by side; a single one would wait for its own result
  int m = 0;
  for (; m + LANES <= rows; m += LANES) {
    Vec total[LANES] = {};
    for (int first = 0; first < LANES; first += BESIDE) {
      const float* at = a + int64_t(m + first) * width;
      for (int i = 0; i + LANES <= width; i += LANES)
        for (int j = 0; j < BESIDE; j++) total[first + j] += load(at + j * width + i) * load(x + i);
    }
    store(y + m, sums(total));
    for (int i = width / LANES * LANES; i < width; i++)
      for (int j = 0; j < LANES; j++) y[m + j] += a[int64_t(m + j) * width + i] * x[i];
  }
  for (; m < rows; m++) y[m] = dot(a + int64_t(m) * width, x, width);
}

// 32 registers hold 16 sums and their operands, 16 registers hold 12 sums.
template <Onto ONTO, bool ASKS>
void strips(Ahead& ahead, float* c, int c_row, const float* a, int a_row, int a_step, const float* b, int b_row,
            int rows, int columns, int depth, const float* d, float factor) {
  constexpr bool MANY = LANES == 16;
  constexpr int MOST = MANY ? 4 : 3;
  for (int n = 0; n < columns;) {
    int count = (columns - n) / LANES;
    if (count > MOST) count = MOST;
    switch (count) {
      case 1:
        strip<8, 1, ONTO, ASKS>(ahead, c + n, c_row, a, a_row, a_step, b + n, b_row, rows, depth, d + n, factor);
        break;
      case 2:
        strip<MANY ? 8 : 4, 2, ONTO, ASKS>(ahead, c + n, c_row, a, a_row, a_step, b + n, b_row, rows, depth, d + n,
                                           factor);
        break;
      case 3:
        strip<4, 3, ONTO, ASKS>(ahead, c + n, c_row, a, a_row, a_step, b + n, b_row, rows, depth, d + n, factor);
        break;
      default:
        strip<4, MOST, ONTO, ASKS>(ahead, c + n, c_row, a, a_row, a_step, b + n, b_row, rows, depth, d + n, factor);
    }
    n += count * LANES;
  }
}

// C [rows, columns] from A [rows, depth] and B [depth, columns]; columns is a multiple of LANES.
template <Onto ONTO>
inline void product(Ahead& ahead, float* c, int c_row, const float* a, int a_row, int a_step, const float* b, int b_row,
                    int rows, int columns, int depth, const float* d = nullptr, float factor = 1.f) {
  if (ahead.done())
    strips<ONTO, false>(ahead, c, c_row, a, a_row, a_step, b, b_row, rows, columns, depth, d, factor);
  else
    strips<ONTO, true>(ahead, c, c_row, a, a_row, a_step, b, b_row, rows, columns, depth, d, factor);
}
template <Onto ONTO>
inline void product(float* c, int c_row, const float* a, int a_row, int a_step, const float* b, int b_row, int rows,
                    int columns, int depth) {
  Ahead nothing;
  product<ONTO>(nothing, c, c_row, a, a_row, a_step, b, b_row, rows, columns, depth);
}

}  // namespace
