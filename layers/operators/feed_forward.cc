#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/modules/choices.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"
#include "layers/ops/activation.h"
#include "layers/ops/check.h"
#include "layers/ops/glu.h"
#include "layers/ops/linear.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

// --- From options to a function ---

struct FeedForwardOperatorOptions {
  Activation act;
  std::optional<int64_t> hidden;  // the weights say it too
};

FeedForwardOperatorOptions read_options(const ConfigNode& node, Activation act) {
  FeedForwardOperatorOptions options{act, {}};
  ConfigFields fields(node);
  fields.choice("act", options.act, elementwise_activation_choices());
  fields.optional("hidden", options.hidden, Range::count());
  return options;
}

// A weight of a chain has this shape and the dtype of x.
void check_weight(std::string_view layer, std::string_view name, const Variable& weight, const Shape& expected,
                  std::string_view meaning, const Variable& x) {
  check_rows(layer, name, weight);
  check(weight.shape() == expected, "[{}] {} has shape {}, expected {}: {}", layer, name, weight.shape(), expected,
        meaning);
  check_dtype(layer, name, weight, "x", x);
}

OperatorFunction make_glu_product(const ConfigNode& node) {
  Activation act = Activation::silu;
  ConfigFields(node).choice("act", act, elementwise_activation_choices());
  return [act](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", glu(tape, inputs.at("a"), inputs.at("b"), act)}};
  };
}

OperatorFunction make_glu(const ConfigNode& node) {
  return [options = read_options(node, Activation::silu)](Tape& tape, const NamedVariables& inputs) {
    const Variable &x = inputs.at("x"), &w12 = inputs.at("w12"), &w3 = inputs.at("w3");
    check_rows("glu", "x", x);
    check(w3.value.rank() == 2, "[glu] w3 has shape {}, expected (dim, hidden)", w3.shape());
    const int64_t hidden = options.hidden.value_or(w3.shape()[1]);
    check_weight("glu", "w3", w3, {w3.shape()[0], hidden}, "(dim, hidden)", x);
    check_weight("glu", "w12", w12, {2 * hidden, x.shape()[-1]}, "(2 * hidden, last dimension of x)", x);
    return NamedVariables{{"y", linear(tape, glu_of_halves(tape, linear(tape, x, w12), options.act), w3)}};
  };
}

OperatorFunction make_ffn(const ConfigNode& node) {
  return [options = read_options(node, Activation::relu)](Tape& tape, const NamedVariables& inputs) {
    const Variable &x = inputs.at("x"), &w1 = inputs.at("w1"), &w2 = inputs.at("w2");
    check_rows("ffn", "x", x);
    check(w2.value.rank() == 2, "[ffn] w2 has shape {}, expected (dim, hidden)", w2.shape());
    const int64_t hidden = options.hidden.value_or(w2.shape()[1]);
    check_weight("ffn", "w2", w2, {w2.shape()[0], hidden}, "(dim, hidden)", x);
    check_weight("ffn", "w1", w1, {hidden, x.shape()[-1]}, "(hidden, last dimension of x)", x);
    return NamedVariables{{"y", linear(tape, activation(tape, linear(tape, x, w1), options.act), w2)}};
  };
}

// --- Cases. Every product and every activation is stored, so each is rounded ---

ReferenceTensors glu_product_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  const std::string act = options.get<std::string>("act", "silu");
  ReferenceTensor y = inputs.at("a");
  for (int64_t i = 0; i < numel(y.shape); ++i) y[i] = activate(act, y[i]) * inputs.at("b")[i];
  return {{"y", y}};
}

ReferenceTensors glu_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType dtype) {
  const ReferenceTensor both = host_rounded(host_linear(inputs.at("x"), inputs.at("w12")), dtype);
  const int64_t hidden = both.shape[-1] / 2;
  Shape shape = both.shape;
  shape[-1] = hidden;
  ReferenceTensor a = host_zeros(shape), b = a;
  for (int64_t i = 0; i < numel(shape); ++i) {
    a[i] = both[i / hidden * 2 * hidden + i % hidden];
    b[i] = both[i / hidden * 2 * hidden + hidden + i % hidden];
  }
  const ReferenceTensor product = glu_product_reference(options, {{"a", a}, {"b", b}}, dtype).at("y");
  return {{"y", host_linear(host_rounded(product, dtype), inputs.at("w3"))}};
}

ReferenceTensors ffn_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType dtype) {
  ReferenceTensor hidden = host_rounded(host_linear(inputs.at("x"), inputs.at("w1")), dtype);
  for (double& value : hidden.values) value = activate(options.get<std::string>("act", "relu"), value);
  return {{"y", host_linear(host_rounded(hidden, dtype), inputs.at("w2"))}};
}

std::vector<OperatorCase> glu_product_cases() {
  std::vector<OperatorCase> cases;
  for (const auto& choice : elementwise_activation_choices()) {
    for (const Shape& shape : {Shape{3, 5}, Shape{2, 2, 1}, Shape{5, 1100}, Shape{300, 70}}) {
      cases.push_back(make_case("glu_product", fmt::format("{{act: {}}}", choice.first),
                                {{.name = "a", .shape = shape}, {.name = "b", .shape = shape}}, glu_product_reference,
                                numel(shape) > 100));
    }
  }
  return cases;
}

// A chain of operators: each stores what it computes.
OperatorCase chain_case(const std::string& op, const std::string& options, std::vector<CaseInput> inputs,
                        const Reference& reference, bool large = false) {
  OperatorCase result = make_case(op, options, std::move(inputs), reference, large);
  result.roundings = 4;
  return result;
}

std::vector<OperatorCase> glu_cases() {
  std::vector<OperatorCase> cases;
  const std::vector<CaseInput> inputs = {
      {.name = "x", .shape = {2, 3, 4}}, matrix_input("w12", 10, 4), matrix_input("w3", 4, 5)};
  for (const auto& choice : elementwise_activation_choices()) {
    cases.push_back(chain_case("glu", fmt::format("{{act: {}}}", choice.first), inputs, glu_reference));
  }
  cases.push_back(
      chain_case("glu", "{hidden: 90}",
                 {{.name = "x", .shape = {50, 33}}, matrix_input("w12", 180, 33), matrix_input("w3", 33, 90)},
                 glu_reference, true));
  return cases;
}

std::vector<OperatorCase> ffn_cases() {
  std::vector<OperatorCase> cases;
  const std::vector<CaseInput> inputs = {
      {.name = "x", .shape = {2, 3, 4}}, matrix_input("w1", 5, 4), matrix_input("w2", 4, 5)};
  for (const auto& choice : elementwise_activation_choices()) {
    cases.push_back(chain_case("ffn", fmt::format("{{act: {}}}", choice.first), inputs, ffn_reference));
  }
  return cases;
}

}  // namespace

Operator glu_product_operator() {
  return {.name = "glu_product",
          .inputs = {{.name = "a"}, {.name = "b"}},
          .outputs = {"y"},
          .make = make_glu_product,
          .cases = glu_product_cases};
}

Operator glu_operator() {
  return {.name = "glu",
          .inputs = {{.name = "x"}, {.name = "w12"}, {.name = "w3"}},
          .outputs = {"y"},
          .make = make_glu,
          .cases = glu_cases};
}

Operator ffn_operator() {
  return {.name = "ffn",
          .inputs = {{.name = "x"}, {.name = "w1"}, {.name = "w2"}},
          .outputs = {"y"},
          .make = make_ffn,
          .cases = ffn_cases};
}

}  // namespace heddle
