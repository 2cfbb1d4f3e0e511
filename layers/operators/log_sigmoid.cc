#include "layers/ops/log_sigmoid.h"

#include <cmath>
#include <string>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

OperatorFunction make_log_sigmoid(const ConfigNode& node) {
  double divisor = 1.0;
  ConfigFields(node).field("divisor", divisor, Range::positive());
  return [divisor](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", log_sigmoid(tape, inputs.at("x"), divisor)}};
  };
}

ReferenceTensors log_sigmoid_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  ReferenceTensor y = inputs.at("x");
  for (double& value : y.values) {
    const double decided = value > 0.0 ? 0.0 : value;
    value = (decided - std::log1p(std::exp(-std::abs(value)))) / options.get<double>("divisor", 1.0);
  }
  return {{"y", y}};
}

std::vector<OperatorCase> log_sigmoid_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](const Shape& shape, const std::string& options, double scale, bool large = false) {
    cases.push_back(make_case("log_sigmoid", options, {{.name = "x", .shape = shape, .scale = scale}},
                              log_sigmoid_reference, large));
    cases.back().name += scale == 1.0 ? "" : " wide";
  };
  for (const std::string options : {"{}", "{divisor: 16.0}"}) {
    add({2, 3, 4}, options, 1.0);
    add({2, 3, 4}, options, 12.0);
    add({37, 1030}, options, 3.0, true);
  }
  return cases;
}

}  // namespace

Operator log_sigmoid_operator() {
  return {.name = "log_sigmoid",
          .inputs = {{.name = "x"}},
          .outputs = {"y"},
          .make = make_log_sigmoid,
          .cases = log_sigmoid_cases};
}

}  // namespace heddle
