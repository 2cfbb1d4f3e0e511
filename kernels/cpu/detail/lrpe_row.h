// Rows of the position encodings on the CPU: their features as pairs, and the activation of a stretch of features.
#pragma once

#include "kernels/cpu/detail/angle.h"
#include "kernels/cpu/detail/convert.h"
#include "kernels/cpu/detail/math.h"
#include "kernels/lrpe_rotate.h"

namespace heddle::kernels::cpu {

// Pairs of features handled at a time.
inline constexpr int64_t kPairs = kAngles;
static_assert(2 * kPairs <= kChunk);

// The first and the second features of some pairs, in buffers or where they lie.
template <class A>
struct Pairs {
  const A *first, *second;
};
template <class A>
struct PairTarget {
  A *first, *second;
  operator Pairs<A>() const { return {first, second}; }
};
template <class A>
struct PairBuffer {
  Buffer<A, kPairs> first, second;
  operator Pairs<A>() const { return {first, second}; }
};

// Pairs [begin, begin + count) of a row of `half` pairs.
template <class T, class A = accumulate_t<T>>
inline Pairs<A> load_pairs(const T* row, Pairing pairing, int64_t half, int64_t begin, int64_t count,
                           PairBuffer<A>& buffer) {
  if (pairing == Pairing::half) {
    return {load_chunk(row + begin, count, buffer.first), load_chunk(row + half + begin, count, buffer.second)};
  }
  Buffer<A, 2 * kPairs> both;
  const A* values = load_chunk(row + 2 * begin, 2 * count, both);
  for (int64_t i = 0; i < count; ++i) {
    buffer.first[i] = values[2 * i];
    buffer.second[i] = values[2 * i + 1];
  }
  return buffer;
}

// Where to compute pairs that store_pairs will then store: in the row itself where that is possible.
template <class T>
inline PairTarget<accumulate_t<T>> target_pairs(T* row, Pairing pairing, int64_t half, int64_t begin, Accumulate mode,
                                                PairBuffer<accumulate_t<T>>& buffer) {
  if (pairing == Pairing::interleaved) return {buffer.first, buffer.second};
  return {target_chunk(row + begin, mode, buffer.first), target_chunk(row + half + begin, mode, buffer.second)};
}

template <class T>
inline void store_pairs(T* row, Pairing pairing, int64_t half, int64_t begin, int64_t count,
                        const Pairs<accumulate_t<T>>& values, Accumulate mode) {
  if (pairing == Pairing::half) {
    store_chunk(row + begin, values.first, count, mode);
    store_chunk(row + half + begin, values.second, count, mode);
    return;
  }
  Buffer<accumulate_t<T>, 2 * kPairs> both;
  for (int64_t i = 0; i < count; ++i) {
    both[2 * i] = values.first[i];
    both[2 * i + 1] = values.second[i];
  }
  store_chunk(row + 2 * begin, both, 2 * count, mode);
}

// What a softmax over features subtracts and multiplies by in one row.
template <class A>
struct RowSoftmax {
  A maximum = 0, factor = 1;
};
template <class T, class A = accumulate_t<T>>
inline RowSoftmax<A> row_softmax(const T* row, int64_t dim) {
  Buffer<A> buffer;
  RowSoftmax<A> result{-std::numeric_limits<A>::infinity(), 1};
  for_each_chunk(dim, [&](int64_t begin, int64_t count) {
    const A* x = load_chunk(row + begin, count, buffer);
    result.maximum = std::max(result.maximum, maximum_of<A>(count, [x](int64_t i) { return x[i]; }));
  });
  Lanes<A> sum;
  for_each_chunk(dim, [&](int64_t begin, int64_t count) {
    const A* x = load_chunk(row + begin, count, buffer);
    sum.add(count, [x, most = result.maximum](int64_t i) { return exponential(x[i] - most); });
  });
  result.factor = A(1) / sum.total();
  return result;
}

// a = act(x) of `count` features; `maximum` and `sum` are theirs, for softmax over the sequence only. The result is x
// itself where there is no activation, else `buffer`.
template <class A>
inline const A* activate(Activation act, Softmax softmax, const RowSoftmax<A>& row, const A* x, const A* maximum,
                         const A* sum, int64_t count, std::type_identity_t<A>* buffer) {
  switch (softmax) {
    case Softmax::feature:
      HEDDLE_INDEPENDENT
      for (int64_t i = 0; i < count; ++i) buffer[i] = exponential(x[i] - row.maximum) * row.factor;
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

}  // namespace heddle::kernels::cpu
