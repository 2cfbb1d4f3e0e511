#include "layers/ops/linear.h"

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

OperatorFunction make_linear(const ConfigNode&) {
  return [](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", linear(tape, inputs.at("x"), inputs.at("weight"), input_or_none(inputs, "bias"))}};
  };
}

ReferenceTensors linear_reference(const ConfigNode&, const ReferenceTensors& inputs, DType) {
  ReferenceTensor y = host_linear(inputs.at("x"), inputs.at("weight"));
  const ReferenceTensor bias = host_input(inputs, "bias");
  const int64_t out = y.shape[-1];
  for (int64_t i = 0; bias && i < numel(y.shape); ++i) y[i] += bias[i % out];
  return {{"y", y}};
}

std::vector<OperatorCase> linear_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](const Shape& x, int64_t out, bool bias, bool large = false) {
    std::vector<CaseInput> inputs = {{.name = "x", .shape = x}, matrix_input("weight", out, x[-1])};
    if (bias) inputs.push_back({.name = "bias", .shape = {out}, .kind = CaseInputKind::parameter});
    cases.push_back(make_case("linear", "{}", inputs, linear_reference, large));
  };
  for (const bool bias : {false, true}) {
    for (const int64_t out : {1, 4, 9}) add({2, 3, 5}, out, bias);
    add({3, 1}, 2, bias);
    add({1, 17}, 33, bias);
  }
  add({5, 100, 70}, 131, true, true);
  add({3, 1000}, 257, false, true);
  return cases;
}

}  // namespace

Operator linear_operator() {
  return {.name = "linear",
          .inputs = {{.name = "x"}, {.name = "weight"}, {.name = "bias", .optional = true}},
          .outputs = {"y"},
          .make = make_linear,
          .cases = linear_cases};
}

}  // namespace heddle
