// What the cases of both position encodings share.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "layers/operators/reference.h"

namespace heddle::reference {

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
inline double lrpe_activation(const ReferenceTensor& x, const ConfigNode& options, const HeadsPlaces& places, int64_t b,
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

// How the theta of a case is drawn. angle: in the accumulate type; matrix: in the dtype of x.
struct ThetaInput {
  Shape shape;
  CaseInputKind kind = CaseInputKind::angle;
  bool learned = true;
  double scale = 1.0;
};

inline OperatorCase lrpe_case(const std::string& op, const Reference& reference, const Shape& shape,
                              const ThetaInput& theta, const std::string& options, bool large = false) {
  OperatorCase result;
  result.op = op;
  result.options = "{" + options + "}";
  result.name = fmt::format("{} {} theta {} {} of {} {} {}", op, to_string(shape), to_string(theta.shape),
                            theta.learned ? "learned" : "fixed",
                            theta.kind == CaseInputKind::matrix ? "x's dtype" : "float32", theta.scale, options);
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

}  // namespace heddle::reference
