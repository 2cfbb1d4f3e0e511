#include "layers/ops/activation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/modules/choices.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

OperatorFunction make_activation(const ConfigNode& node) {
  Activation act = Activation::none;
  ConfigFields(node).required_choice("act", act, elementwise_activation_choices());
  return [act](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", activation(tape, inputs.at("x"), act)}};
  };
}

ReferenceTensors activation_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  ReferenceTensor y = inputs.at("x");
  for (double& value : y.values) value = activate(options.get<std::string>("act", "none"), value);
  return {{"y", y}};
}

std::vector<OperatorCase> activation_cases() {
  std::vector<OperatorCase> cases;
  for (const auto& choice : elementwise_activation_choices()) {
    for (const bool large : {false, true}) {
      const Shape shape = large ? Shape{9, 2100} : Shape{2, 3, 7};
      cases.push_back(make_case("activation", fmt::format("{{act: {}}}", choice.first), {{.name = "x", .shape = shape}},
                                activation_reference, large));
    }
  }
  return cases;
}

}  // namespace

Operator activation_operator() {
  return {.name = "activation",
          .inputs = {{.name = "x"}},
          .outputs = {"y"},
          .make = make_activation,
          .cases = activation_cases};
}

}  // namespace heddle
