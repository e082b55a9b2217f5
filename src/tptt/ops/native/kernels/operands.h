// The factors of a product for vector instructions, which read them where they lie. tiles.h has the same classes for
// tiles, which pack their factors first; parameters that only tiles need have no name here.
#pragma once
#include "arena.h"
#include "products.h"

namespace {

constexpr int PADDING = LANES;  // widths are padded to a multiple of this

// What a thread needs for products: nothing.
struct Unit {
  Unit() {}
};

// A [rows, depth] of a product.
class Left {
 public:
  Left(int, int, Arena&) {}
  void take(const float* x, int row, int, int, bool = false) { at_ = x, row_ = row, step_ = 1; }
  // of its transpose X [depth, rows]
  void take_across(const float* x, int row, int, int, bool = false) { at_ = x, row_ = 1, step_ = row; }
  const float* at(int row, int depth = 0) const { return at_ + int64_t(row) * row_ + int64_t(depth) * step_; }
  int row() const { return row_; }
  int step() const { return step_; }

 private:
  const float* at_ = nullptr;
  int row_ = 0, step_ = 0;
};

// B [depth, columns] of a product; ``across``: it will be taken from its transpose.
class Right {
 public:
  Right(int columns, int depth, Arena& arena, bool across = false)
      : turned_(across ? arena.take(int64_t(columns) * depth) : nullptr) {}
  void take(const float* x, int row, int, int, bool = false) { at_ = x, row_ = row; }
  // of its transpose X [columns, depth]
  void take_across(const float* x, int row, int columns, int depth, bool = false) {
    transpose(x, row, turned_, columns, columns, depth);
    at_ = turned_, row_ = columns;
  }
  const float* at(int depth = 0) const { return at_ + int64_t(depth) * row_; }
  int row() const { return row_; }

 private:
  float* turned_;
  const float* at_ = nullptr;
  int row_ = 0;
};

// B of a product, given as its transpose X [columns, depth]. X is read once, as it lies, and the product is transposed
// instead: cheaper where B is larger than A and C.
class Across {
 public:
  Across(int rows, int columns, int depth, Arena& arena)
      : left_(arena.take(int64_t(rows) * depth)), product_(arena.take(int64_t(columns) * rows)) {}
  void take(const float* x, int row, int, int) { x_ = x, row_ = row; }

  void product_of(Ahead& ahead, float* c, int c_row, const Left& a, int first, int rows, int columns, int depth) {
    transpose(a.at(first), a.row(), left_, rows, rows, depth);
    product<Onto::NOTHING>(ahead, product_, rows, x_, row_, 1, left_, rows, columns, rows, depth);
    transpose(product_, rows, c, c_row, columns, rows);
  }

 private:
  float *left_, *product_;
  const float* x_ = nullptr;
  int row_ = 0;
};

// C [rows, columns] from ``rows`` rows of A, from ``first`` on, and B.
template <Onto ONTO>
inline void product(Ahead& ahead, float* c, int c_row, const Left& a, int first, int rows, Right& b, int columns,
                    int depth, const float* d = nullptr, float factor = 1.f) {
  product<ONTO>(ahead, c, c_row, a.at(first), a.row(), a.step(), b.at(), b.row(), rows, columns, depth, d, factor);
}

// The same with sums of 16 terms that are then added up.
inline void product_in_parts(Ahead& ahead, float* c, int c_row, const Left& a, int first, int rows, Right& b,
                             int columns, int depth) {
  for (int n = 0; n < depth; n += 16) {
    const int part = depth - n < 16 ? depth - n : 16;
    if (n)
      product<Onto::AFTER>(ahead, c, c_row, a.at(first, n), a.row(), a.step(), b.at(n), b.row(), rows, columns, part);
    else
      product<Onto::NOTHING>(ahead, c, c_row, a.at(first), a.row(), a.step(), b.at(), b.row(), rows, columns, part);
  }
}

}  // namespace
