// Cases of the rotation, and what the cases of both position encodings share.
#pragma once

#include <algorithm>

#include "tests/cases/op_case.h"

namespace heddle::test {

// Where the features of x (batch, length, heads, dim), or of y, lie by `layout`; rank 3 is one head.
struct HeadsPlaces {
  HeadsPlaces(const Shape& shape, const ConfigNode& options)
      : bhnd(shape.rank() == 4 && options.get<std::string>("layout", "bnhd") == "bhnd"),
        batch(shape[0]),
        length(bhnd ? shape[2] : shape[1]),
        heads(shape.rank() == 3 ? 1
              : bhnd            ? shape[1]
                                : shape[2]) {}

  int64_t at(int64_t b, int64_t n, int64_t h, int64_t d, int64_t dim) const {
    return (bhnd ? ((b * heads + h) * length + n) : ((b * length + n) * heads + h)) * dim + d;
  }

  bool bhnd;
  int64_t batch, length, heads;
};

// a = act(x), of one feature of one token.
inline double lrpe_activation(const HostTensor& x, const ConfigNode& options, const HeadsPlaces& places, int64_t b,
                              int64_t n, int64_t h, int64_t d) {
  const std::string act = options.get<std::string>("act", "none");
  const int64_t dim = x.shape[-1];
  const double value = x[places.at(b, n, h, d, dim)];
  if (act != "softmax") return activate(act, value);
  const bool feature = options.get<std::string>("act_dim", "feature") == "feature";
  const auto other = [&](int64_t i) { return x[feature ? places.at(b, n, h, i, dim) : places.at(b, i, h, d, dim)]; };
  const int64_t count = feature ? dim : places.length;
  double most = -INFINITY, sum = 0.0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, other(i));
  for (int64_t i = 0; i < count; ++i) sum += std::exp(other(i) - most);
  return std::exp(value - most) / sum;
}

inline HostTensors lrpe_rotate_reference(const ConfigNode& options, const HostTensors& inputs, DType) {
  const HostTensor x = host_input(inputs, "x"), theta = host_input(inputs, "theta");
  const HeadsPlaces places(x.shape, options);
  const bool interleaved = options.get<std::string>("pairing", "half") == "interleaved";
  const int64_t offset = options.get<int64_t>("offset", 0);
  const int64_t dim = x.shape[-1], half = dim / 2, angles = theta.shape[1];
  HostTensor y = host_zeros(x.shape);
  for (int64_t b = 0; b < places.batch; ++b) {
    for (int64_t n = 0; n < places.length; ++n) {
      for (int64_t h = 0; h < places.heads; ++h) {
        const int64_t row = theta.shape[0] == 1 ? 0 : h;
        for (int64_t k = 0; k < half; ++k) {
          const double phi = k < angles ? static_cast<double>(n + offset) * theta[row * angles + k] : 0.0;
          const int64_t i = interleaved ? 2 * k : k, j = interleaved ? 2 * k + 1 : k + half;
          const double first = lrpe_activation(x, options, places, b, n, h, i);
          const double second = lrpe_activation(x, options, places, b, n, h, j);
          y[places.at(b, n, h, i, dim)] = first * std::cos(phi) - second * std::sin(phi);
          y[places.at(b, n, h, j, dim)] = first * std::sin(phi) + second * std::cos(phi);
        }
      }
    }
  }
  return {{"y", y}};
}

// How the theta of a case is drawn. angle: in the accumulate type; matrix: in the dtype of x.
struct ThetaInput {
  Shape shape;
  InputKind kind = InputKind::angle;
  bool learned = true;
  double scale = 1.0;
};

inline OpCase lrpe_case(const std::string& op, const Reference& reference, const Shape& shape, const ThetaInput& theta,
                        const std::string& options, bool large = false) {
  OpCase result;
  result.op = op;
  result.options = "{" + options + "}";
  result.name = fmt::format("{} {} theta {} {} of {} {} {}", op, to_string(shape), to_string(theta.shape),
                            theta.learned ? "learned" : "fixed",
                            theta.kind == InputKind::matrix ? "x's dtype" : "float32", theta.scale, options);
  result.inputs = {{.name = "x", .shape = shape},
                   {.name = "theta",
                    .shape = theta.shape,
                    .kind = theta.kind,
                    .differentiate = theta.learned,
                    .scale = theta.scale}};
  result.reference = reference;
  result.large = large;
  return result;
}

inline const std::vector<std::string>& lrpe_acts() {
  static const std::vector<std::string> acts = {"act: none", "act: relu",    "act: sigmoid",
                                                "act: silu", "act: softmax", "act: softmax, act_dim: sequence"};
  return acts;
}

// The cross of options on one small shape, then shapes.
inline std::vector<OpCase> lrpe_rotate_cases() {
  std::vector<OpCase> cases;
  const auto add = [&](const Shape& shape, const ThetaInput& theta, const std::string& options, bool large = false) {
    cases.push_back(lrpe_case("lrpe_rotate", lrpe_rotate_reference, shape, theta, options, large));
  };
  for (const std::string& act : lrpe_acts()) {
    for (const std::string pairing : {"half", "interleaved"}) {
      for (const std::string layout : {"bnhd", "bhnd"}) {
        const std::string options = fmt::format("{}, pairing: {}, layout: {}, offset: 3", act, pairing, layout);
        const Shape shape = layout == "bnhd" ? Shape{2, 3, 2, 6} : Shape{2, 2, 3, 6};
        for (const bool learned : {true, false}) {
          for (const Shape& theta : {Shape{2, 3}, Shape{1, 3}, Shape{2, 1}}) {
            add(shape, {.shape = theta, .learned = learned}, options);
          }
          add(shape, {.shape = {2, 3}, .kind = InputKind::matrix, .learned = learned}, options);
        }
      }
    }
    for (const int64_t dim : {2, 6, 48, 130, 256}) {
      add({2, 3, dim}, {{1, dim / 2}}, act, dim > 200);
      add({1, 1, 7, dim}, {{7, 1}}, act, dim > 200);
    }
    add({2, 3, 2, 6}, {.shape = {2, 3}, .scale = 0.0}, act + ", offset: 5");
    add({2, 3, 2, 6}, {.shape = {2, 3}, .learned = false, .scale = 1e10}, act);
    add({2, 3, 2, 64}, {.shape = {1, 32}, .scale = 1e11}, act + ", offset: 1000000", true);
    add({2, 33, 3, 96}, {{3, 48}}, act, true);
    add({2, 33, 3, 96}, {{1, 40}, InputKind::matrix}, act, true);
    add({1, 300, 2, 64}, {{1, 32}}, act + ", pairing: interleaved", true);
    add({1, 2, 2050}, {{1, 1025}}, act, true);
    add({1, 2, 5, 64}, {{2, 20}}, act + ", layout: bhnd, offset: 1048571", true);
    add({1, 2, 33, 64}, {{2, 32}, InputKind::matrix}, act + ", layout: bhnd, offset: 1048543", true);
  }
  return cases;
}

}  // namespace heddle::test
