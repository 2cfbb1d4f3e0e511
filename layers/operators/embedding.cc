#include "layers/ops/embedding.h"

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

OperatorFunction make_embedding(const ConfigNode& node) {
  EmbeddingOptions options;
  ConfigFields(node).optional("padding_idx", options.padding_idx, Range::at_least(0));
  return [options](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", embedding(tape, inputs.at("tokens").value, inputs.at("weight"), options)}};
  };
}

ReferenceTensors embedding_reference(const ConfigNode&, const ReferenceTensors& inputs, DType) {
  const ReferenceTensor &tokens = inputs.at("tokens"), &weight = inputs.at("weight");
  const int64_t dim = weight.shape[1];
  Shape shape = tokens.shape;
  shape.append(dim);
  ReferenceTensor y = host_zeros(shape);
  for (int64_t i = 0; i < numel(shape); ++i) {
    y[i] = weight[static_cast<int64_t>(tokens[i / dim]) * dim + i % dim];
  }
  return {{"y", y}};
}

CaseInput tokens_input(const Shape& shape, int64_t vocabulary) {
  return {.name = "tokens",
          .shape = shape,
          .kind = CaseInputKind::tokens,
          .range = vocabulary,
          .excluded_by = "padding_idx"};
}

std::vector<OperatorCase> embedding_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](const Shape& tokens, int64_t vocabulary, int64_t dim, bool large = false) {
    cases.push_back(make_case("embedding", "{}",
                              {tokens_input(tokens, vocabulary),
                               {.name = "weight", .shape = {vocabulary, dim}, .kind = CaseInputKind::matrix}},
                              embedding_reference, large));
  };
  add({2, 7}, 5, 6);
  add({9}, 40, 3);  // most rows belong to no token
  add({3, 2, 2}, 1, 1);
  add({40, 33}, 20, 70, true);
  add({6}, 3, 2050, true);
  add({7}, 4, 4099, true);  // wider than a chunk of a kernel
  for (const bool large : {false, true}) {
    const Shape tokens = large ? Shape{40, 33} : Shape{2, 7};
    cases.push_back(
        make_case("embedding", "{padding_idx: 4}",
                  {tokens_input(tokens, 5), {.name = "weight", .shape = {5, 6}, .kind = CaseInputKind::matrix}},
                  embedding_reference, large));
  }
  return cases;
}

}  // namespace

Operator embedding_operator() {
  return {.name = "embedding",
          .inputs = {{.name = "tokens", .kind = InputKind::index}, {.name = "weight"}},
          .outputs = {"y"},
          .make = make_embedding,
          .cases = embedding_cases};
}

}  // namespace heddle
