// Cases of the position encodings.
#pragma once

#include <algorithm>

#include "tests/cases/op_case.h"

namespace heddle::test {

// a = act(x): x (batch, length, heads, dim) with any strides given by `at`.
template <class At>
double lrpe_activation(const HostTensor& x, const std::string& act, const std::string& act_dim, const At& at, int64_t b,
                       int64_t n, int64_t h, int64_t d, int64_t length, int64_t dim) {
  if (act != "softmax") return activate(act, x[at(b, n, h, d)]);
  const bool feature = act_dim == "feature";
  const int64_t count = feature ? dim : length;
  double most = -INFINITY, sum = 0.0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, x[feature ? at(b, n, h, i) : at(b, i, h, d)]);
  for (int64_t i = 0; i < count; ++i) sum += std::exp(x[feature ? at(b, n, h, i) : at(b, i, h, d)] - most);
  return std::exp(x[at(b, n, h, d)] - most) / sum;
}

inline HostTensors lrpe_rotate_reference(const ConfigNode& options, const HostTensors& inputs, DType) {
  const HostTensor x = host_input(inputs, "x"), theta = host_input(inputs, "theta");
  const std::string act = options.get<std::string>("act", "none");
  const std::string act_dim = act == "softmax" ? options.get<std::string>("act_dim", "feature") : "";
  const bool interleaved = options.get<std::string>("pairing", "half") == "interleaved";
  const bool bhnd = options.get<std::string>("layout", "bnhd") == "bhnd";
  const int64_t offset = options.get<int64_t>("offset", 0);
  const bool has_heads = x.shape.rank() == 4;
  const int64_t batch = x.shape[0], dim = x.shape[-1], half = dim / 2;
  const int64_t length = has_heads && bhnd ? x.shape[2] : x.shape[1];
  const int64_t heads = has_heads ? (bhnd ? x.shape[1] : x.shape[2]) : 1;
  const auto at = [&](int64_t b, int64_t n, int64_t h, int64_t d) {
    return (bhnd && has_heads ? ((b * heads + h) * length + n) : ((b * length + n) * heads + h)) * dim + d;
  };
  HostTensor y = host_zeros(x.shape);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t n = 0; n < length; ++n) {
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t k = 0; k < half; ++k) {
          const int64_t row = theta.shape[0] == 1 ? 0 : h, angles = theta.shape[1];
          const double phi = k < angles ? static_cast<double>(n + offset) * theta[row * angles + k] : 0.0;
          const int64_t i = interleaved ? 2 * k : k, j = interleaved ? 2 * k + 1 : k + half;
          const double first = lrpe_activation(x, act, act_dim, at, b, n, h, i, length, dim);
          const double second = lrpe_activation(x, act, act_dim, at, b, n, h, j, length, dim);
          y[at(b, n, h, i)] = first * std::cos(phi) - second * std::sin(phi);
          y[at(b, n, h, j)] = first * std::sin(phi) + second * std::cos(phi);
        }
      }
    }
  }
  return {{"y", y}};
}

inline OpCase lrpe_rotate_case(const Shape& shape, const Shape& theta, const std::string& options, bool learned = true,
                               bool large = false) {
  OpCase result;
  result.op = "lrpe_rotate";
  result.options = "{" + options + "}";
  result.name = fmt::format("lrpe_rotate {} theta {} {} {}", to_string(shape), to_string(theta), options, learned);
  result.inputs = {{.name = "x", .shape = shape},
                   {.name = "theta", .shape = theta, .kind = InputKind::angle, .differentiate = learned}};
  result.reference = lrpe_rotate_reference;
  result.large = large;
  return result;
}

// The cross of options on one small shape, then shapes.
inline std::vector<OpCase> lrpe_rotate_cases() {
  std::vector<OpCase> cases;
  for (const std::string act :
       {"none", "relu", "sigmoid", "silu", "softmax, act_dim: feature", "softmax, act_dim: sequence"}) {
    for (const std::string pairing : {"half", "interleaved"}) {
      for (const std::string layout : {"bnhd", "bhnd"}) {
        const std::string options = fmt::format("act: {}, pairing: {}, layout: {}, offset: 3", act, pairing, layout);
        for (const bool learned : {true, false}) {
          for (const Shape& theta : {Shape{2, 3}, Shape{1, 3}, Shape{2, 1}}) {
            const Shape shape = layout == "bnhd" ? Shape{2, 3, 2, 6} : Shape{2, 2, 3, 6};
            cases.push_back(lrpe_rotate_case(shape, theta, options, learned));
          }
        }
      }
    }
    const std::string only_act = "act: " + act;
    for (const int64_t dim : {2, 6, 48, 130}) {
      cases.push_back(lrpe_rotate_case({2, 3, dim}, {1, dim / 2}, only_act));
      cases.push_back(lrpe_rotate_case({1, 1, 7, dim}, {7, 1}, only_act));
    }
    cases.push_back(lrpe_rotate_case({2, 33, 3, 96}, {3, 48}, only_act, true, true));
    cases.push_back(lrpe_rotate_case({1, 300, 2, 64}, {1, 32}, only_act + ", pairing: interleaved", true, true));
    cases.push_back(lrpe_rotate_case({1, 2, 2050}, {1, 1025}, only_act, true, true));
    cases.push_back(
        lrpe_rotate_case({1, 2, 5, 64}, {2, 20}, only_act + ", layout: bhnd, offset: 1048571", false, true));
  }
  return cases;
}

}  // namespace heddle::test
