#include "trainers/non_finite.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/runtime/unsigned_nan.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

// Numbers that are read at once: as doubles, 32 MiB.
constexpr int64_t kReadAtOnce = int64_t{1} << 22;

// "blocks.3.mixer.linear (blocks.3.mixer.qkv.weight)". A scope that ends with the operator's name says it already.
std::string place_of(const Tape::Made& made) {
  std::string place(made.scope);
  if (!place.ends_with(made.op)) place += (place.empty() ? "" : ".") + made.op;
  if (!made.leaves.empty()) place += fmt::format(" ({})", fmt::join(made.leaves, ", "));
  return place;
}

std::string describe(std::string_view place, bool is_gradient, double value) {
  return fmt::format("{} made the first non-finite number ({}, {}) from finite {}", place,
                     is_gradient ? "backward" : "forward", unsigned_nan(value), is_gradient ? "gradients" : "inputs");
}

}  // namespace

std::optional<double> first_non_finite(Context& context, const Tensor& tensor) {
  if (tensor.numel() > kReadAtOnce) {
    int dim = 0;
    while (tensor.size(dim) == 1) ++dim;
    const int64_t half = tensor.size(dim) / 2;
    const auto first = first_non_finite(context, tensor.slice(dim, 0, half));
    return first ? first : first_non_finite(context, tensor.slice(dim, half, tensor.size(dim)));
  }
  const std::vector<double> values = read_values(context, tensor);
  const auto found = std::find_if(values.begin(), values.end(), [](double value) { return !std::isfinite(value); });
  return found == values.end() ? std::nullopt : std::optional(*found);
}

void watch_for_non_finite(Tape& tape) {
  tape.watch([&context = tape.context()](const Tape::Made& made) {
    for (const Tensor& numbers : made.numbers) {
      const auto value = first_non_finite(context, numbers);
      if (value) throw FoundNonFinite{describe(place_of(made), made.is_gradient, *value)};
    }
  });
}

LanguageModel::Observer non_finite_observer(Context& context) {
  return [&context](std::string_view part, const Variable& output) {
    const auto value = first_non_finite(context, output.value);
    if (value) throw FoundNonFinite{describe(part, false, *value)};
  };
}

}  // namespace heddle
