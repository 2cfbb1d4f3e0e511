// Rows of the position encodings on the CPU: which features an angle rotates, and the activation of a chunk of
// features. A row has one or two features (sides) for each angle. Two are a pair; a single one stands for the pair
// (feature, 0).
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/common/cpu/activation.h"
#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/softmax.h"
#include "kernels/position/cpu/angle.h"
#include "kernels/position/lrpe_rotate.h"

namespace heddle::kernels::cpu {

// Number of pairs of a chunk, at most.
inline constexpr int64_t kPairs = kAngles;
static_assert(2 * kPairs <= kChunk);

// The first and the second features of some pairs, in buffers or in place.
template <class A>
struct Pairs {
  const A* side[2];
};
template <class A>
struct PairTarget {
  A* side[2];
  operator Pairs<A>() const { return {side[0], side[1]}; }
};
template <class A>
struct PairBuffer {
  Buffer<A, kPairs> side[2];
  operator Pairs<A>() const { return {side[0], side[1]}; }
};

// Calls visit(side) for each side, where `side` is a compile-time constant: an index at run time would make the
// compiler keep the addresses of the sides in memory instead of registers.
template <int sides, class Visit>
inline void for_each_side(const Visit& visit) {
  visit(std::integral_constant<int, 0>{});
  if constexpr (sides == 2) visit(std::integral_constant<int, 1>{});
}

// Pairs [begin, begin + count) of a row of `pairs` pairs. With one side the second features are null.
template <int sides, class T, class A = accumulate_t<T>>
inline Pairs<A> load_pairs(const T* row, Pairing pairing, int64_t pairs, int64_t begin, int64_t count,
                           PairBuffer<A>& buffer) {
  const A* first = nullptr;
  if (sides == 1 || pairing == Pairing::half) first = load_chunk(row + begin, count, buffer.side[0]);
  if constexpr (sides == 1) return {first, nullptr};
  if (pairing == Pairing::half) return {first, load_chunk(row + pairs + begin, count, buffer.side[1])};
  Buffer<A, 2 * kPairs> both;
  const A* values = load_chunk(row + 2 * begin, 2 * count, both);
  for (int64_t i = 0; i < count; ++i) {
    buffer.side[0][i] = values[2 * i];
    buffer.side[1][i] = values[2 * i + 1];
  }
  return buffer;
}

// Where a kernel computes the pairs that it then passes to store_pairs: in the row itself if possible, else in
// `buffer`.
template <class T>
inline PairTarget<accumulate_t<T>> target_pairs(T* row, Pairing pairing, int64_t pairs, int64_t begin,
                                                GradientMode mode, PairBuffer<accumulate_t<T>>& buffer) {
  if (pairing == Pairing::interleaved) return {buffer.side[0], buffer.side[1]};
  return {target_chunk(row + begin, mode, buffer.side[0]), target_chunk(row + pairs + begin, mode, buffer.side[1])};
}

// Writes (=) or adds (+=) pairs [begin, begin + count) of a row.
template <int sides, class T>
inline void store_pairs(T* row, Pairing pairing, int64_t pairs, int64_t begin, int64_t count,
                        const Pairs<accumulate_t<T>>& values, GradientMode mode) {
  if (sides == 1 || pairing == Pairing::half) {
    for_each_side<sides>([&](auto side) { store_chunk(row + side * pairs + begin, values.side[side], count, mode); });
    return;
  }
  Buffer<accumulate_t<T>, 2 * kPairs> both;
  for (int64_t i = 0; i < count; ++i) {
    both[2 * i] = values.side[0][i];
    both[2 * i + 1] = values.side[1][i];
  }
  store_chunk(row + 2 * begin, both, 2 * count, mode);
}

// a = act(x) of `count` features, or their softmax: with `row` over features, with the features' `maximum` and `sum`
// over the sequence. Returns x itself when there is no activation, else `buffer`.
template <class A>
inline const A* activate(Activation act, Softmax softmax, const RowSoftmax<A>& row, const A* x, const A* maximum,
                         const A* sum, int64_t count, std::type_identity_t<A>* buffer) {
  switch (softmax) {
    case Softmax::feature:
      HEDDLE_INDEPENDENT
      for (int64_t i = 0; i < count; ++i) buffer[i] = row(x[i]);
      return buffer;
    case Softmax::sequence:
      HEDDLE_INDEPENDENT
      for (int64_t i = 0; i < count; ++i) buffer[i] = exponential(x[i] - maximum[i]) / sum[i];
      return buffer;
    case Softmax::none:
      break;
  }
  if (act == Activation::none) return x;
  visit_activation(act, [&](auto kind) {
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) buffer[i] = apply_activation<kind.value>(x[i]);
  });
  return buffer;
}

// Turns the gradient of a, in place, into that of x. It is d_a * act'(x), or a * (d_a - dot) for a softmax, where dot
// is the sum of a * d_a over what the softmax normalizes: `row_dot` over features, `column_dots` (one for each feature)
// over the sequence. An activation reads x, a softmax reads a.
template <class A>
inline void differentiate_activation(Activation act, Softmax softmax, const A* x, const A* a, A row_dot,
                                     const A* column_dots, int64_t count, A* d_a) {
  switch (softmax) {
    case Softmax::feature:
      for (int64_t i = 0; i < count; ++i) d_a[i] = a[i] * (d_a[i] - row_dot);
      return;
    case Softmax::sequence:
      for (int64_t i = 0; i < count; ++i) d_a[i] = a[i] * (d_a[i] - column_dots[i]);
      return;
    case Softmax::none:
      break;
  }
  if (act == Activation::none) return;
  visit_activation(act, [&](auto kind) {
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
      d_a[i] = chain_rule<kind.value>(d_a[i], activation_derivative<kind.value>(x[i]));
    }
  });
}

}  // namespace heddle::kernels::cpu
