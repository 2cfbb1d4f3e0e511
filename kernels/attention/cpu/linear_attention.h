// What forward and backward of chunked linear attention share on the CPU: matrices of the rows of one head, its state,
// and the masked products within a chunk. Masking is choosing: no number of a token enters a
// product, not even times 0, whose result must not depend on that token.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels/attention/cpu/decay.h"
#include "kernels/attention/linear_attention.h"
#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/types.h"

namespace heddle::kernels::cpu {

// Products with lower triangular matrices proceed in blocks of so many rows and skip what lies right of a block.
inline constexpr int64_t kBlockRows = 32;

template <class A>
using RowMajorMatrix = Eigen::Matrix<A, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
// A row-major matrix in memory that it does not own, with a stride between its rows.
template <class A>
using Panel = Eigen::Map<RowMajorMatrix<A>, Eigen::Unaligned, Eigen::OuterStride<>>;
template <class A>
using ConstPanel = Eigen::Map<const RowMajorMatrix<A>, Eigen::Unaligned, Eigen::OuterStride<>>;

// One head of one sequence, which one thread works on.
struct HeadIndex {
  int64_t batch, head;
};

// Allocates the matrices of one head, of a chunk's rows or a state each, in memory that the thread keeps for the next
// head. `bytes` is the sum of their sizes; there are at most `matrices` of them.
class Scratch {
 public:
  explicit Scratch(int64_t bytes, int64_t matrices = 16) {
    memory_.resize(std::max(memory_.size(), static_cast<size_t>(bytes + kAlignment * matrices)));
    next_ = memory_.data();
  }
  template <class A>
  Panel<A> matrix(int64_t rows, int64_t cols) {
    A* start = reinterpret_cast<A*>(next_);
    next_ += (rows * cols * static_cast<int64_t>(sizeof(A)) + kAlignment - 1) / kAlignment * kAlignment;
    return Panel<A>(start, rows, cols, Eigen::OuterStride<>(cols));
  }

