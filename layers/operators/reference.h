// What the references of operator cases are written with: tensors of doubles on the host, in plain loops.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/runtime/error.h"
#include "layers/operator_case.h"

namespace heddle::reference {

inline ReferenceTensor host_zeros(const Shape& shape) {
  return {shape, std::vector<double>(static_cast<size_t>(numel(shape)), 0.0)};
}

// The tensor of that name; an empty one when there is none.
inline ReferenceTensor host_input(const ReferenceTensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  return found != tensors.end() ? found->second : ReferenceTensor{};
}

// act(x) by the name a config gives it; the limit where x is infinite.
inline double activate(const std::string& act, double x) {
  if (act == "relu") return x <= 0.0 ? 0.0 : x;
  if (act == "sigmoid") return 1.0 / (1.0 + std::exp(-x));
  if (act == "silu") return std::isinf(x) && x < 0.0 ? -0.0 : x / (1.0 + std::exp(-x));
  if (act == "elu1") return x > 0.0 ? x + 1.0 : std::exp(x);
  if (act == "relu2") return x <= 0.0 ? 0.0 : x * x;
  if (act == "tanh") return std::tanh(x);
  if (act == "gelu") return std::isinf(x) && x < 0.0 ? -0.0 : 0.5 * x * std::erfc(-x / std::sqrt(2.0));
  if (act == "gelu_tanh") {
    const double u = std::sqrt(2.0 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
    return std::isinf(x) && x < 0.0 ? -0.0 : x / (1.0 + std::exp(-2.0 * u));
  }
  check(act == "none", "unknown activation {}", act);
  return x;
}

// A case whose name is made of its options and shapes.
inline OperatorCase make_case(const std::string& op, const std::string& options, std::vector<CaseInput> inputs,
                              Reference reference, bool large = false) {
  std::string name = fmt::format("{} {}", op, options);
  for (const CaseInput& input : inputs) name = fmt::format("{} {}", name, to_string(input.shape));
  return {.name = std::move(name),
          .op = op,
          .options = options,
          .inputs = std::move(inputs),
          .reference = std::move(reference),
          .large = large};
}

// A weight (rows, cols) as a model starts it: what comes out is as large as what goes in.
inline CaseInput matrix_input(const char* name, int64_t rows, int64_t cols) {
  return {.name = name,
          .shape = {rows, cols},
          .kind = CaseInputKind::matrix,
          .scale = 1.0 / std::sqrt(static_cast<double>(cols))};
}

// x (..., in) weight (out, in)^T
inline ReferenceTensor host_linear(const ReferenceTensor& x, const ReferenceTensor& weight) {
  const int64_t in = weight.shape[1], out = weight.shape[0], rows = numel(x.shape) / in;
  Shape shape = x.shape;
  shape[-1] = out;
  ReferenceTensor y = host_zeros(shape);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < out; ++j) {
      for (int64_t p = 0; p < in; ++p) y[i * out + j] += x[i * in + p] * weight[j * in + p];
    }
  }
  return y;
}

inline ReferenceTensor host_rounded(ReferenceTensor tensor, DType dtype) {
  for (double& value : tensor.values) value = round_to(dtype, value);
  return tensor;
}

}  // namespace heddle::reference
