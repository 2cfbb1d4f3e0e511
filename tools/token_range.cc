#include "tools/token_range.h"

#include <algorithm>

namespace heddle {
namespace {

// Whether the extent at this place is the range of these tokens in an example.
bool fits(const RangePlace& place, const OperatorCase& example, const std::string& tokens) {
  const CaseInput *of = find_input(example, place.input), *drawn = find_input(example, tokens);
  return of != nullptr && drawn != nullptr && of->shape.rank() >= -place.dim && of->shape[place.dim] == drawn->range;
}

}  // namespace

const CaseInput* find_input(const OperatorCase& operator_case, const std::string& name) {
  const auto found = std::find_if(operator_case.inputs.begin(), operator_case.inputs.end(),
                                  [&](const CaseInput& input) { return input.name == name; });
  return found != operator_case.inputs.end() ? &*found : nullptr;
}

std::optional<RangePlace> range_place(const std::vector<OperatorCase>& examples, const std::string& tokens) {
  const auto with_tokens = std::find_if(examples.begin(), examples.end(), [&](const OperatorCase& example) {
    return find_input(example, tokens) != nullptr;
  });
  if (with_tokens == examples.end()) return {};
  for (const CaseInput& input : with_tokens->inputs) {
    for (int dim = -1; dim >= -input.shape.rank() && is_real(input.kind); --dim) {
      const RangePlace place{input.name, dim};
      const auto fits_or_has_none = [&](const OperatorCase& example) {
        return find_input(example, tokens) == nullptr || fits(place, example, tokens);
      };
      if (std::all_of(examples.begin(), examples.end(), fits_or_has_none)) return place;
    }
  }
  return {};
}

}  // namespace heddle
