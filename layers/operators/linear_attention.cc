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
  const Choices<Decay> decays = {
      {"none", Decay::none}, {"constant", Decay::constant}, {"learned", Decay::learned}, {"data", Decay::data}};
  std::optional<Decay> decay;  // as the inputs say when it is not given
  if (node.has("decay")) decay = node.require_choice<Decay>("decay", decays);
  LinearAttentionOptions options;
  ConfigFields fields(node);
  fields.field("scale", options.scale);
  fields.field("return_final_state", options.return_final_state);
  return [options, decay](Tape& tape, const NamedVariables& inputs) {
    const LinearAttentionInputs optional{input_or_none(inputs, "log_decay"), input_or_none(inputs, "initial_state"),
                                         input_or_none(inputs, "segments").value};
    LinearAttentionOptions chosen = options;
    chosen.decay = decay.value_or(!optional.log_decay.defined()          ? Decay::none
                                  : optional.log_decay.value.rank() == 1 ? Decay::constant
                                                                         : Decay::data);
    const LinearAttention result =
        linear_attention(tape, inputs.at("q"), inputs.at("k"), inputs.at("v"), optional, chosen);
    NamedVariables outputs{{"o", result.o}};
    if (chosen.return_final_state) outputs["final_state"] = result.final_state;
    return outputs;
  };
}