 private:
  static constexpr int64_t kAlignment = 64;
  inline static thread_local std::vector<std::byte, Eigen::aligned_allocator<std::byte>> memory_;
  std::byte* next_;
};

// Rows [begin, begin + rows) of a head in the type of arithmetic: in place when the view has that type, else converted
// into `copy`. Rows of one number are copied, too, because Eigen adds up a strided vector in another order.
template <class T>
ConstPanel<accumulate_t<T>> load(const HeadsView& view, HeadIndex index, int64_t begin, int64_t rows,
                                 Panel<accumulate_t<T>>& copy) {
  using A = accumulate_t<T>;
  const T* from = head<const T>(view, index.batch, begin, index.head);
  if constexpr (std::is_same_v<T, A>) {
    if (view.dim != 1) return ConstPanel<A>(from, rows, view.dim, Eigen::OuterStride<>(view.length_stride));
    for (int64_t row = 0; row < rows; ++row) copy(row, 0) = from[row * view.length_stride];
  } else {
    for (int64_t row = 0; row < rows; ++row) to_float(from + row * view.length_stride, copy.row(row).data(), view.dim);
  }
  return ConstPanel<A>(copy.data(), rows, view.dim, Eigen::OuterStride<>(copy.outerStride()));
}

// Writes (=) or adds (+=) the first `rows` rows of values to rows [begin, begin + rows) of a head of the destination.
template <class T>
void store(const HeadsDestination& to, HeadIndex index, int64_t begin, int64_t rows,
           const Panel<accumulate_t<T>>& values) {
  for (int64_t row = 0; row < rows; ++row) {
    T* start = head<T>(to.view, index.batch, begin + row, index.head);
    for_each_chunk(to.view.dim, [&](int64_t first, int64_t count) {
      store_chunk(start + first, values.row(row).data() + first, count, to.mode);
    });
  }
}

// The state of one head, (dim, value_dim), in `states` (batch, heads, dim, value_dim).
template <class A>
Panel<A> head_state(const VectorView& states, int64_t heads, HeadIndex index, int64_t dim, int64_t value_dim) {
  A* start = vector<A>(states) + (index.batch * heads + index.head) * dim * value_dim;
  return Panel<A>(start, dim, value_dim, Eigen::OuterStride<>(value_dim));
}

// Writes (=) scores[i][j] = (a b^T)[i][j] for j <= i; what lies right of that, up to the end of the block of row i, has
// no meaning, and nothing right of the block is written.
template <class A>
void lower_scores(const ConstPanel<A>& a, const ConstPanel<A>& b, Panel<A>& scores) {
  for (int64_t begin = 0; begin < a.rows(); begin += kBlockRows) {
    const int64_t end = std::min<int64_t>(begin + kBlockRows, a.rows());
    scores.block(begin, 0, end - begin, end).noalias() = a.middleRows(begin, end - begin) * b.topRows(end).transpose();
  }
}

// Whether all numbers of x, an expression of Eigen, are finite: 0 times a finite number is 0, and NaN for others. The
// sums are Eigen's, in vectors.
template <class Derived>
bool all_finite(const Eigen::DenseBase<Derived>& x) {
  using A = typename Derived::Scalar;
  return (x.derived().array() * A(0)).sum() == A(0);
}

// The inner product of two vectors of finite numbers times a weight, in double: for a product that has overflowed A. It
// is 0 where the weight is.
template <class VectorA, class VectorB>
double weighted_product(const VectorA& a, const VectorB& b, double weight) {
  return weight == 0.0 ? 0.0 : a.template cast<double>().dot(b.template cast<double>()) * weight;
}

// Takes the weighted scores of the rows from `begin` to `end` again in double where a product of finite numbers has
// overflowed A.
template <class A>
void correct_overflowed_scores(const ConstPanel<A>& a, const ConstPanel<A>& b, const Decay<A>& decay, int64_t begin,
                               int64_t end, Panel<A>& scores) {
  for (int64_t row = begin; row < end; ++row) {
    if (!all_finite(a.row(row))) continue;
    for (int64_t col = 0; col <= row; ++col) {
      if (std::isfinite(scores(row, col)) || !all_finite(b.row(col))) continue;
      const auto weight = static_cast<double>(decay.scores(row)[col]);
      scores(row, col) = static_cast<A>(weighted_product(a.row(row), b.row(col), weight));
    }
  }
}

// Writes (=) scores[i][j] = (a b^T)[i][j] * scale * lambda_{j+1} ... lambda_i for j <= i, and 0 for j > i within the
// block of row i; what lies right of that block is not written. A product that overflows A where its weight brings it
// back, or is 0, is taken in double.
template <class A>
void masked_scores(const ConstPanel<A>& a, const ConstPanel<A>& b, const Decay<A>& decay, Panel<A>& scores) {
  lower_scores(a, b, scores);
  for (int64_t begin = 0; begin < a.rows(); begin += kBlockRows) {
    const int64_t end = std::min<int64_t>(begin + kBlockRows, a.rows());
    for (int64_t row = begin; row < end; ++row) {
      scores.row(row).head(row + 1).array() *= decay.scores(row).transpose();
      scores.row(row).segment(row + 1, end - row - 1).setZero();
    }
    if (all_finite(scores.block(begin, 0, end - begin, end))) continue;
    correct_overflowed_scores(a, b, decay, begin, end, scores);
  }
}

// y (=) the product of a and b, whose rows are multiplied by their weights; what overflows A before it is weighted is
// taken in double.
template <class A, class Matrix>
void weighted_rows_product(const ConstPanel<A>& a, const Matrix& b, const typename Decay<A>::Segment& weights,
                           Eigen::Ref<RowMajorMatrix<A>> y) {
  y.noalias() = a * b;
  y.array().colwise() *= weights;
  if (all_finite(y)) return;
  for (int64_t row = 0; row < y.rows(); ++row) {
    if (all_finite(y.row(row)) || !all_finite(a.row(row))) continue;
    for (int64_t col = 0; col < y.cols(); ++col) {
      if (std::isfinite(y(row, col)) || !all_finite(b.col(col))) continue;
      y(row, col) =
          static_cast<A>(weighted_product(a.row(row).transpose(), b.col(col), static_cast<double>(weights[row])));
    }
  }
}

// x itself when all of its numbers are finite, else a copy in `spare` with 0 in place of those that are not.
template <class A>
ConstPanel<A> finite_part(const ConstPanel<A>& x, Panel<A>& spare) {
  if (all_finite(x)) return x;
  for (int64_t row = 0; row < x.rows(); ++row) {
    for (int64_t i = 0; i < x.cols(); ++i) spare(row, i) = std::isfinite(x(row, i)) ? x(row, i) : A(0);
  }
  return ConstPanel<A>(spare.data(), x.rows(), x.cols(), Eigen::OuterStride<>(spare.outerStride()));
}

// Calls add(row, col) for the numbers of x that finite_part() left out.
template <class A, class Add>
void for_each_left_out(const ConstPanel<A>& x, const ConstPanel<A>& finite, const Add& add) {
  if (finite.data() == x.data()) return;
  for (int64_t row = 0; row < x.rows(); ++row) {
    for (int64_t col = 0; col < x.cols(); ++col) {
      if (!std::isfinite(x(row, col))) add(row, col);
    }
  }
}

// y (+=) scores x, where row i of y takes the rows of x up to i only. `spare` is scratch of the size of x.
template <class A>
void add_scores_product(const Panel<A>& scores, const ConstPanel<A>& x, Panel<A>& spare,
                        Eigen::Ref<RowMajorMatrix<A>> y) {
  const ConstPanel<A> finite = finite_part(x, spare);
  for (int64_t begin = 0; begin < x.rows(); begin += kBlockRows) {
    const int64_t end = std::min<int64_t>(begin + kBlockRows, x.rows());
    y.middleRows(begin, end - begin).noalias() += scores.block(begin, 0, end - begin, end) * finite.topRows(end);
  }
  for_each_left_out(x, finite, [&](int64_t row, int64_t col) {
    for (int64_t i = row; i < x.rows(); ++i) y(i, col) += scores(i, row) * x(row, col);
  });
}

// y (+=) scores^T x, where row j of y takes the rows of x from j on only. `spare` is scratch of the size of x.
template <class A>
void add_scores_transposed_product(const Panel<A>& scores, const ConstPanel<A>& x, Panel<A>& spare,
                                   Eigen::Ref<RowMajorMatrix<A>> y) {
  const ConstPanel<A> finite = finite_part(x, spare);
  const int64_t rows = x.rows();
  for (int64_t begin = 0; begin < rows; begin += kBlockRows) {
    const int64_t cols = std::min(kBlockRows, rows - begin);
    y.middleRows(begin, cols).noalias() +=
        scores.block(begin, begin, rows - begin, cols).transpose() * finite.bottomRows(rows - begin);
  }
  for_each_left_out(x, finite, [&](int64_t row, int64_t col) {
    for (int64_t j = 0; j <= row; ++j) y(j, col) += scores(row, j) * x(row, col);
  });
}

// A copy of a state; 0 without numbers.
template <class A>
class StateSnapshot {
 public:
  bool is_zero() const { return values_.empty(); }
  ConstPanel<A> matrix(int64_t dim, int64_t value_dim) const {
    return ConstPanel<A>(values_.data(), dim, value_dim, Eigen::OuterStride<>(value_dim));
  }

