#include "layers/ops/dropout.h"

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/config_fields.h"
#include "core/tensor/random.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

OperatorFunction make_dropout(const ConfigNode& node) {
  DropoutOptions options;
  ConfigFields fields(node);
  fields.required("p", options.p, Range::between(0.0, 1.0));
  fields.required("seed", options.seed);
  return [options](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", dropout(tape, inputs.at("x"), options)}};
  };
}

ReferenceTensors dropout_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  const auto p = options.require<double>("p");
  const auto seed = options.require<uint64_t>("seed");
  ReferenceTensor y = inputs.at("x");
  for (int64_t i = 0; i < numel(y.shape); ++i) {
    const PhiloxBlock block = philox(seed, static_cast<uint64_t>(RandomStream::dropout), static_cast<uint64_t>(i / 4));
    y[i] = block.words[i % 4] < p * 0x1p32 ? 0.0 : y[i] / (1.0 - p);
  }
  return {{"y", y}};
}

std::vector<OperatorCase> dropout_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](const std::string& options, const Shape& shape, bool large = false) {
    cases.push_back(make_case("dropout", options, {{.name = "x", .shape = shape}}, dropout_reference, large));
  };
  add("{p: 0.3, seed: 7}", {2, 3, 7});
  add("{p: 0.5, seed: 123456789012345}", {5, 4});
  add("{p: 0.0, seed: 1}", {3, 2});
  add("{p: 1.0, seed: 1}", {3, 2});
  add("{p: 0.9, seed: 2}", {70, 3}, true);
  add("{p: 0.1, seed: 3}", {3, 9001}, true);  // rows of several chunks, which begin anywhere among the words
  return cases;
}

}  // namespace

Operator dropout_operator() {
  return {.name = "dropout", .inputs = {{.name = "x"}}, .outputs = {"y"}, .make = make_dropout, .cases = dropout_cases};
}

}  // namespace heddle
