// The unfused formulas of the norm family in long double, forward and backward, and the comparison of the operator with
// them: what the tests of numbers near the ends of a type's range share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor/transfer.h"
#include "layers/operator_case.h"
#include "layers/ops/norm.h"

namespace heddle::test {

using Numbers = std::vector<double>;
using Tensors = std::map<std::string, Numbers>;

// What a formula gives, and how large the terms are that it adds up: they decide how far off rounding may be.
struct Expected {
  Tensors values, sizes;
};

struct Problem {
  std::string name;
  DType dtype = DType::float32;
  int64_t rows = 3, dim = 512;
  NormOptions options = {};
  Tensors inputs = {};       // x, d_y, and those of residual, gate, weight, bias, d_r that there are
  DType parameters = dtype;  // of weight, bias and their gradients

  DType dtype_of(const std::string& tensor) const {
    return tensor.ends_with("weight") || tensor.ends_with("bias") ? parameters : dtype;
  }
};

// --- The formulas ---

struct Act {
  long double value, derivative;
};

inline Act activated(Activation act, long double x) {
  const long double s = 1.0L / (1.0L + std::exp(-x)), other = 1.0L / (1.0L + std::exp(x));
  const long double bounded = std::isinf(x) ? std::copysign(1e3000L, x) : x;
  switch (act) {
    case Activation::relu:
      return x > 0.0L ? Act{x, 1.0L} : Act{0.0L * bounded, 0.0L * bounded};
    case Activation::sigmoid:
      return {s, s * other};
    case Activation::silu:
      return {x > 0.0L ? x * s : bounded * s, s * (1.0L + bounded * other)};
    default:
      return {x, 1.0L};
  }
}

// One group of one row: adds its part to the results, which hold zeros.
class GroupFormula {
 public:
  GroupFormula(const Problem& problem, int64_t row, int64_t group)
      : problem_(problem),
        size_(problem.dim / problem.options.groups),
        first_(row * problem.dim + group * size_),
        column_(group * size_) {}

  void run(Expected& results) {
    const NormOptions& options = problem_.options;
    const bool gated = has("gate"), pre = gated && options.gate_position == GatePosition::pre, post = gated && !pre;
    std::vector<long double> r(size()), p(size()), n(size()), g(size()), z(size());
    std::vector<Act> act(size(), {1.0L, 0.0L});
    long double mean = 0.0L, square = 0.0L, along = 0.0L, constant = 0.0L;
    for (size_t i = 0; i < size(); ++i) {
      r[i] = row_number("x", i);
      if (has("residual")) r[i] = round_to(problem_.dtype, static_cast<double>(r[i] + row_number("residual", i)));
      if (gated) act[i] = activated(options.gate_act, row_number("gate", i));
      p[i] = pre ? r[i] * act[i].value : r[i];
      mean += p[i] - p[0];  // of a constant row 0
    }
    mean = options.center ? p[0] + mean / size_ : 0.0L;
    for (size_t i = 0; i < size(); ++i) square += (p[i] - mean) * (p[i] - mean) / size_;
    const long double s = std::sqrt(square + static_cast<long double>(options.eps));
    for (size_t i = 0; i < size(); ++i) {
      n[i] = (p[i] - mean) / s;
      z[i] = options.scale * n[i] * parameter("weight", i, 1.0) + parameter("bias", i, 0.0);
      const long double d_z = row_number("d_y", i) * (post ? act[i].value : 1.0L);
      g[i] = d_z * parameter("weight", i, 1.0) * options.scale;
      along += g[i] * n[i] / size_;
      constant += options.center ? g[i] / size_ : 0.0L;
      put(results, "y", i, z[i] * (post ? act[i].value : 1.0L));
      put(results, "r", i, r[i]);
      if (has("weight")) add(results, "d_weight", i, d_z * options.scale * n[i]);
      if (has("bias")) add(results, "d_bias", i, d_z);
    }
    for (size_t i = 0; i < size(); ++i) {
      const long double d_p = size_ == 1 && options.center ? 0.0L : (g[i] - n[i] * along - constant) / s;
      const long double terms = (std::abs(g[i]) + std::abs(n[i] * along) + std::abs(constant)) / s;
      const long double factor = pre ? r[i] : row_number("d_y", i);
      const bool is_flat = options.gate_act == Activation::relu && act[i].derivative == 0.0L;
      const auto d_gate = [&](long double d) { return is_flat ? 0.0L : d * factor * act[i].derivative; };
      if (gated) put(results, "d_gate", i, d_gate(pre ? d_p : z[i]), d_gate(pre ? terms : z[i]));
      const long double d_r = has("d_r") ? row_number("d_r", i) : 0.0L, outer = pre ? act[i].value : 1.0L;
      put(results, "d_x", i, d_p * outer + d_r, std::abs(terms * outer) + std::abs(d_r));
    }
  }

 private:
  size_t size() const { return static_cast<size_t>(size_); }
  bool has(const std::string& name) const { return problem_.inputs.contains(name); }
  long double row_number(const std::string& name, size_t i) const {
    return problem_.inputs.at(name)[static_cast<size_t>(first_) + i];
  }
  long double parameter(const std::string& name, size_t i, double otherwise) const {
    return has(name) ? problem_.inputs.at(name)[static_cast<size_t>(column_) + i] : otherwise;
  }
  void put(Expected& results, const std::string& name, size_t i, long double value, long double size) const {
    results.values[name][static_cast<size_t>(first_) + i] = static_cast<double>(value);
    results.sizes[name][static_cast<size_t>(first_) + i] = static_cast<double>(std::abs(size));
  }
  void put(Expected& results, const std::string& name, size_t i, long double value) const {
    put(results, name, i, value, value);
  }
  void add(Expected& results, const std::string& name, size_t i, long double term) const {
    results.values[name][static_cast<size_t>(column_) + i] += static_cast<double>(term);
    results.sizes[name][static_cast<size_t>(column_) + i] += static_cast<double>(std::abs(term));
  }

