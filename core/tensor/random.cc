#include "core/tensor/random.h"

#include <cmath>
#include <cstddef>
#include <numbers>
#include <vector>

#include "core/runtime/context.h"
#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {

uint32_t Random::next_word() {
  const PhiloxBlock block = philox(seed_, stream_, position_ / 4);
  return block.words[position_++ % 4];
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

template <class Next>
void fill(Context& context, const Tensor& tensor, Next next) {
  check(is_floating(tensor.dtype()), "cannot fill a tensor of {} with random real numbers", name(tensor.dtype()));
  if (context.device().type == DeviceType::meta) return;
  std::vector<double> values(static_cast<size_t>(tensor.numel()));
  for (double& value : values) value = next();
  write_values(context, tensor, values);
}

}  // namespace

void fill_normal(Context& context, const Tensor& tensor, Random& random, double mean, double standard_deviation) {
  fill(context, tensor, [&] { return mean + standard_deviation * random.next_normal(); });
}

void fill_uniform(Context& context, const Tensor& tensor, Random& random, double low, double high) {
  fill(context, tensor, [&] { return low + (high - low) * random.next_uniform(); });
}

}  // namespace heddle
