// The heads that one thread of chunked linear attention works on together: those of q that read one head of k and v.
#pragma once

#include <cstdint>
#include <vector>

#include "core/runtime/error.h"
#include "kernels/attention/cpu/decay.h"
#include "kernels/attention/cpu/linear_attention.h"
#include "kernels/attention/linear_attention.h"
#include "kernels/common/cpu/parallel.h"

namespace heddle::kernels::cpu {

// Heads [first, first + count) of q of one sequence, which read one head of k and v.
struct HeadGroup {
  int64_t batch, key_head, first, count;
  HeadIndex keys() const { return {batch, key_head}; }
  HeadIndex queries(int64_t i) const { return {batch, first + i}; }
};

// The decays of the heads of a group, and the chunks that fit them all.
template <class A>
struct GroupDecays {
  template <class Args>
  GroupDecays(const Args& args, const HeadGroup& group) {
    for (int64_t i = 0; i < group.count; ++i) {
      heads.emplace_back(args, group.batch, group.first + i);
      weights.emplace_back(heads.back(), args.scale);
    }
    chunks = cut_into_chunks(args.q.length, heads);
  }

  std::vector<HeadDecays<A>> heads;
  std::vector<Decay<A>> weights;
  std::vector<Chunk> chunks;
};

template <class A>
void check_log_decay(const VectorView& log_decay) {
  const A* values = vector<const A>(log_decay);
  for (int64_t i = 0; i < log_decay.size; ++i) {
    check(values[i] <= 0, "[linear_attention] log_decay[{}] is {}, expected a number <= 0", i, values[i]);
  }
}

inline void check_segments(const VectorView& segments, int64_t length) {
  const auto* values = vector<const int32_t>(segments);
  for (int64_t i = 0; i < segments.size; ++i) {
    check(
        i % length == 0 || values[i] >= values[i - 1],
        "[linear_attention] segments falls from {} to {} at token {} of sequence {}, expected numbers that never fall",
        values[i - 1], values[i], i % length, i / length);
  }
}

// Calls visit(T{}, group) for the heads of each head of k of every sequence, on several threads. Throws Error for a
// positive log_decay and for segments that fall.
template <class Args, class Visit>
void for_each_group(Context& context, const Args& args, const Visit& visit) {
  const HeadsView& q = args.q;
  if (args.segments) check_segments(args.segments, q.length);
  visit_floating(q.dtype, [&](auto type) {
    if (args.log_decay) check_log_decay<accumulate_t<decltype(type)>>(args.log_decay);
    if (q.heads == 0 || args.k.heads == 0) return;
    const int64_t key_heads = args.k.heads, count = q.heads / key_heads;
    const double work =
        static_cast<double>(q.length * count) * static_cast<double>(q.dim) * static_cast<double>(args.v.dim);
    parallel_ranges(context, q.batch * key_heads, grain_of(work), [&](int64_t begin, int64_t end) {
      for (int64_t index = begin; index < end; ++index) {
        const int64_t key_head = index % key_heads;
        visit(type, HeadGroup{index / key_heads, key_head, key_head * count, count});
      }
    });
  });
}

}  // namespace heddle::kernels::cpu
