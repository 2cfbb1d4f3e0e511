// What forward and backward of chunked linear attention share on the CPU: matrices of the rows of one head, powers of
// its decay, and the masked products within a chunk.
#pragma once

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <limits>
#include <type_traits>
#include <vector>

#include "kernels/attention/linear_attention.h"
#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/types.h"

namespace heddle::kernels::cpu {

inline constexpr int64_t kChunkRows = 64;
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
// head. `elements` is the sum of their sizes; there are at most kMatrices of them.
template <class A>
class Scratch {
 public:
  explicit Scratch(int64_t elements) {
    if (static_cast<int64_t>(memory_.size()) < elements + kAlignment * kMatrices) {
      memory_.resize(elements + kAlignment * kMatrices);
    }
    next_ = memory_.data();
  }
  Panel<A> matrix(int64_t rows, int64_t cols) {
    A* start = next_;
    next_ += (rows * cols + kAlignment - 1) / kAlignment * kAlignment;
    return Panel<A>(start, rows, cols, Eigen::OuterStride<>(cols));
  }

 private:
  static constexpr int64_t kMatrices = 16;
  static constexpr int64_t kAlignment = 64 / sizeof(A);
  static thread_local std::vector<A, Eigen::aligned_allocator<A>> memory_;
  A* next_;
};
template <class A>
thread_local std::vector<A, Eigen::aligned_allocator<A>> Scratch<A>::memory_;

// Powers of one head's lambda = exp(log_decay). Exponents i * log_decay are never positive, so nothing overflows;
// powers that would be subnormal are 0. Rows are counted from the start of their chunk, from 0 on.
template <class A>
class Decay {
 public:
  using Vector = Eigen::Array<A, Eigen::Dynamic, 1>;
  using Segment = Eigen::Map<const Vector>;

  Decay(const VectorView& log_decay, int64_t head, double scale) {
    Eigen::Array<double, kChunkRows + 1, 1> power = Eigen::Array<double, kChunkRows + 1, 1>::Ones();
    if (log_decay) {
      const double slope = static_cast<double>(vector<A>(log_decay)[head]);
      power = Eigen::Array<double, kChunkRows + 1, 1>::LinSpaced(0.0, static_cast<double>(kChunkRows)) * slope;
      power = power.exp();
      power = (power < static_cast<double>(std::numeric_limits<A>::min())).select(0.0, power);
      power[0] = 1.0;
    }
    for (int64_t i = 0; i <= kChunkRows; ++i) power_[i] = static_cast<A>(power[i]);
    for (int64_t i = 0; i < kChunkRows; ++i) {
      to_end_[i] = power_[kChunkRows - 1 - i];
      scores_[i] = static_cast<A>(scale * power[kChunkRows - 1 - i]);
      from_start_[i] = static_cast<A>(scale * power[i + 1]);
    }
  }

  // lambda^rows, the weight of the state before a chunk of `rows` rows in the state after it.
  A whole(int64_t rows) const { return power_[rows]; }
  // scale * lambda^(i+1), the weight of the state before the chunk in the output of row i.
  Segment from_start(int64_t rows) const { return Segment(from_start_.data(), rows); }
  // lambda^(rows-1-j), the weight of row j in the state after the chunk.
  Segment to_end(int64_t rows) const { return Segment(to_end_.data() + kChunkRows - rows, rows); }
  // scale * lambda^(row-j) for j = 0 .. row, the weight of row j in the output of row `row`.
  Segment scores(int64_t row) const { return Segment(scores_.data() + kChunkRows - 1 - row, row + 1); }

 private:
  std::array<A, kChunkRows + 1> power_;
  std::array<A, kChunkRows> to_end_, scores_, from_start_;
};

// Rows [begin, begin + rows) of a head in the type of arithmetic: in place when the view has that type, else converted
// into `copy`.
template <class T>
ConstPanel<accumulate_t<T>> load(const HeadsView& view, HeadIndex index, int64_t begin, int64_t rows,
                                 Panel<accumulate_t<T>>& copy) {
  using A = accumulate_t<T>;
  const T* from = head<const T>(view, index.batch, begin, index.head);
  if constexpr (std::is_same_v<T, A>) {
    return ConstPanel<A>(from, rows, view.dim, Eigen::OuterStride<>(view.length_stride));
  } else {
    for (int64_t row = 0; row < rows; ++row) to_float(from + row * view.length_stride, copy.row(row).data(), view.dim);
    return ConstPanel<A>(copy.data(), rows, view.dim, Eigen::OuterStride<>(copy.outerStride()));
  }
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

// Writes (=) scores[i][j] = (a b^T)[i][j] * scale * lambda^(i-j) for j <= i, and 0 for j > i within the block of row i;
// what lies right of that block is not written.
template <class A>
void masked_scores(const ConstPanel<A>& a, const ConstPanel<A>& b, const Decay<A>& decay, Panel<A>& scores) {
  for (int64_t begin = 0; begin < a.rows(); begin += kBlockRows) {
    const int64_t end = std::min<int64_t>(begin + kBlockRows, a.rows());
    scores.block(begin, 0, end - begin, end).noalias() = a.middleRows(begin, end - begin) * b.topRows(end).transpose();
    for (int64_t row = begin; row < end; ++row) {
      scores.row(row).head(row + 1).array() *= decay.scores(row).transpose();
      scores.row(row).segment(row + 1, end - row - 1).setZero();
    }
  }
}

// y (+=) scores x
template <class A>
void add_scores_product(const Panel<A>& scores, const ConstPanel<A>& x, Eigen::Ref<RowMajorMatrix<A>> y) {
  for (int64_t begin = 0; begin < x.rows(); begin += kBlockRows) {
    const int64_t end = std::min<int64_t>(begin + kBlockRows, x.rows());
    y.middleRows(begin, end - begin).noalias() += scores.block(begin, 0, end - begin, end) * x.topRows(end);
  }
}

// y (+=) scores^T x
template <class A>
void add_scores_transposed_product(const Panel<A>& scores, const ConstPanel<A>& x, Eigen::Ref<RowMajorMatrix<A>> y) {
  const int64_t rows = x.rows();
  for (int64_t begin = 0; begin < rows; begin += kBlockRows) {
    const int64_t cols = std::min(kBlockRows, rows - begin);
    y.middleRows(begin, cols).noalias() +=
        scores.block(begin, begin, rows - begin, cols).transpose() * x.bottomRows(rows - begin);
  }
}

// state (=) kept * state + (weights .* a)^T b, where `weighted` is scratch for weights .* a.
template <class A>
void advance_state(A kept, const typename Decay<A>::Segment& weights, const ConstPanel<A>& a, const ConstPanel<A>& b,
                   Panel<A>& weighted, Panel<A>& state) {
  weighted.topRows(a.rows()) = (a.array().colwise() * weights).matrix();
  state *= kept;
  state.noalias() += weighted.topRows(a.rows()).transpose() * b;
}

}  // namespace heddle::kernels::cpu
