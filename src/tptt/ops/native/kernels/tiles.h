// Products on a processor's tiles (AMX), which multiply bfloat16 and sum in float. Inputs of bfloat16 are exact there.
// Any other float is split into two bfloat16, the second of which holds what the first leaves: together 16 of its 24
// bits. operands.h has the same classes for vectors.
#pragma once
#include <immintrin.h>
#include "arena.h"
#include "products.h"

namespace {

constexpr int SIDE = 16;           // rows of a tile, and words of a row
constexpr int DEEP = 32;           // depth of a tile of factors: a word is a pair, of depths 16 apart
constexpr int TILE = SIDE * SIDE;  // words
constexpr int PIECES = 2;          // bfloat16 per float; exact factors leave the second piece unused

constexpr int PADDING =
    2 * SIDE;  // rows, columns and depths are padded to a multiple of this: a product makes 2 x 2 tiles at once

// While an object of this class lives, its thread can use tiles.
class Unit {
 public:
  Unit() {
    struct alignas(64) {
      uint8_t palette = 1, start = 0, reserved[14] = {};
      uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
    } shape;
    _tile_loadconfig(&shape);
  }
  ~Unit() { _tile_release(); }
  Unit(const Unit&) = delete;
  Unit& operator=(const Unit&) = delete;
};

// Two vectors in pieces, lane by lane in pairs. A piece is rounded to the nearest bfloat16.
template <bool EXACT>
inline void pack(Vec a, Vec b, uint32_t* to) {
  const WordVec high = WordVec{} + 0xffff0000u, half = WordVec{} + (EXACT ? 0 : 0x8000u);
  const WordVec x = load_as<WordVec>(&a) + half, y = load_as<WordVec>(&b) + half, pair = (x >> 16) | (y & high);
  memcpy(to, &pair, sizeof pair);
  if (EXACT) return;
  const WordVec x_high = x & high, y_high = y & high;
  const Vec x_rest = a - load_as<Vec>(&x_high), y_rest = b - load_as<Vec>(&y_high);
  const WordVec rest = ((load_as<WordVec>(&x_rest) + half) >> 16) | ((load_as<WordVec>(&y_rest) + half) & high);
  memcpy(to + TILE, &rest, sizeof rest);
}

// A tile of two blocks of 16 x 16 floats, or of their transposes.
template <bool EXACT>
void pack_tile(const float* a, const float* b, int row, bool across, uint32_t* to) {
  alignas(64) float turned[2 * TILE];
  if (across) {
    transpose(a, row, turned, SIDE, SIDE, SIDE);
    transpose(b, row, turned + TILE, SIDE, SIDE, SIDE);
    a = turned, b = turned + TILE, row = SIDE;
  }
  for (int i = 0; i < SIDE; i++) pack<EXACT>(load(a + i * row), load(b + i * row), to + i * SIDE);
}

// A factor: tiles by [line][depth][piece], where a line is 16 rows of a left factor or 16 columns of a right one.
class Factor {
 public:
  Factor(int lines, int depth, Arena& arena)
      : deep_(up_to_multiple(depth, DEEP) / DEEP),
        tiles_(reinterpret_cast<uint32_t*>(
            arena.take(int64_t(up_to_multiple(lines, SIDE)) / SIDE * deep_ * PIECES * TILE))) {}

  const uint32_t* line(int i) const { return tiles_ + place(i); }
  bool exact() const { return exact_; }

 protected:
  // Line ``i``, which lies at ``from``: its next block of 16 depths is ``step`` further on.
  void pack_line(int i, const float* from, int64_t step, int row, int depth, bool across) {
    uint32_t* to = tiles_ + place(i);
    for (int n = 0; n < depth; n += DEEP, from += 2 * step, to += PIECES * TILE)
      (exact_ ? pack_tile<true> : pack_tile<false>)(from, from + step, row, across, to);
  }

  bool exact_ = false;

 private:
  int64_t place(int i) const { return int64_t(i) / SIDE * deep_ * PIECES * TILE; }

