// What forward and backward of the normalization share on the CPU: how a row is divided into chunks of whole groups,
// and how r and the product with a gate are computed for such a chunk.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cpu/activation.h"
#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/norm/norm.h"

namespace heddle::kernels::cpu {

// Divides a row of `dim` features into chunks of whole groups of at most kChunk features and calls
// whole_groups(begin, count) for each. When one group is larger than kChunk it calls large_group(begin) for each group;
// such a group is read in several chunks, once for each pass over it.
template <class WholeGroups, class LargeGroup>
inline void for_each_chunk_of_groups(int64_t dim, int64_t groups, const WholeGroups& whole_groups,
                                     const LargeGroup& large_group) {
  const int64_t size = dim / groups;
  const int64_t step = size >= kChunk ? size : kChunk / size * size;
  for (int64_t begin = 0; begin < dim; begin += step) {
    const int64_t count = std::min(step, dim - begin);
    count <= kChunk ? whole_groups(begin, count) : large_group(begin);
  }
}

// Rows of one task: enough to outweigh the cost of giving it to a thread.
inline int64_t rows_per_task(int64_t dim) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, dim)); }

// Calls run(std::bool_constant<flag>{}...), so that options that are off cost nothing in an inner loop.
template <class Run>
inline void with_flags(const Run& run) {
  run();
}
template <class Run, class... Flags>
inline void with_flags(const Run& run, bool flag, Flags... flags) {
  if (flag) {
    with_flags([&](auto... rest) { run(std::true_type{}, rest...); }, flags...);
  } else {
    with_flags([&](auto... rest) { run(std::false_type{}, rest...); }, flags...);
  }
}

// The elements of weight or bias, stored as T or in full precision, in the type of arithmetic. They are converted once
// for all rows when a row is one chunk.
template <class T>
class ParameterChunk {
 public:
  // `same` is the dtype of T.
  ParameterChunk(const VectorView& view, DType same) : from_(view), same_(same) {}
  // Elements [begin, begin + count), or null when the parameter is not given.
  const accumulate_t<T>* at(int64_t begin, int64_t count) {
    if (!from_) return nullptr;
    if (begin != loaded_begin_ || count != loaded_count_) load(begin, count);
    loaded_begin_ = begin;
    loaded_count_ = count;
    return values_;
  }

 private:
  void load(int64_t begin, int64_t count) {
    visit_same_or_accumulate<T>(from_.dtype, same_, [&](auto type) {
      values_ = load_chunk(vector<decltype(type)>(from_) + begin, count, buffer_.data());
    });
  }

  const VectorView from_;
  const DType same_;
  const accumulate_t<T>* values_ = nullptr;
  int64_t loaded_begin_ = -1, loaded_count_ = 0;
  Buffer<accumulate_t<T>> buffer_;
};

// to (=) values * act(gate); `to` may be `values`.
template <class A>
inline void multiply_by_activation(Activation act, const A* values, const A* gate, std::type_identity_t<A>* to,
                                   int64_t count) {
  visit_activation(act, [&](auto kind) {
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) to[i] = values[i] * apply_activation<kind.value>(gate[i]);
  });
}

// r of a chunk of one row: x itself without residual, else the rounded sum of x and residual in `buffer`, which is also
// written (=) to `store_to` unless that is null.
template <class T>
inline const accumulate_t<T>* load_r(const T* x, const T* residual, T* store_to, int64_t count,
                                     accumulate_t<T>* buffer) {
  using A = accumulate_t<T>;
  const A* values = load_chunk(x, count, buffer);
  if (residual == nullptr) return values;
  Buffer<A> other;
  const A* added = load_chunk(residual, count, other);
  HEDDLE_INDEPENDENT
  for (int64_t i = 0; i < count; ++i) buffer[i] = values[i] + added[i];
  round_chunk<T>(buffer, count);
  if (store_to != nullptr) store_chunk(store_to, buffer, count, GradientMode::overwrite);
  return buffer;
}

}  // namespace heddle::kernels::cpu