 private:
  template <class>
  friend class State;
  std::vector<A> values_;
  std::vector<double> exact_;
};

// The state S of one head, or its gradient, (dim, value_dim). It is a sum over the whole sequence, so it is kept in
// double: rounded in every chunk it would lose digits with the length, and a lambda near 1 would leave it as it is.
// Products read it rounded to A.
template <class A>
class State {
 public:
  // The bytes of scratch memory that a state takes.
  static constexpr int64_t bytes(int64_t dim, int64_t value_dim) {
    return dim * value_dim * static_cast<int64_t>(sizeof(A) + (kIsDouble ? 0 : sizeof(double)));
  }
  State(Scratch& scratch, int64_t dim, int64_t value_dim)
      : values_(scratch.matrix<A>(dim, value_dim)), exact_(scratch.matrix<double>(kIsDouble ? 0 : dim, value_dim)) {}

  // S is 0, and values() mean nothing.
  bool is_zero() const { return is_zero_; }
  const Panel<A>& values() const { return values_; }

  // S (=) 0
  void clear() { is_zero_ = true; }
  // S (=) the state of one head of `states`; 0 when these are empty.
  void start(const VectorView& states, int64_t heads, HeadIndex index) {
    is_zero_ = !states;
    if (is_zero_) return;
    values_ = head_state<A>(states, heads, index, values_.rows(), values_.cols());
    exact_ = values_.template cast<double>().topRows(exact_.rows());
  }
  // S (=) kept * S + (weights .* a)^T b, where `weighted` is scratch for weights .* a. A number of S that is not finite
  // stays so, also where `kept` is so small that it is 0.
  void advance(double kept, const typename Decay<A>::Segment& weights, const ConstPanel<A>& a, const ConstPanel<A>& b,
               Panel<A>& weighted) {
    weighted.topRows(a.rows()) = (a.array().colwise() * weights).matrix();
    const bool adds = !is_zero_;
    is_zero_ = false;
    if constexpr (kIsDouble) {
      if (adds) {
        values_ *= kept;
      } else {
        values_.setZero();
      }
      values_.noalias() += weighted.topRows(a.rows()).transpose() * b;
    } else {
      values_.noalias() = weighted.topRows(a.rows()).transpose() * b;
      A* values = values_.data();
      double* exact = exact_.data();
      for (int64_t i = 0; i < values_.size(); ++i) {
        exact[i] = static_cast<double>(values[i]) + (adds ? kept * exact[i] : 0.0);
        values[i] = static_cast<A>(exact[i]);
      }
    }
  }
  StateSnapshot<A> snapshot() const {
    StateSnapshot<A> copy;
    if (is_zero_) return copy;
    copy.values_.assign(values_.data(), values_.data() + values_.size());
    copy.exact_.assign(exact_.data(), exact_.data() + exact_.size());
    return copy;
  }
  void restore(const StateSnapshot<A>& copy) {
    is_zero_ = copy.is_zero();
    std::copy(copy.values_.begin(), copy.values_.end(), values_.data());
    std::copy(copy.exact_.begin(), copy.exact_.end(), exact_.data());
  }
  // to (=|+=) S
  void store(Panel<A> to, GradientMode mode) const {
    if (mode == GradientMode::overwrite) {
      if (is_zero_) to.setZero();
      if (!is_zero_) to = values_;
    } else if (!is_zero_) {
      to += values_;
    }
  }

 private:
  static constexpr bool kIsDouble = std::is_same_v<A, double>;
  bool is_zero_ = true;
  Panel<A> values_;
  Panel<double> exact_;  // S; without rows where values_ is exact
};

}  // namespace heddle::kernels::cpu
