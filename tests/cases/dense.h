// Cases of linear, embedding, activation, glu, ffn and cross_entropy.
#pragma once

#include <algorithm>

#include "tests/cases/op_case.h"

namespace heddle::test {

// x (..., in) weight (out, in)^T
inline HostTensor host_linear(const HostTensor& x, const HostTensor& weight) {
  const int64_t in = weight.shape[1], out = weight.shape[0], rows = numel(x.shape) / in;
  Shape shape = x.shape;
  shape[-1] = out;
  HostTensor y = host_zeros(shape);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < out; ++j) {
      for (int64_t p = 0; p < in; ++p) y[i * out + j] += x[i * in + p] * weight[j * in + p];
    }
  }
  return y;
}

inline HostTensor host_rounded(HostTensor tensor, DType dtype) {
  for (double& value : tensor.values) value = round_to(dtype, value);
  return tensor;
}

inline HostTensors linear_reference(const ConfigNode&, const HostTensors& inputs, DType) {
  HostTensor y = host_linear(inputs.at("x"), inputs.at("weight"));
  const HostTensor bias = host_input(inputs, "bias");
  const int64_t out = y.shape[-1];
  for (int64_t i = 0; bias && i < numel(y.shape); ++i) y[i] += bias[i % out];
  return {{"y", y}};
}

inline HostTensors embedding_reference(const ConfigNode&, const HostTensors& inputs, DType) {
  const HostTensor &tokens = inputs.at("tokens"), &weight = inputs.at("weight");
  const int64_t dim = weight.shape[1];
  Shape shape = tokens.shape;
  shape.append(dim);
  HostTensor y = host_zeros(shape);
  for (int64_t i = 0; i < numel(shape); ++i) {
    y[i] = weight[static_cast<int64_t>(tokens[i / dim]) * dim + i % dim];
  }
  return {{"y", y}};
}

inline HostTensors activation_reference(const ConfigNode& options, const HostTensors& inputs, DType) {
  HostTensor y = inputs.at("x");
  for (double& value : y.values) value = activate(options.get<std::string>("act", "none"), value);
  return {{"y", y}};
}

inline HostTensors glu_product_reference(const ConfigNode& options, const HostTensors& inputs, DType) {
  const std::string act = options.get<std::string>("act", "silu");
  HostTensor y = inputs.at("a");
  for (int64_t i = 0; i < numel(y.shape); ++i) y[i] = activate(act, y[i]) * inputs.at("b")[i];
  return {{"y", y}};
}

// Every product and every activation is stored, so each is rounded.
inline HostTensors glu_reference(const ConfigNode& options, const HostTensors& inputs, DType dtype) {
  const HostTensor both = host_rounded(host_linear(inputs.at("x"), inputs.at("w12")), dtype);
  const int64_t hidden = both.shape[-1] / 2;
  Shape shape = both.shape;
  shape[-1] = hidden;
  HostTensor a = host_zeros(shape), b = a;
  for (int64_t i = 0; i < numel(shape); ++i) {
    a[i] = both[i / hidden * 2 * hidden + i % hidden];
    b[i] = both[i / hidden * 2 * hidden + hidden + i % hidden];
  }
  const HostTensor product = glu_product_reference(options, {{"a", a}, {"b", b}}, dtype).at("y");
  return {{"y", host_linear(host_rounded(product, dtype), inputs.at("w3"))}};
}

inline HostTensors ffn_reference(const ConfigNode& options, const HostTensors& inputs, DType dtype) {
  HostTensor hidden = host_rounded(host_linear(inputs.at("x"), inputs.at("w1")), dtype);
  for (double& value : hidden.values) value = activate(options.get<std::string>("act", "relu"), value);
  return {{"y", host_linear(host_rounded(hidden, dtype), inputs.at("w2"))}};
}

inline HostTensors cross_entropy_reference(const ConfigNode& options, const HostTensors& inputs, DType) {
  const HostTensor &logits = inputs.at("logits"), &targets = inputs.at("targets");
  const auto ignored = options.get<int64_t>("ignore_index", -100);
  const double smoothing = options.get<double>("label_smoothing", 0.0);
  const int64_t classes = logits.shape[-1];
  HostTensor loss = host_zeros({});
  int64_t count = 0;
  for (int64_t i = 0; i < numel(targets.shape); ++i) {
    const auto target = static_cast<int64_t>(targets[i]);
    if (target == ignored) continue;
    double sum = 0.0, mean = 0.0;
    for (int64_t j = 0; j < classes; ++j) {
      sum += std::exp(logits[i * classes + j]);
      mean += logits[i * classes + j] / static_cast<double>(classes);
    }
    loss[0] += std::log(sum) - (1.0 - smoothing) * logits[i * classes + target] - smoothing * mean;
    ++count;
  }
  loss[0] /= static_cast<double>(std::max<int64_t>(count, 1));
  return {{"loss", loss}};
}