ReferenceTensors linear_attention_reference(const ConfigNode& options, const ReferenceTensors& inputs, DType) {
  const ReferenceTensor q = host_input(inputs, "q"), k = host_input(inputs, "k"), v = host_input(inputs, "v");
  const ReferenceTensor log_decay = host_input(inputs, "log_decay"), segments = host_input(inputs, "segments"),
                        initial_state = host_input(inputs, "initial_state");
  const double scale = options.get<double>("scale", 1.0);
  const int64_t batch = q.shape[0], length = q.shape[1], heads = q.shape[2], dim = q.shape[3], value_dim = v.shape[3];
  const int64_t key_heads = k.shape[2];

  const Shape state_shape{batch, heads, dim, value_dim};
  ReferenceTensor o = host_zeros({batch, length, heads, value_dim});
  ReferenceTensor state = initial_state ? initial_state : host_zeros(state_shape);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t first = (b * heads + h) * dim * value_dim, key_head = h / (heads / key_heads);
      for (int64_t n = 0; n < length; ++n) {
        const int64_t at = b * length + n, token = at * heads + h, key_token = at * key_heads + key_head;
        double lambda = 1.0;
        if (log_decay) lambda = std::exp(log_decay[log_decay.shape.rank() == 1 ? h : token]);
        if (segments && n > 0 && segments[at] != segments[at - 1]) lambda = 0.0;
        for (int64_t i = 0; i < dim; ++i) {
          for (int64_t j = 0; j < value_dim; ++j) {
            double& s = state[first + i * value_dim + j];
            s = lambda * s + k[key_token * dim + i] * v[key_token * value_dim + j];
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
  std::string decay = {};  // what option `decay` says; "": as the inputs say, none
  bool state = false;
  std::string options = {};
  bool large = false;
  int64_t key_heads = 0;  // 0: as many as heads
  bool segments = false;
};

OperatorCase linear_attention_case(const LinearAttentionCase& wanted) {
  const auto& [batch, length, heads, dim, value_dim, decay, state, options, large, fewer_heads, segments] = wanted;
  const int64_t key_heads = fewer_heads > 0 ? fewer_heads : heads;
  OperatorCase result;
  result.op = "linear_attention";
  const std::string decay_option = decay.empty() ? "" : "decay: " + decay;
  result.options = "{" + decay_option + (decay.empty() || options.empty() ? "" : ", ") + options + "}";
  result.inputs = {{.name = "q", .shape = {batch, length, heads, dim}},
                   {.name = "k", .shape = {batch, length, key_heads, dim}},
                   {.name = "v", .shape = {batch, length, key_heads, value_dim}}};
  if (!decay.empty() && decay != "none") {
    result.inputs.push_back({.name = "log_decay",
                             .shape = decay == "data" ? Shape{batch, length, heads} : Shape{heads},
                             .kind = CaseInputKind::decay,
                             .differentiate = decay != "constant",
                             .scale = decay == "data" ? 0.3 : 1.0});
  }
  if (state) {
    result.inputs.push_back(
        {.name = "initial_state", .shape = {batch, heads, dim, value_dim}, .kind = CaseInputKind::state});
  }
  if (segments) {
    result.inputs.push_back({.name = "segments",
                             .shape = {batch, length},
                             .kind = CaseInputKind::segments,
                             .range = 1 + length / 4,
                             .differentiate = false});
  }
  result.name = fmt::format("linear_attention {} x {}{} {}{}{}", to_string(result.inputs[0].shape), value_dim,
                            fewer_heads > 0 ? fmt::format(" of {} heads", key_heads) : "", result.options,
                            state ? " state" : "", segments ? " segments" : "");
  result.large = large;
  result.gpu_error = 4 * 0x1p-16;  // of the scores and of the state
  result.reference = linear_attention_reference;
  return result;
}

std::vector<OperatorCase> linear_attention_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](const LinearAttentionCase& wanted) { cases.push_back(linear_attention_case(wanted)); };
  for (const std::string decay : {"none", "constant", "learned", "data"}) {
    for (const bool state : {false, true}) {
      add({2, 5, 3, 4, 3, decay, state, "scale: 0.5"});
      add({1, 66, 2, 3, 5, decay, state, "scale: 0.25, return_final_state: false"});
      add({.batch = 2,
           .length = 11,
           .heads = 4,
           .dim = 3,
           .value_dim = 2,
           .decay = decay,
           .state = state,
           .options = "scale: 0.5",
           .key_heads = 2,
           .segments = true});
    }
    add({.batch = 1, .length = 7, .heads = 3, .dim = 2, .value_dim = 3, .decay = decay, .key_heads = 1});
    add({.batch = 2, .length = 9, .heads = 2, .dim = 2, .value_dim = 3, .decay = decay, .segments = true});
  }
  add({1, 1, 1, 1, 1, "constant", true, ""});
  add({2, 3, 1, 7, 2, "", false, ""});
  // Around the length of a chunk, and dims around those of a vector register.
  for (const int64_t length : {63, 64, 65, 127, 129}) {
    for (const std::string decay : {"constant", "learned", "data"}) {
      add({2, length, 2, 17, 9, decay, true, "scale: 0.25", true});
    }
    add({.batch = 2,
         .length = length,
         .heads = 4,
         .dim = 17,
         .value_dim = 9,
         .decay = "data",
         .state = true,
         .options = "scale: 0.25",
         .large = true,
         .key_heads = 2,
         .segments = true});
  }
  add({1, 200, 4, 32, 32, "constant", false, "scale: 0.25", true});
  add({1, 130, 2, 64, 128, "constant", true, "scale: 0.125", true});
  add({1, 150, 2, 128, 64, "constant", true, "scale: 0.09", true});
  add({1, 70, 1, 257, 65, "constant", true, "scale: 0.0625", true});
  add({1, 700, 2, 16, 16, "data", true, "scale: 0.25", true});
  return cases;
}

}  // namespace

Operator linear_attention_operator() {
  return {.name = "linear_attention",
          .inputs = {{.name = "q"},
                     {.name = "k"},
                     {.name = "v"},
                     {.name = "log_decay", .kind = InputKind::full_precision, .optional = true},
                     {.name = "initial_state", .kind = InputKind::full_precision, .optional = true},
                     {.name = "segments", .kind = InputKind::segment, .optional = true}},
          .outputs = {"o", "final_state"},
          .make = make_linear_attention,
          .cases = linear_attention_cases};
}

}  // namespace heddle
