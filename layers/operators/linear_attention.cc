#include "layers/ops/linear_attention.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

OperatorFunction make_linear_attention(const ConfigNode& node) {
  const Choices<Decay> decays = {{"none", Decay::none}, {"constant", Decay::constant}};
  std::optional<Decay> decay;  // as the inputs say when it is not given
  if (node.has("decay")) decay = node.require_choice<Decay>("decay", decays);
  LinearAttentionOptions options;
  ConfigFields fields(node);
  fields.field("scale", options.scale);
  fields.field("return_final_state", options.return_final_state);
  return [options, decay](Tape& tape, const NamedVariables& inputs) {
    const LinearAttentionInputs optional{input_or_none(inputs, "log_decay"), input_or_none(inputs, "initial_state")};
    LinearAttentionOptions chosen = options;
    chosen.decay = decay.value_or(optional.log_decay.defined() ? Decay::constant : Decay::none);
    const LinearAttention result =
        linear_attention(tape, inputs.at("q"), inputs.at("k"), inputs.at("v"), optional, chosen);
    NamedVariables outputs{{"o", result.o}};
    if (chosen.return_final_state) outputs["final_state"] = result.final_state;
    return outputs;
  };
}

ReferenceTensors linear_attention_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  const ReferenceTensor q = host_input(inputs, "q"), k = host_input(inputs, "k"), v = host_input(inputs, "v");
  const ReferenceTensor log_decay = host_input(inputs, "log_decay"),
                        initial_state = host_input(inputs, "initial_state");
  const double scale = options.get<double>("scale", 1.0);
  const int64_t batch = q.shape[0], length = q.shape[1], heads = q.shape[2], dim = q.shape[3], value_dim = v.shape[3];

  const Shape state_shape{batch, heads, dim, value_dim};
  ReferenceTensor o = host_zeros(v.shape), state = initial_state ? initial_state : host_zeros(state_shape);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const double lambda = log_decay ? std::exp(log_decay[h]) : 1.0;
      const int64_t first = (b * heads + h) * dim * value_dim;
      for (int64_t n = 0; n < length; ++n) {
        const int64_t token = (b * length + n) * heads + h;
        for (int64_t i = 0; i < dim; ++i) {
          for (int64_t j = 0; j < value_dim; ++j) {
            double& s = state[first + i * value_dim + j];
            s = lambda * s + k[token * dim + i] * v[token * value_dim + j];
            o[token * value_dim + j] += scale * q[token * dim + i] * s;
          }
        }
      }
    }
  }
  ReferenceTensors outputs{{"o", o}};
  if (options.get<bool>("return_final_state", true)) outputs["final_state"] = state;
  return outputs;
}

struct LinearAttentionCase {
  int64_t batch, length, heads, dim, value_dim;
  bool decay = false, state = false;
  std::string options;
  bool large = false;
};

OperatorCase linear_attention_case(const LinearAttentionCase& wanted) {
  const auto& [batch, length, heads, dim, value_dim, decay, state, options, large] = wanted;
  OperatorCase result;
  result.op = "linear_attention";
  result.options = "{" + options + "}";
  result.inputs = {{.name = "q", .shape = {batch, length, heads, dim}},
                   {.name = "k", .shape = {batch, length, heads, dim}},
                   {.name = "v", .shape = {batch, length, heads, value_dim}}};
  if (decay) {
    result.inputs.push_back(
        {.name = "log_decay", .shape = {heads}, .kind = CaseInputKind::decay, .differentiate = false});
  }
  if (state) {
    result.inputs.push_back(
        {.name = "initial_state", .shape = {batch, heads, dim, value_dim}, .kind = CaseInputKind::state});
  }
  result.name = fmt::format("linear_attention {} x {} {}{}{}", to_string(result.inputs[0].shape), value_dim,
                            result.options, decay ? " decay" : "", state ? " state" : "");
  result.large = large;
  result.gpu_roundings = 2;  // of the scores and of the state
  result.reference = linear_attention_reference;
  return result;
}

std::vector<OperatorCase> linear_attention_cases() {
  std::vector<OperatorCase> cases;
  for (const bool decay : {false, true}) {
    for (const bool state : {false, true}) {
      cases.push_back(linear_attention_case({2, 5, 3, 4, 3, decay, state, "scale: 0.5"}));
      cases.push_back(linear_attention_case({1, 66, 2, 3, 5, decay, state, "scale: 0.25, return_final_state: false"}));
    }
  }
  cases.push_back(linear_attention_case({1, 1, 1, 1, 1, true, true, "decay: constant"}));
  cases.push_back(linear_attention_case({2, 3, 1, 7, 2, false, false, "decay: none"}));
  // Around the length of a chunk, and dims around those of a vector register.
  for (const int64_t length : {63, 64, 65, 127, 129}) {
    cases.push_back(linear_attention_case({2, length, 2, 17, 9, true, true, "scale: 0.25", true}));
  }
  cases.push_back(linear_attention_case({1, 200, 4, 32, 32, true, false, "scale: 0.25", true}));
  cases.push_back(linear_attention_case({1, 130, 2, 64, 128, true, true, "scale: 0.125", true}));
  cases.push_back(linear_attention_case({1, 150, 2, 128, 64, true, true, "scale: 0.09", true}));
  cases.push_back(linear_attention_case({1, 70, 1, 257, 65, true, true, "scale: 0.0625", true}));
  return cases;
}

}  // namespace

Operator linear_attention_operator() {
  return {.name = "linear_attention",
          .inputs = {{.name = "q"},
                     {.name = "k"},
                     {.name = "v"},
                     {.name = "log_decay", .kind = InputKind::full_precision, .optional = true},
                     {.name = "initial_state", .kind = InputKind::full_precision, .optional = true}},
          .outputs = {"o", "final_state"},
          .make = make_linear_attention,
          .cases = linear_attention_cases};
}

}  // namespace heddle