  int deep_;
  uint32_t* tiles_;
};

// A [rows, depth] of a product.
class Left : public Factor {
 public:
  using Factor::Factor;
  void take(const float* x, int row, int rows, int depth, bool exact = false) {
    exact_ = exact;
    for (int i = 0; i < rows; i += SIDE) pack_line(i, x + int64_t(i) * row, SIDE, row, depth, false);
  }
  // of its transpose X [depth, rows]
  void take_across(const float* x, int row, int rows, int depth, bool exact = false) {
    exact_ = exact;
    for (int i = 0; i < rows; i += SIDE) pack_line(i, x + i, int64_t(SIDE) * row, row, depth, true);
  }
};

// B [depth, columns] of a product, packed two lines at a time just before they are used.
class Right : public Factor {
 public:
  Right(int, int depth, Arena& arena, bool = false) : Factor(2 * SIDE, depth, arena) {}
  void take(const float* x, int row, int, int depth, bool exact = false) {
    x_ = x, row_ = row, depth_ = depth, across_ = false, exact_ = exact;
  }
  // of its transpose X [columns, depth]
  void take_across(const float* x, int row, int, int depth, bool exact = false) {
    x_ = x, row_ = row, depth_ = depth, across_ = true, exact_ = exact;
  }
  void pack(int column) {
    for (int i = 0; i < 2 * SIDE; i += SIDE) {
      const int64_t j = column + i;
      pack_line(i, x_ + (across_ ? j * row_ : j), across_ ? SIDE : int64_t(SIDE) * row_, row_, depth_, across_);
    }
  }

 private:
  const float* x_ = nullptr;
  int row_ = 0, depth_ = 0;
  bool across_ = false;
};

// acc += piece I of A times piece J of B, for 2 x 2 tiles at one depth. Pieces that the product before has loaded are
// not loaded again.
template <int I, int J, bool LOADS_A, bool LOADS_B>
inline __attribute__((always_inline)) void add_product(const uint32_t* a0, const uint32_t* a1, const uint32_t* b0,
                                                       const uint32_t* b1) {
  if (LOADS_A) {
    _tile_loadd(4, a0 + I * TILE, 64);
    _tile_loadd(5, a1 + I * TILE, 64);
  }
  if (LOADS_B) {
    _tile_loadd(6, b0 + J * TILE, 64);
    _tile_loadd(7, b1 + J * TILE, 64);
  }
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

// All pieces of both factors. Where B is exact, A is exact too.
template <bool A_EXACT, bool B_EXACT>
inline void add_products(Ahead& ahead, const uint32_t* a0, const uint32_t* a1, const uint32_t* b0, const uint32_t* b1,
                         int depth) {
  constexpr int LINES = 8;  // prefetched at each depth
  for (int n = 0; n < depth; n += DEEP) {
    if (!B_EXACT) add_product<0, 1, true, true>(a0, a1, b0, b1);
    add_product<0, 0, B_EXACT, true>(a0, a1, b0, b1);
    if (!A_EXACT) add_product<1, 0, true, false>(a0, a1, b0, b1);
    for (int i = 0; i < LINES; i++) ahead.ask();
    a0 += PIECES * TILE, a1 += PIECES * TILE, b0 += PIECES * TILE, b1 += PIECES * TILE;
  }
}

// C [rows, columns] from ``rows`` rows of A, from ``first`` on, and B; all padded.
template <Onto ONTO>
inline void product(Ahead& ahead, float* c, int c_row, const Left& a, int first, int rows, Right& b, int columns,
                    int depth, const float* d = nullptr, float factor = 1.f) {
  static_assert(ONTO == Onto::NOTHING || ONTO == Onto::SCALED);
  alignas(64) float sums[4 * TILE];
  for (int n = 0; n < columns; n += 2 * SIDE) {
    b.pack(n);
    const auto add = !a.exact()  ? add_products<false, false>
                     : b.exact() ? add_products<true, true>
                                 : add_products<true, false>;
    for (int m = 0; m < rows; m += 2 * SIDE) {
      const int64_t place = int64_t(m) * c_row + n;
      float* at = ONTO == Onto::NOTHING ? c + place : sums;
      const int64_t row = ONTO == Onto::NOTHING ? c_row : 2 * SIDE;
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      add(ahead, a.line(first + m), a.line(first + m + SIDE), b.line(0), b.line(SIDE), depth);
      _tile_stored(0, at, 4 * row);
      _tile_stored(1, at + SIDE, 4 * row);
      _tile_stored(2, at + SIDE * row, 4 * row);
      _tile_stored(3, at + SIDE * row + SIDE, 4 * row);
      for (int i = 0; ONTO == Onto::SCALED && i < 2 * SIDE; i++)
        for (int j = 0; j < 2 * SIDE; j += LANES) {
          const int64_t to = place + int64_t(i) * c_row + j;
          store(c + to, load(d + to) * splat(factor) + load(sums + 2 * SIDE * i + j));
        }
    }
  }
}

// B of a product, given as its transpose X [columns, depth].
class Across : public Right {
 public:
  Across(int, int columns, int depth, Arena& arena) : Right(columns, depth, arena) {}
  void take(const float* x, int row, int columns, int depth) { take_across(x, row, columns, depth); }
  void product_of(Ahead& ahead, float* c, int c_row, const Left& a, int first, int rows, int columns, int depth) {
    product<Onto::NOTHING>(ahead, c, c_row, a, first, rows, *this, columns, depth);
  }
};

}  // namespace
