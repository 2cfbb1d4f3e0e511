// Dropout on the CPU, row by row in chunks. The words of a chunk are drawn where it is computed, in forward and in
// backward.
#include "kernels/dense/dropout.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"

namespace heddle::kernels::cpu {
namespace {

// Random words of consecutive elements. Philox gives four at once, so that the first may be that of an element before.
class Words {
 public:
  // Draws those of the elements begin .. begin + count - 1, 0 < count <= kChunk; returns the first of them.
  const uint32_t* draw(const DropoutRule& rule, int64_t begin, int64_t count) {
    const int64_t first = begin / 4, blocks = (begin + (count - 1)) / 4 - first + 1;
    for (int64_t block = 0; block < blocks; ++block) {
      std::copy_n(rule.words(first + block).words, 4, &words_[static_cast<size_t>(4 * block)]);
    }
    return &words_[static_cast<size_t>(begin - 4 * first)];
  }

 private:
  std::array<uint32_t, kChunk + 8> words_;
};

template <class T>
void dropout_as(const Context& context, const DropoutArgs& args) {
  using A = accumulate_t<T>;
  const int64_t cols = args.x.cols, rows_per_task = std::max<int64_t>(1, 4 * kChunk / std::max<int64_t>(1, cols));
  const DropoutRule rule(args.p,
                         args.seed_on_device != nullptr ? static_cast<uint64_t>(*args.seed_on_device) : args.seed);
  const uint64_t dropped_below = rule.dropped_below;
  const A scale = static_cast<A>(rule.scale);
  parallel_ranges(context, args.x.rows, rows_per_task, [&](int64_t first, int64_t last) {
    Words words;
    Buffer<A> x_buffer, y_buffer;
    for (int64_t i = first; i < last; ++i) {
      for_each_chunk(cols, [&](int64_t begin, int64_t count) {
        const uint32_t* word = words.draw(rule, args.first_element + i * cols + begin, count);
        const A* x = load_chunk(row<const T>(args.x, i) + begin, count, x_buffer.data());
        T* to = row<T>(args.y.view, i) + begin;
        A* y = target_chunk(to, args.y.mode, y_buffer.data());
        HEDDLE_INDEPENDENT
        for (int64_t j = 0; j < count; ++j) y[j] = word[j] < dropped_below ? A(0) : x[j] * scale;
        store_chunk(to, y, count, args.y.mode);
      });
    }
  });
}

}  // namespace

void dropout(Context& context, const DropoutArgs& args) {
  visit_floating(args.x.dtype, [&](auto type) { dropout_as<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cpu
