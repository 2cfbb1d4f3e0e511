#include "layers/ops/softcap.h"

#include <cmath>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

OperatorFunction make_softcap(const ConfigNode& node) {
  double cap = 0.0;
  ConfigFields(node).required("cap", cap, Range::positive());
  return [cap](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", softcap(tape, inputs.at("x"), cap)}};
  };
}

ReferenceTensors softcap_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  const double cap = options.require<double>("cap");
  ReferenceTensor y = inputs.at("x");
  for (double& value : y.values) value = cap * std::tanh(value / cap);
  return {{"y", y}};
}

std::vector<OperatorCase> softcap_cases() {
  return {make_case("softcap", "{cap: 30}", {{.name = "x", .shape = {2, 3, 7}}}, softcap_reference),
          make_case("softcap", "{cap: 1.5}", {{.name = "x", .shape = {4, 5}}}, softcap_reference),
          make_case("softcap", "{cap: 2}", {{.name = "x", .shape = {9, 2100}}}, softcap_reference, true)};
}

}  // namespace

Operator softcap_operator() {
  return {.name = "softcap", .inputs = {{.name = "x"}}, .outputs = {"y"}, .make = make_softcap, .cases = softcap_cases};
}

}  // namespace heddle
