#include "layers/ops/softmax.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

OperatorFunction make_softmax(const ConfigNode& node) {
  int64_t groups = 1;
  ConfigFields(node).field("groups", groups, Range::count());
  return [groups](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", softmax(tape, inputs.at("x"), groups)}};
  };
}

ReferenceTensors softmax_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  ReferenceTensor y = inputs.at("x");
  const int64_t size = y.shape[-1] / options.get<int64_t>("groups", 1);
  for (int64_t first = 0; first < numel(y.shape); first += size) {
    double most = -INFINITY, sum = 0.0;
    for (int64_t i = 0; i < size; ++i) most = std::max(most, y[first + i]);
    for (int64_t i = 0; i < size; ++i) sum += y[first + i] = std::exp(y[first + i] - most);
    for (int64_t i = 0; i < size; ++i) y[first + i] /= sum;
  }
  return {{"y", y}};
}

std::vector<OperatorCase> softmax_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](const Shape& shape, int64_t groups, double scale, bool large = false) {
    cases.push_back(make_case("softmax", fmt::format("{{groups: {}}}", groups),
                              {{.name = "x", .shape = shape, .scale = scale}}, softmax_reference, large));
    if (scale != 1.0) cases.back().name += " wide";
  };
  add({2, 3, 7}, 1, 1.0);
  add({2, 3, 8}, 4, 1.0);
  add({3, 70}, 2, 4.0);
  add({2, 3}, 3, 1.0);  // groups of one feature
  add({37, 6, 32}, 1, 1.0, true);
  add({2, 5, 9000}, 2, 3.0, true);  // more than a chunk
  return cases;
}

}  // namespace

Operator softmax_operator() {
  return {.name = "softmax", .inputs = {{.name = "x"}}, .outputs = {"y"}, .make = make_softmax, .cases = softmax_cases};
}

}  // namespace heddle