  const Problem& problem_;
  const int64_t size_, first_, column_;
};

inline Expected expected_results(const Problem& problem) {
  Expected results;
  const auto count = static_cast<size_t>(problem.rows * problem.dim), width = static_cast<size_t>(problem.dim);
  for (Tensors* tensors : {&results.values, &results.sizes}) {
    for (const char* name : {"y", "r", "d_x", "d_gate"}) (*tensors)[name].resize(count);
    for (const char* name : {"d_weight", "d_bias"}) (*tensors)[name].resize(width);
  }
  for (int64_t row = 0; row < problem.rows; ++row) {
    for (int64_t group = 0; group < problem.options.groups; ++group) GroupFormula(problem, row, group).run(results);
  }
  for (Tensors* tensors : {&results.values, &results.sizes}) (*tensors)["d_residual"] = tensors->at("d_x");
  return results;
}

// --- The operator ---

// Gradients are added to those of `start`, and written where it has none.
inline Tensors operator_results(Context& context, const Problem& problem, const Tensors& start = {}) {
  std::map<std::string, Gradient> gradients;
  Tensors results;
  Tape tape(context);
  const auto tensor = [&](const std::string& name, const Numbers& numbers) {
    const bool is_vector = name == "weight" || name == "bias";
    const Shape shape = is_vector ? Shape{problem.dim} : Shape{problem.rows, problem.dim};
    const Tensor result = Tensor::empty(context, shape, problem.dtype_of(name));
    write_values(context, result, numbers);
    return result;
  };
  const auto leaf = [&](const std::string& name) {
    const auto found = problem.inputs.find(name);
    if (found == problem.inputs.end()) return Variable{};
    Gradient& gradient = gradients[name];
    if (const auto old = start.find("d_" + name); old != start.end()) {
      gradient.tensor = tensor(name, old->second);
      gradient.written = true;
    }
    return tape.leaf(tensor(name, found->second), gradient, name);
  };
  const NormInputs inputs{leaf("residual"), leaf("gate"), leaf("weight"), leaf("bias")};
  const Normed normed = norm(tape, leaf("x"), inputs, problem.options);
  results["y"] = read_values(context, normed.y.value);
  if (inputs.residual.defined()) results["r"] = read_values(context, normed.r.value);
  std::vector<Tape::Root> roots{{normed.y, tensor("d_y", problem.inputs.at("d_y"))}};
  if (problem.inputs.contains("d_r")) roots.push_back({normed.r, tensor("d_r", problem.inputs.at("d_r"))});
  tape.backward(std::move(roots));
  for (const auto& [name, gradient] : gradients) {
    EXPECT_EQ(gradient.tensor.dtype(), problem.dtype_of(name)) << name;
    results["d_" + name] = read_values(context, gradient.tensor);
  }
  return results;
}

inline double tolerance(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 1e-11;
    case DType::float32:
      return 2e-5;
    case DType::bfloat16:
      return 1e-2;
    default:
      return 2e-3;
  }
}

// Each number is near what is expected, relative to the largest of the `span` sizes that belong together; infinite and
// NaN where that is.
inline void expect_close(const Numbers& found, const Numbers& expected, const Numbers& sizes, int64_t span, DType dtype,
                         const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  const double smallest = dtype == DType::float16 ? 0x1p-24 : dtype == DType::float64 ? 0x1p-1074 : 0x1p-133;
  const auto count = static_cast<size_t>(span);
  for (size_t begin = 0; begin < expected.size(); begin += count) {
    double largest = 0.0;
    for (size_t i = begin; i < begin + count; ++i) {
      if (std::isfinite(round_to(dtype, expected[i]))) largest = std::max(largest, sizes[i]);
    }
    for (size_t i = begin; i < begin + count; ++i) {
      const double wanted = round_to(dtype, expected[i]);
      const bool is_same = std::isnan(wanted) ? std::isnan(found[i]) : found[i] == wanted;
      ASSERT_TRUE(is_same || std::abs(found[i] - wanted) <= tolerance(dtype) * largest + 2 * smallest)
          << what << "[" << i << "]: found " << found[i] << ", expected " << wanted << ", largest " << largest;
    }
  }
}

inline void expect_results(const Problem& problem, const Tensors& found, const Expected& expected) {
  for (const auto& [name, numbers] : found) {
    expect_close(numbers, expected.values.at(name), expected.sizes.at(name), problem.dim / problem.options.groups,
                 problem.dtype_of(name), name);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

inline void expect_right(Context& context, const Problem& problem) {
  SCOPED_TRACE(problem.name);
  expect_results(problem, operator_results(context, problem), expected_results(problem));
}

// Gradients that are added to themselves.
inline void expect_added(Context& context, const Problem& problem) {
  SCOPED_TRACE(problem.name + " added");
  Expected expected = expected_results(problem);
  const Tensors found = operator_results(context, problem, expected.values);
  for (auto& [name, numbers] : expected.values) {
    for (double& number : numbers) number *= name.starts_with("d_") ? 2.0 : 1.0;
  }
  expect_results(problem, found, expected);
}

}  // namespace heddle::test
