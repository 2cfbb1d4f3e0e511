// The two position encodings as template arguments of the passes over rows (lrpe_forward.h, lrpe_backward.h): how many
// features of x an angle rotates, how these are paired, and the angles of a token. y has two features for each angle,
// paired in the same way.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/position/cpu/angle.h"
#include "kernels/position/lrpe_cosine.h"
#include "kernels/position/lrpe_rotate.h"

namespace heddle::kernels::cpu {

// Number of heads that share a row of theta.
inline int64_t heads_per_theta(const HeadsView& x, const RowsView& theta) {
  return theta.rows > 0 ? x.heads / theta.rows : 0;  // no heads, no thetas
}

// The encoding of lrpe_rotate.h.
template <class A>
class Rotation {
 public:
  using ForwardArgs = LrpeRotateForwardArgs;
  using BackwardArgs = LrpeRotateBackwardArgs;
  static constexpr int kSides = 2;  // features of x for each angle

  Rotation(const RowsView& theta, const LrpeRotateOptions& options)
      : options_(options), known_(theta.cols), table_(theta) {}

  Pairing pairing() const { return options_.pairing; }
  bool is_extra(int64_t /*token*/) const { return false; }

  // Writes (=) cos and sin of the angles [begin, begin + count) of one row of theta at a token, count <= kAngles.
  void angles(int64_t row, int64_t begin, int64_t count, int64_t token, A* cosines, A* sines) {
    table_.at(row, begin, count, token + options_.offset, cosines, sines);
  }

  // Adds (+=) the terms of these angles, whose gradients are d_phi, to d_theta, the gradient of that row of theta. D is
  // A, or double.
  template <class D>
  void add_d_theta(int64_t begin, int64_t count, int64_t token, const D* d_phi, double* d_theta) const {
    const auto position = static_cast<double>(token + options_.offset);
    const int64_t end = std::min(count, known_ - begin);  // not positive if none of these angles has a theta
    for (int64_t i = 0; i < end; ++i) d_theta[begin + i] += position * static_cast<double>(d_phi[i]);
  }

 private:
  const LrpeRotateOptions& options_;
  const int64_t known_;
  AngleTable<A> table_;
};

// The encoding of lrpe_cosine.h.
template <class A>
class Cosine {
 public:
  using ForwardArgs = LrpeCosineForwardArgs;
  using BackwardArgs = LrpeCosineBackwardArgs;
  static constexpr int kSides = 1;

  Cosine(const RowsView& theta, const LrpeCosineOptions& options)
      : options_(options), known_(theta.cols), table_(theta) {}

  Pairing pairing() const { return Pairing::half; }
  // Whether y of a token is (a, 0): its second features are no products with sin 0, which would let infinity make NaN.
  bool is_extra(int64_t token) const { return token < options_.extra_tokens; }

  void angles(int64_t row, int64_t begin, int64_t count, int64_t token, A* cosines, A* sines) {
    if (is_extra(token)) {
      std::fill_n(cosines, count, A(1));
      std::fill_n(sines, count, A(0));
      return;
    }
    for_each_axis(begin, count, token, [&](int64_t from, int64_t size, int64_t place, int64_t coordinate) {
      table_.at(row, place, size, coordinate, cosines + from, sines + from);
    });
  }

  template <class D>
  void add_d_theta(int64_t begin, int64_t count, int64_t token, const D* d_phi, double* d_theta) const {
    if (is_extra(token)) return;
    for_each_axis(begin, count, token, [&](int64_t from, int64_t size, int64_t place, int64_t coordinate) {
      const auto factor = static_cast<double>(coordinate);
      for (int64_t i = 0; i < size; ++i) d_theta[place + i] += factor * static_cast<double>(d_phi[from + i]);
    });
  }

 private:
  // Divides the angles [begin, begin + count) of a token by axes and calls visit(from, size, place, coordinate) for
  // each: the angles begin + from .. begin + from + size - 1 are `coordinate` times the elements of theta from `place`
  // on.
  template <class Visit>
  void for_each_axis(int64_t begin, int64_t count, int64_t token, const Visit& visit) const {
    int64_t coordinates[LrpeCosineOptions::kMostAxes];
    int64_t rest = token - options_.extra_tokens;
    for (int axis = options_.axes - 1; axis > 0; --axis) {
      coordinates[axis] = rest % options_.extents[axis];
      rest /= options_.extents[axis];
    }
    coordinates[0] = rest + options_.offset;
    for (int64_t from = 0, size = 0; from < count; from += size) {
      const int64_t place = (begin + from) % known_;
      size = std::min(count - from, known_ - place);
      visit(from, size, place, coordinates[(begin + from) / known_]);
    }
  }

  const LrpeCosineOptions& options_;
  const int64_t known_;
  AngleTable<A> table_;
};

}  // namespace heddle::kernels::cpu
