#include "layers/ops/guarded_divide.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

OperatorFunction make_guarded_divide(const ConfigNode& node) {
  double eps = 0.0;
  ConfigFields(node).required("eps", eps, Range::positive());
  return [eps](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", guarded_divide(tape, inputs.at("x"), inputs.at("divisor"), eps)}};
  };
}

ReferenceTensors guarded_divide_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  ReferenceTensor y = inputs.at("x");
  const ReferenceTensor& divisor = inputs.at("divisor");
  const int64_t size = y.shape[-1] / divisor.shape[-1];
  for (int64_t i = 0; i < numel(y.shape); ++i) y[i] /= std::max(divisor[i / size], options.get<double>("eps", 0.0));
  return {{"y", y}};
}

std::vector<OperatorCase> guarded_divide_cases() {
  std::vector<OperatorCase> cases;
  // Divisors on both sides of eps.
  const auto add = [&](const Shape& shape, int64_t groups, double eps, bool large = false) {
    Shape divisors = shape;
    divisors[-1] = groups;
    cases.push_back(make_case("guarded_divide", fmt::format("{{eps: {}}}", eps),
                              {{.name = "x", .shape = shape}, {.name = "divisor", .shape = divisors, .mean = 1.0}},
                              guarded_divide_reference, large));
    cases.back().roundings = 1;  // y, of which the gradient of the divisor is taken
  };
  add({2, 3, 8}, 2, 0.5);
  add({5, 7}, 1, 0.75);
  add({2, 2, 3}, 3, 0.5);
  add({37, 4, 66}, 3, 0.5, true);
  add({3, 9000}, 2, 0.25, true);  // more than a chunk
  return cases;
}

}  // namespace

Operator guarded_divide_operator() {
  return {.name = "guarded_divide",
          .inputs = {{.name = "x"}, {.name = "divisor"}},
          .outputs = {"y"},
          .make = make_guarded_divide,
          .cases = guarded_divide_cases};
}

}  // namespace heddle