inline OpCase dense_case(const std::string& op, const std::string& options, std::vector<CaseInput> inputs,
                         Reference reference, bool large = false) {
  std::string name = fmt::format("{} {}", op, options);
  for (const CaseInput& input : inputs) name = fmt::format("{} {}", name, to_string(input.shape));
  return {.name = name, .op = op, .options = options, .inputs = inputs, .reference = reference, .large = large};
}

inline std::vector<OpCase> dense_cases() {
  std::vector<OpCase> cases;
  const auto matrix = [](const char* name, int64_t rows, int64_t cols) {
    // As a model starts it: what comes out is as large as what goes in.
    return CaseInput{.name = name,
                     .shape = {rows, cols},
                     .kind = InputKind::matrix,
                     .scale = 1.0 / std::sqrt(static_cast<double>(cols))};
  };
  const auto add_linear = [&](const Shape& x, int64_t out, bool bias, bool large = false) {
    std::vector<CaseInput> inputs = {{.name = "x", .shape = x}, matrix("weight", out, x[-1])};
    if (bias) inputs.push_back({.name = "bias", .shape = {out}, .kind = InputKind::parameter});
    cases.push_back(dense_case("linear", "{}", inputs, linear_reference, large));
  };
  for (const bool bias : {false, true}) {
    for (const int64_t out : {1, 4, 9}) add_linear({2, 3, 5}, out, bias);
    add_linear({3, 1}, 2, bias);
    add_linear({1, 17}, 33, bias);
  }
  add_linear({5, 100, 70}, 131, true, true);
  add_linear({3, 1000}, 257, false, true);

  const auto add_embedding = [&](const Shape& tokens, int64_t vocabulary, int64_t dim, bool large = false) {
    cases.push_back(dense_case("embedding", "{}",
                               {{.name = "tokens", .shape = tokens, .kind = InputKind::tokens, .range = vocabulary},
                                {.name = "weight", .shape = {vocabulary, dim}, .kind = InputKind::matrix}},
                               embedding_reference, large));
  };
  add_embedding({2, 7}, 5, 6);
  add_embedding({9}, 40, 3);  // most rows belong to no token
  add_embedding({3, 2, 2}, 1, 1);
  add_embedding({40, 33}, 20, 70, true);
  add_embedding({6}, 3, 2050, true);

  for (const std::string act : {"none", "relu", "sigmoid", "silu"}) {
    const std::string options = fmt::format("{{act: {}}}", act);
    cases.push_back(dense_case("activation", options, {{.name = "x", .shape = {2, 3, 7}}}, activation_reference));
    cases.push_back(dense_case("activation", options, {{.name = "x", .shape = {9, 2100}}}, activation_reference, true));
    for (const Shape& shape : {Shape{3, 5}, Shape{2, 2, 1}, Shape{5, 1100}, Shape{300, 70}}) {
      cases.push_back(dense_case("glu_product", options, {{.name = "a", .shape = shape}, {.name = "b", .shape = shape}},
                                 glu_product_reference, numel(shape) > 100));
    }
    const std::vector<CaseInput> glu = {{.name = "x", .shape = {2, 3, 4}}, matrix("w12", 10, 4), matrix("w3", 4, 5)};
    cases.push_back(dense_case("glu", options, glu, glu_reference));
    const std::vector<CaseInput> ffn = {{.name = "x", .shape = {2, 3, 4}}, matrix("w1", 5, 4), matrix("w2", 4, 5)};
    cases.push_back(dense_case("ffn", options, ffn, ffn_reference));
  }
  cases.push_back(dense_case("glu", "{hidden: 90}",
                             {{.name = "x", .shape = {50, 33}}, matrix("w12", 180, 33), matrix("w3", 33, 90)},
                             glu_reference, true));
  for (OpCase& chain : cases) {
    if (chain.op == "glu" || chain.op == "ffn") chain.roundings = 4;
  }

  const auto add_cross_entropy = [&](const Shape& rows, int64_t classes, const std::string& options, bool large = false,
                                     double scale = 1.0) {
    Shape shape = rows;
    shape.append(classes);
    cases.push_back(dense_case("cross_entropy", options,
                               {{.name = "logits", .shape = shape, .scale = scale},
                                {.name = "targets", .shape = rows, .kind = InputKind::tokens, .range = classes}},
                               cross_entropy_reference, large));
  };
  for (const std::string options : {"{}", "{ignore_index: 2}", "{label_smoothing: 0.1}",
                                    "{ignore_index: 0, label_smoothing: 0.3}", "{label_smoothing: 1.0}"}) {
    add_cross_entropy({2, 4}, 5, options);
    add_cross_entropy({3, 7}, 41, options, true);
  }
  add_cross_entropy({3}, 1, "{}");
  add_cross_entropy({4}, 1, "{ignore_index: 0}");  // every row is ignored
  add_cross_entropy({70}, 3001, "{label_smoothing: 0.1}", true, 4.0);
  return cases;
}

}  // namespace heddle::test
