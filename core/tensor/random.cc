#include "core/tensor/random.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <vector>

#include "core/runtime/context.h"
#include "core/runtime/error.h"
#include "core/runtime/joined_threads.h"
#include "core/tensor/transfer.h"

namespace heddle {

uint32_t Random::next_word() {
  if (position_ / 4 != block_number_) {
    block_number_ = position_ / 4;
    block_ = philox(seed_, stream_, block_number_);
  }
  return block_.words[position_++ % 4];
}

uint64_t Random::next_below(uint64_t bound) {
  check(bound > 0, "next_below: bound must be positive");
  const uint64_t limit = ~uint64_t{0} - (~uint64_t{0} % bound + 1) % bound;  // last value of a whole number of bounds
  for (;;) {
    const uint64_t high = next_word();
    const uint64_t value = high << 32 | next_word();
    if (value <= limit) return value % bound;
  }
}

double Random::next_normal() {
  constexpr double kScale = 1.0 / 4294967296.0;
  const double u = (next_word() + 0.5) * kScale;
  const double v = (next_word() + 0.5) * kScale;
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

namespace {

constexpr int64_t kNumbersOfAThread = int64_t{1} << 16;

// number(random) draws one, of `words` words. Several threads share a large tensor: every number has its own position.
template <class Number>
void fill(Context& context, const Tensor& tensor, Random& random, uint64_t words, const Number& number) {
  check(is_floating(tensor.dtype()), "cannot fill a tensor of {} with random real numbers", name(tensor.dtype()));
  if (context.device().type == DeviceType::meta) return;
  const int64_t count = tensor.numel();
  std::vector<double> values(static_cast<size_t>(count));
  const auto draw = [&](int64_t begin, int64_t end) {
    Random own = random;
    own.seek(random.position() + words * static_cast<uint64_t>(begin));
    for (int64_t i = begin; i < end; ++i) values[static_cast<size_t>(i)] = number(own);
  };
  const int64_t parts = std::clamp<int64_t>(count / kNumbersOfAThread, 1, std::max(context.threads(), 1));
  JoinedThreads others;
  for (int64_t part = 1; part < parts; ++part) {
    others.start([&draw, begin = count * part / parts, end = count * (part + 1) / parts] { draw(begin, end); });
  }
  draw(0, count / parts);
  others.join();
  random.seek(random.position() + words * static_cast<uint64_t>(count));
  write_values(context, tensor, values);
}

}  // namespace

void fill_normal(Context& context, const Tensor& tensor, Random& random, double mean, double standard_deviation) {
  fill(context, tensor, random, 2, [&](Random& own) { return mean + standard_deviation * own.next_normal(); });
}

void fill_uniform(Context& context, const Tensor& tensor, Random& random, double low, double high) {
  fill(context, tensor, random, 1, [&](Random& own) { return low + (high - low) * own.next_uniform(); });
}

}  // namespace heddle
