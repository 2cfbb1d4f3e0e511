// Cases of the normalization family.
#pragma once

#include "tests/cases/op_case.h"

namespace heddle::test {

inline HostTensors norm_reference(bool center, const ConfigNode& options, const HostTensors& inputs, DType dtype) {
  const HostTensor x = host_input(inputs, "x"), residual = host_input(inputs, "residual");
  const HostTensor gate = host_input(inputs, "gate");
  const HostTensor weight = host_input(inputs, "weight"), bias = host_input(inputs, "bias");
  const double eps = options.get<double>("eps", 1e-5), scale = options.get<double>("scale", 1.0);
  const ConfigNode gating = options.section("gate");
  const std::string act = gating.get<std::string>("act", "none");
  const bool before = gating.get<std::string>("position", "post") == "pre";
  const int64_t dim = x.shape[-1], rows = numel(x.shape) / dim;
  const int64_t size = dim / options.get<int64_t>("groups", 1);

  HostTensor y = host_zeros(x.shape), r = x;
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
  HostTensors outputs{{"y", y}};
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
  double mean = 0.0;  // of x
};

inline OpCase norm_case(const NormCase& wanted) {
  OpCase result;
  const bool center = wanted.op == "layer_norm" || wanted.op == "group_norm";
  const int64_t dim = wanted.shape[-1];
  result.op = wanted.op;
  result.inputs = {{.name = "x", .shape = wanted.shape, .mean = wanted.mean}};
  if (wanted.residual) result.inputs.push_back({.name = "residual", .shape = wanted.shape});
  if (!wanted.gate.empty()) result.inputs.push_back({.name = "gate", .shape = wanted.shape});
  if (wanted.weight) result.inputs.push_back({.name = "weight", .shape = {dim}, .kind = InputKind::parameter});
  if (wanted.bias) result.inputs.push_back({.name = "bias", .shape = {dim}, .kind = InputKind::parameter});
  std::string options = fmt::format("weight: {}, bias: {}", wanted.weight, wanted.bias);
  if (wanted.residual) options += fmt::format(", residual: true, return_residual: {}", wanted.returned);
  if (!wanted.gate.empty()) options += ", gate: " + wanted.gate;
  if (!wanted.more.empty()) options += ", " + wanted.more;
  result.options = "{" + options + "}";
  result.name = fmt::format("{} {} {} mean {}", wanted.op, to_string(wanted.shape), result.options, wanted.mean);
  result.large = wanted.large;
  // The mean that backward reads is rounded to float32, by up to 1.2e-4 at 3000 where the deviation is 1.
  if (std::abs(wanted.mean) >= 1000.0) result.tolerance = 2.0;
  result.reference = [center](const ConfigNode& node, const HostTensors& inputs, DType dtype) {
    return norm_reference(center, node, inputs, dtype);
  };
  return result;
}

// The full cross of options on one small shape for each layer, then shapes.
inline std::vector<OpCase> norm_cases() {
  std::vector<OpCase> cases;
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
  }
  const std::string silu = "{act: silu, position: pre}";
  for (const int64_t dim : {1, 7, 33, 65}) {
    cases.push_back(norm_case({"layer_norm", {2, dim}, true, true, false, true, "", "eps: 0.5"}));
    cases.push_back(norm_case({"rms_norm", {2, dim}, true, false, true, true, silu, "eps: 0.5"}));
  }
  // More rows than there are partial sums of the weight's gradient.
  cases.push_back(norm_case({"layer_norm", {601, 5}, true, true, true, true, "", "", true}));
  for (const int64_t dim : {63, 1000, 4096, 4097, 9001}) {
    cases.push_back(norm_case({"layer_norm", {3, dim}, true, true, true, true, silu, "", true}));
    cases.push_back(norm_case({"rms_norm", {3, dim}, true, false, true, false, "{act: sigmoid}", "", true}));
  }
  // Vectors of 16 bytes for teams of 8, 16 and 32 threads, several in a block of the GPU.
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
  return cases;
}

}  // namespace heddle::test
