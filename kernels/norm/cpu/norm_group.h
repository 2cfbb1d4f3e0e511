// What forward and backward of the normalization have in common on the CPU: how the features of a row are cut, and
// p = r * act(gate) of a stretch of them.
#pragma once

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/norm/norm.h"

namespace heddle::kernels::cpu {

// A row is cut into stretches of whole groups with at most kChunk features, for whole_groups(begin, count), or into
// single groups when a group is larger than kChunk, for large_group(begin); such a group is read in several chunks,
// once a pass.
template <class WholeGroups, class LargeGroup>
inline void for_each_stretch_of_groups(int64_t dim, int64_t groups, const WholeGroups& whole_groups,
                                       const LargeGroup& large_group) {
  const int64_t size = dim / groups;
  const int64_t stretch = size >= kChunk ? size : kChunk / size * size;
  for (int64_t begin = 0; begin < dim; begin += stretch) {
    const int64_t count = std::min(stretch, dim - begin);
    count <= kChunk ? whole_groups(begin, count) : large_group(begin);
  }
}

// Rows a piece of work holds: enough to be worth a thread's while.
inline int64_t rows_per_piece(int64_t dim) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, dim)); }

// Calls run(std::bool_constant<flag>{}...): options that are not there cost nothing in an inner loop.
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

// weight or bias, converted once when a row is one chunk.
template <class T>
class ParameterChunk {
 public:
  explicit ParameterChunk(const VectorView& view) : from_(vector<T>(view)) {}
  const accumulate_t<T>* at(int64_t begin, int64_t count) {
    if (from_ == nullptr) return nullptr;
    if (begin != loaded_begin_ || count != loaded_count_) values_ = load_chunk(from_ + begin, count, buffer_);
    loaded_begin_ = begin;
    loaded_count_ = count;
    return values_;
  }

 private:
  const T* from_;
  const accumulate_t<T>* values_ = nullptr;
  int64_t loaded_begin_ = -1, loaded_count_ = 0;
  Buffer<accumulate_t<T>> buffer_;
};

// to = values * act(gate); to may be values.
template <class A>
inline void multiply_by_activation(Activation act, const A* values, const A* gate, std::type_identity_t<A>* to,
                                   int64_t count) {
  visit_activation(act, [&](auto kind) {
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) to[i] = values[i] * apply_activation<kind.value>(gate[i]);
  });
}

// r of a stretch of one row: x, or the rounded sum of x and residual in `buffer`; stored in `store_to` if given.
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
