#include "layers/modules/norm.h"

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/config/config_fields.h"
#include "layers/modules/choices.h"
#include "layers/operators/operators.h"
#include "layers/operators/reference.h"

namespace heddle {
namespace {

using namespace reference;  // NOLINT(google-build-using-namespace): the words that references are written in

// --- From options to a function ---

// An option `key: true|false` says whether the input is there.
void check_presence(const ConfigNode& options, const std::string& key, const std::optional<bool>& wanted,
                    const Variable& input) {
  if (!wanted || *wanted == input.defined()) return;
  options.fail(key, *wanted ? "found true, but no such input was given" : "found false, but such an input was given");
}

struct NormOperatorOptions {
  NormOptions norm;
  std::optional<bool> weight, bias, residual, return_residual;
  bool has_gate = false;
};

NormOperatorOptions read_norm_options(const ConfigNode& node, NormType type) {
  NormOperatorOptions options;
  options.norm = Norm::Options::of(type).norm;
  ConfigFields fields(node);
  describe_norm_values(fields, type, options.norm);
  node.has("dim");  // a check of the dimension of x, made when x is there
  fields.optional("weight", options.weight);
  fields.optional("bias", options.bias);
  fields.optional("residual", options.residual);
  fields.optional("return_residual", options.return_residual);
  if (const auto gate = node.find_section("gate")) {
    options.has_gate = true;
    ConfigFields gate_fields(*gate);
    gate_fields.choice("act", options.norm.gate_act, activation_choices());
    gate_fields.choice("position", options.norm.gate_position, gate_position_choices());
  }
  return options;
}

template <NormType type>
OperatorFunction make_norm(const ConfigNode& node) {
  return [node, options = read_norm_options(node, type)](Tape& tape, const NamedVariables& inputs) {
    const Variable x = input_or_none(inputs, "x");
    const NormInputs others{input_or_none(inputs, "residual"), input_or_none(inputs, "gate"),
                            input_or_none(inputs, "weight"), input_or_none(inputs, "bias")};
    check(x.value.rank() >= 1 && x.shape()[-1] > 0, "[{}] x has shape {}, expected (..., dim)", name(type), x.shape());
    check_norm_dim(node, x.shape()[-1], options.norm);
    check_presence(node, "weight", options.weight, others.weight);
    check_presence(node, "bias", options.bias, others.bias);
    check_presence(node, "residual", options.residual, others.residual);
    if (options.has_gate && !others.gate.defined()) node.fail("gate", "no input gate was given");
    NormOptions chosen = options.norm;
    chosen.return_residual = options.return_residual.value_or(others.residual.defined());
    const Normed result = norm(tape, x, others, chosen, name(type));
    NamedVariables outputs{{"y", result.y}};
    if (chosen.return_residual) outputs["r"] = result.r;
    return outputs;
  };
}

// --- Cases ---

ReferenceTensors norm_reference(bool center, const ConfigNode& options, const ReferenceTensors& inputs, DType dtype) {
  const ReferenceTensor x = host_input(inputs, "x"), residual = host_input(inputs, "residual");
  const ReferenceTensor gate = host_input(inputs, "gate");
  const ReferenceTensor weight = host_input(inputs, "weight"), bias = host_input(inputs, "bias");
  const double eps = options.get<double>("eps", 1e-5), scale = options.get<double>("scale", 1.0);
  const ConfigNode gating = options.section("gate");
  const std::string act = gating.get<std::string>("act", "none");
  const bool before = gating.get<std::string>("position", "post") == "pre";
  const int64_t dim = x.shape[-1], rows = numel(x.shape) / dim;
  const int64_t size = dim / options.get<int64_t>("groups", 1);

  ReferenceTensor y = host_zeros(x.shape), r = x;
  if (residual) {
    for (int64_t i = 0; i < rows * dim; ++i) r[i] = round_to(dtype, x[i] + residual[i]);
  }
  for (int64_t begin = 0; begin < rows * dim; begin += size) {
    std::vector<double> p(static_cast<size_t>(size));
    double mean = 0.0, square = 0.0;
    for (int64_t i = 0; i < size; ++i) {
      p[i] = r[begin + i] * (gate && before ? activate(act, gate[begin + i]) : 1.0);
      mean += p[i] / static_cast<double>(size);
    }
    if (!center) mean = 0.0;
    for (int64_t i = 0; i < size; ++i) square += (p[i] - mean) * (p[i] - mean) / static_cast<double>(size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t feature = (begin + i) % dim;
      double value = scale * (p[i] - mean) / std::sqrt(square + eps);
      if (weight) value *= weight[feature];
      if (bias) value += bias[feature];
      if (gate && !before) value *= activate(act, gate[begin + i]);
      y[begin + i] = value;
    }
  }
  ReferenceTensors outputs{{"y", y}};
  if (options.get<bool>("return_residual", static_cast<bool>(residual))) outputs["r"] = r;
  return outputs;
}

struct NormCase {
  std::string op;
  Shape shape;
  bool weight = false, bias = false;
  bool residual = false, returned = true;
  std::string gate;  // "" or {act: ..., position: ...}
  std::string more;  // further options
  bool large = false;
  double mean = 0.0;            // of x
  bool full_precision = false;  // of weight and bias
};

OperatorCase norm_case(const NormCase& wanted) {
  OperatorCase result;
  const bool center = wanted.op == "layer_norm" || wanted.op == "group_norm";
  const int64_t dim = wanted.shape[-1];
  result.op = wanted.op;
  result.inputs = {{.name = "x", .shape = wanted.shape, .mean = wanted.mean}};
  if (wanted.residual) result.inputs.push_back({.name = "residual", .shape = wanted.shape});
  if (!wanted.gate.empty()) result.inputs.push_back({.name = "gate", .shape = wanted.shape});
  const auto kind = wanted.full_precision ? CaseInputKind::full_precision_parameter : CaseInputKind::parameter;
  if (wanted.weight) result.inputs.push_back({.name = "weight", .shape = {dim}, .kind = kind});
  if (wanted.bias) result.inputs.push_back({.name = "bias", .shape = {dim}, .kind = kind});
  std::string options = fmt::format("weight: {}, bias: {}", wanted.weight, wanted.bias);
  if (wanted.residual) options += fmt::format(", residual: true, return_residual: {}", wanted.returned);
  if (!wanted.gate.empty()) options += ", gate: " + wanted.gate;
  if (!wanted.more.empty()) options += ", " + wanted.more;
  result.options = "{" + options + "}";
  result.name = fmt::format("{} {} {} mean {}", wanted.op, to_string(wanted.shape), result.options, wanted.mean);
  if (wanted.full_precision) result.name += " full precision";
  result.large = wanted.large;
  // The mean that backward reads is rounded to float32, by up to 1.2e-4 at 3000 where the deviation is 1.
  if (std::abs(wanted.mean) >= 1000.0) result.tolerance = 2.0;
  result.reference = [center](const ConfigNode& node, const ReferenceTensors& inputs, DType dtype) {
    return norm_reference(center, node, inputs, dtype);
  };
  return result;
}

// Weight and bias in full precision: groups of odd sizes and with gates, which the GPU's kernel for everything takes,
// and groups of whole 16-byte vectors for each of its fast kernels.
std::vector<OperatorCase> full_precision_norm_cases() {
  std::vector<OperatorCase> cases;
  const auto add = [&](NormCase wanted) {
    wanted.full_precision = true;
    cases.push_back(norm_case(wanted));
  };
  for (const std::string op :
       {"layer_norm", "group_norm", "rms_norm", "group_rms_norm", "srms_norm", "group_srms_norm"}) {
    const bool bias = op != "rms_norm";
    const std::string groups = op.starts_with("group") ? "groups: 2, " : "";
    for (const int residual : {0, 1, 2}) {
      for (const std::string gate : {"", "{act: silu, position: pre}", "{act: sigmoid, position: post}"}) {
        add({op, {3, 6}, true, bias, residual > 0, residual == 1, gate, groups + "scale: 0.7, eps: 0.1"});
      }
      add({op, {3, 16}, true, bias, residual > 0, residual == 1, "", groups + "scale: 0.7, eps: 0.1"});
    }
    add({op, {3, 6}, false, true, false, true, "", groups + "eps: 0.1"});
  }
  for (const int64_t dim : {16, 136, 768}) {
    add({"layer_norm", {67, dim}, true, true, false, true, "", "", true});
    add({"rms_norm", {67, dim}, true, false, true, true, "", "", true});
  }
  for (const int64_t dim : {1000, 2040, 4088, 4097, 8192, 16384, 20000}) {
    add({"layer_norm", {5, dim}, true, true, true, true, "", "", true});
    add({"rms_norm", {5, dim}, true, false, false, true, "", "", true});
  }
  add({"rms_norm", {3, 4096}, true, false, true, false, "{act: sigmoid}", "", true});
  add({"layer_norm", {601, 8}, true, true, false, true, "", "", true});
  add({"group_norm", {2, 3, 12288}, true, true, false, true, "", "groups: 12", true});
  return cases;
}

// The full cross of options on one small shape for each layer, then shapes.
std::vector<OperatorCase> all_norm_cases() {
  std::vector<OperatorCase> cases;
  const std::vector<std::string> gates = {"",
                                          "{act: none, position: pre}",
                                          "{act: relu, position: pre}",
                                          "{act: sigmoid, position: pre}",
                                          "{act: silu, position: pre}",
                                          "{act: none, position: post}",
                                          "{act: relu, position: post}",
                                          "{act: sigmoid, position: post}",
                                          "{act: silu, position: post}"};
  for (const std::string op : {"layer_norm", "group_norm", "rms_norm", "group_rms_norm"}) {
    // eps is large because a gate may leave one number of a group, whose gradient would be a difference of equals.
    const std::string more = op.starts_with("group") ? "groups: 2, eps: 0.1" : "scale: 0.7, eps: 0.1";
    for (const bool weight : {false, true}) {
      for (const bool bias : {false, true}) {
        for (const int residual : {0, 1, 2}) {
          for (const std::string& gate : gates) {
            cases.push_back(norm_case({op, {3, 6}, weight, bias, residual > 0, residual == 1, gate, more}));
          }
        }
      }
    }
  }
  for (const std::string op : {"srms_norm", "group_srms_norm"}) {
    const std::string more = op.starts_with("group") ? "groups: 3, eps: 1.0e-3" : "dim: 6, eps: 1.0e-12";
    for (const int residual : {0, 1, 2}) {
      cases.push_back(norm_case({op, {2, 3, 6}, false, false, residual > 0, residual == 1, "", more}));
    }
    // They take what the other layers take, though they have no parameters by default.
    for (const std::string& gate : gates) {
      if (gate.empty()) continue;
      cases.push_back(norm_case({op, {3, 6}, true, true, true, true, gate, more + ", scale: 1.3"}));
    }
  }
  const std::string silu = "{act: silu, position: pre}";
  for (const int64_t dim : {1, 7, 33, 65}) {
    cases.push_back(norm_case({"layer_norm", {2, dim}, true, true, false, true, "", "eps: 0.5"}));
    cases.push_back(norm_case({"rms_norm", {2, dim}, true, false, true, true, silu, "eps: 0.5"}));
  }
  // Everything at once in groups of whole 16-byte vectors, which the GPU's fast kernels take.
  for (const std::string op : {"layer_norm", "group_norm", "rms_norm", "group_rms_norm"}) {
    for (const std::string position : {"pre", "post"}) {
      const std::string gate = fmt::format("{{act: silu, position: {}}}", position);
      cases.push_back(
          norm_case({op, {3, 16}, true, true, true, true, gate, op.starts_with("group") ? "groups: 2" : "scale: 0.7"}));
    }
  }
  // More rows than there are partial sums of the weight's gradient.
  cases.push_back(norm_case({"layer_norm", {601, 5}, true, true, true, true, "", "", true}));
  for (const int64_t dim : {63, 1000, 4096, 4097, 9001}) {
    cases.push_back(norm_case({"layer_norm", {3, dim}, true, true, true, true, silu, "", true}));
    cases.push_back(norm_case({"rms_norm", {3, dim}, true, false, true, false, "{act: sigmoid}", "", true}));
  }
  // Vectors of 16 bytes for row groups of 8, 16 and 32 threads, several in a block of the GPU.
  for (const int64_t dim : {16, 72, 136}) {
    cases.push_back(norm_case({"layer_norm", {67, dim}, true, true, false, true, "", "", true}));
    cases.push_back(norm_case({"rms_norm", {67, dim}, true, false, true, true, silu, "", true}));
  }
  // Odd numbers of vectors, two a thread or one.
  cases.push_back(norm_case({"layer_norm", {5, 4088}, true, true, false, true, "", "", true}));
  cases.push_back(norm_case({"rms_norm", {5, 2040}, true, false, true, true, "", "", true}));
  // A mean far above the deviation must cost no digits.
  for (const std::string op : {"layer_norm", "group_norm"}) {
    const std::string more = op == "group_norm" ? "groups: 4" : "";
    cases.push_back(norm_case({op, {5, 1000}, true, true, false, true, "", more, true, 3000.0}));
    cases.push_back(norm_case({op, {2, 20000}, true, false, false, true, "", more, true, -1000.0}));
  }
  cases.push_back(norm_case({"group_norm", {2, 3, 12288}, true, true, true, true, silu, "groups: 12", true}));
  cases.push_back(norm_case({"group_rms_norm", {2, 9000}, true, false, false, true, silu, "groups: 2", true}));
  cases.push_back(norm_case({"group_srms_norm", {5, 96}, false, false, false, true, "", "groups: 32", true}));
  for (OperatorCase& one : full_precision_norm_cases()) cases.push_back(std::move(one));
  return cases;
}

// The cases of one layer of the family.
template <NormType type>
std::vector<OperatorCase> norm_cases() {
  std::vector<OperatorCase> cases = all_norm_cases();
  std::erase_if(cases, [](const OperatorCase& other) { return other.op != name(type); });
  return cases;
}

template <NormType type>
Operator norm_operator() {
  return {.name = std::string(name(type)),
          .inputs = {{.name = "x"},
                     {.name = "residual", .optional = true},
                     {.name = "gate", .optional = true},
                     {.name = "weight", .kind = InputKind::value_or_full_precision, .optional = true},
                     {.name = "bias", .kind = InputKind::value_or_full_precision, .optional = true}},
          .outputs = {"y", "r"},
          .make = make_norm<type>,
          .cases = norm_cases<type>};
}

}  // namespace

std::vector<Operator> norm_operators() {
  return {norm_operator<NormType::layer_norm>(), norm_operator<NormType::group_norm>(),
          norm_operator<NormType::rms_norm>(),   norm_operator<NormType::group_rms_norm>(),
          norm_operator<NormType::srms_norm>(),  norm_operator<NormType::group_srms_norm>()};
}

}  // namespace heddle
