// Every kernel that takes an activation, run with one of them: what the tests of the CPU and of the GPU share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "kernels/common/activation.h"
#include "kernels/dense/elementwise.h"
#include "kernels/norm/norm.h"
#include "kernels/position/lrpe_cosine.h"
#include "kernels/position/lrpe_rotate.h"

namespace heddle::kernels {

// Results of all kernels, one after the other. `values` depend on the activation's argument only through its value,
// `gradients` are those of the argument: what the chain rule multiplies by the activation's derivative.
struct ActivationResults {
  std::vector<double> values, gradients;
};

// Runs the kernels on one matrix, which is the argument of the activation in each of them.
class ActivationKernels {
 public:
  static constexpr int64_t kRows = 6, kCols = 64, kSize = kRows * kCols;
  static constexpr int64_t kHeads = 2, kHeadDim = kCols / kHeads;

  // With `only_elementwise`, and for an activation that fused kernels do not compute, the elementwise kernels alone.
  ActivationKernels(Context& context, DType dtype, Activation act, const std::vector<double>& argument,
                    bool only_elementwise = false)
      : context_(context),
        dtype_(dtype),
        act_(act),
        only_elementwise_(only_elementwise),
        argument_(tensor({kRows, kCols}, dtype)) {
    write_values(context, argument_, argument);
  }

  ActivationResults run() {
    run_activation();
    run_glu();
    if (!is_fused_activation(act_) || only_elementwise_) return results_;
    run_norm(GatePosition::pre);
    run_norm(GatePosition::post);
    run_lrpe_rotate();
    run_lrpe_cosine();
    return results_;
  }

 private:
  Tensor tensor(const Shape& shape, DType dtype) { return Tensor::empty(context_, shape, dtype); }
  // Multiples of 1/64 between -2 and 2, which every dtype holds.
  Tensor random_tensor(const Shape& shape, DType dtype) {
    const Tensor result = tensor(shape, dtype);
    std::vector<double> values(static_cast<size_t>(result.numel()));
    for (double& value : values) value = (static_cast<double>(random_.next_below(255)) - 127.0) / 64.0;
    write_values(context_, result, values);
    return result;
  }
  Tensor random_rows() { return random_tensor({kRows, kCols}, dtype_); }
  Tensor rows() { return tensor({kRows, kCols}, dtype_); }

  void add_to(std::vector<double>& all, const Tensor& result) {
    const std::vector<double> values = read_values(context_, result);
    all.insert(all.end(), values.begin(), values.end());
  }

  void run_activation() {
    const Tensor y = rows(), d_y = random_rows(), d_x = rows();
    activation_forward(context_, {.x = rows_view(argument_), .y = rows_view(y), .act = act_});
    activation_backward(context_,
                        {.x = rows_view(argument_), .d_y = rows_view(d_y), .d_x = {rows_view(d_x)}, .act = act_});
    add_to(results_.values, y);
    add_to(results_.gradients, d_x);
  }

  void run_glu() {
    const Tensor b = random_rows(), y = rows(), d_y = random_rows(), d_a = rows(), d_b = rows();
    glu_forward(context_, {.a = rows_view(argument_), .b = rows_view(b), .y = rows_view(y), .act = act_});
    glu_backward(context_, {.a = rows_view(argument_),
                            .b = rows_view(b),
                            .d_y = rows_view(d_y),
                            .d_a = {rows_view(d_a)},
                            .d_b = {rows_view(d_b)},
                            .act = act_});
    add_to(results_.values, y);
    add_to(results_.values, d_b);
    add_to(results_.gradients, d_a);
  }

  void run_norm(GatePosition position) {
    const DType wide = accumulate_type(dtype_);
    const Tensor x = random_rows(), y = rows(), d_y = random_rows(), d_x = rows(), d_gate = rows();
    const Tensor weight = random_tensor({kCols}, dtype_), inv_std = tensor({kRows}, wide);
    const NormOptions options{.gate_act = act_, .gate_position = position};
    NormForwardArgs forward;
    forward.x = rows_view(x);
    forward.gate = rows_view(argument_);
    forward.weight = vector_view(weight);
    forward.y = rows_view(y);
    forward.inv_std = vector_view(inv_std);
    forward.options = options;
    norm_forward(context_, forward);
    NormBackwardArgs backward;
    backward.x = forward.x;
    backward.gate = forward.gate;
    backward.weight = forward.weight;
    backward.inv_std = forward.inv_std;
    backward.d_y = rows_view(d_y);
    backward.d_x = {rows_view(d_x)};
    backward.d_gate = {rows_view(d_gate)};
    backward.options = options;
    norm_backward(context_, backward);
    add_to(results_.values, y);
    add_to(results_.values, d_x);
    add_to(results_.gradients, d_gate);
  }

  template <class Options>
  void run_lrpe(const Options& options, int64_t y_dim, const auto& forward, const auto& backward) {
    const Tensor x = argument_.reshape({1, kRows, kHeads, kHeadDim});
    const Tensor theta = random_tensor({1, kHeadDim / 2}, accumulate_type(dtype_));
    const Tensor y = tensor({1, kRows, kHeads, y_dim}, dtype_), d_x = tensor(x.shape(), dtype_);
    const Tensor d_y = random_tensor(y.shape(), dtype_);
    LrpeForwardArgs<Options> forward_args;
    forward_args.x = heads_view(x);
    forward_args.y = heads_view(y);
    forward_args.theta = rows_view(theta);
    forward_args.options = options;
    forward(context_, forward_args);
    LrpeBackwardArgs<Options> backward_args;
    backward_args.x = heads_view(x);
    backward_args.d_y = heads_view(d_y);
    backward_args.theta = rows_view(theta);
    backward_args.d_x = {heads_view(d_x)};
    backward_args.options = options;
    backward(context_, backward_args);
    add_to(results_.values, y);
    add_to(results_.gradients, d_x);
  }

  void run_lrpe_rotate() {
    run_lrpe(LrpeRotateOptions{.act = act_}, kHeadDim, lrpe_rotate_forward, lrpe_rotate_backward);
  }

  void run_lrpe_cosine() {
    LrpeCosineOptions options{.act = act_, .axes = 2};
    options.extents[0] = 2;
    options.extents[1] = kRows / 2;
    run_lrpe(options, 2 * kHeadDim, lrpe_cosine_forward, lrpe_cosine_backward);
  }

  Context& context_;
  const DType dtype_;
  const Activation act_;
  const bool only_elementwise_;
  const Tensor argument_;
  Random random_{11, RandomStream::test};
  ActivationResults results_;
};

// The numbers at which an activation may fail, in a dtype: infinities, NaN, zeros of both signs, its largest and
// smallest numbers, and where exponentials overflow.
inline std::vector<double> activation_edges(DType dtype) {
  const double infinity = std::numeric_limits<double>::infinity();
  const double largest = dtype == DType::float16 ? 65504.0 : dtype == DType::float64 ? 1e300 : 0x1.fep126;
  const double smallest = dtype == DType::float16 ? 0x1p-24 : dtype == DType::float64 ? 0x1p-1074 : 0x1p-133;
  return {infinity,  -infinity, std::nan(""), 0.0,   -0.0,   largest, -largest, smallest,
          -smallest, 88.0,      -88.0,        104.0, -104.0, 745.0,   -745.0};
}

// Arguments of both signs, 0 among them.
inline std::vector<double> activation_arguments() {
  Random random(12, RandomStream::test);
  std::vector<double> values(ActivationKernels::kSize);
  for (double& value : values) value = (static_cast<double>(random.next_below(511)) - 255.0) / 64.0;
  values[5] = 0.0;
  return values;
}

// Some of these, with `edge` in place of one in two rows.
inline std::vector<double> activation_arguments_with(double edge) {
  std::vector<double> values = activation_arguments();
  values[0] = values[ActivationKernels::kCols + 9] = edge;
  return values;
}

// The value of an activation and its derivative: limits at infinity, NaN at NaN.
struct ActivationFormula {
  double value, derivative;
};

inline ActivationFormula activation_formula(Activation act, double x) {
  const double s = 1.0 / (1.0 + std::exp(-x)), other = 1.0 / (1.0 + std::exp(x));  // other = 1 - s
  const double bounded = std::isinf(x) ? std::copysign(1e300, x) : x;
  switch (act) {
    case Activation::none:
      return {x, 1.0};
    case Activation::relu:
      return x > 0.0 ? ActivationFormula{x, 1.0} : ActivationFormula{0.0 * bounded, 0.0 * bounded};
    case Activation::sigmoid:
      return {s, s * other};
    case Activation::silu:
      return {x > 0.0 ? x * s : bounded * s, s * (1.0 + bounded * other)};
    case Activation::elu1:
      return x > 0.0 ? ActivationFormula{x + 1.0, 1.0} : ActivationFormula{std::exp(x), std::exp(x)};
    case Activation::relu2:
      return x > 0.0 ? ActivationFormula{x * x, 2.0 * x} : ActivationFormula{0.0 * bounded, 0.0 * bounded};
    case Activation::tanh:
      return {std::tanh(x), 1.0 - std::tanh(x) * std::tanh(x)};
    case Activation::gelu: {
      const double below = std::erfc(-x / std::sqrt(2.0)) / 2.0, near = std::clamp(x, -1e3, 1e3);
      return {x > 0.0 ? x * below : bounded * below,
              below + near * std::exp(-near * near / 2.0) / std::sqrt(2.0 * std::acos(-1.0))};
    }
    case Activation::gelu_tanh: {
      const double near = std::clamp(x, -1e3, 1e3), factor = 2.0 * std::sqrt(2.0 / std::acos(-1.0));
      const double v = factor * (near + 0.044715 * near * near * near);
      const double sigmoid = 1.0 / (1.0 + std::exp(-v)), rest = 1.0 / (1.0 + std::exp(v));
      const double slope = factor * (near + 3.0 * 0.044715 * near * near * near);
      return {x > 0.0 ? x * sigmoid : bounded * sigmoid, sigmoid * (1.0 + slope * rest)};
    }
  }
  fail("no formula for activation {}", static_cast<int>(act));
}

// What every kernel gives for one activation: what it gives without an activation for the activation's values, and
// those gradients times the derivatives.
inline ActivationResults expected_activation_results(Context& context, DType dtype, Activation act,
                                                     const std::vector<double>& arguments) {
  std::vector<double> values;
  for (const double x : arguments) values.push_back(activation_formula(act, x).value);
  ActivationResults results =
      ActivationKernels(context, dtype, Activation::none, values, !is_fused_activation(act)).run();
  for (size_t i = 0; i < results.gradients.size(); ++i) {
    const double derivative = activation_formula(act, arguments[i % arguments.size()]).derivative;
    const bool is_flat = (act == Activation::relu || act == Activation::relu2) && derivative == 0.0;
    results.gradients[i] = is_flat ? 0.0 : results.gradients[i] * derivative;
  }
  return results;
}

// NaN where NaN is expected, infinity where that is, else near: within `tolerance` of 1 or of the number expected.
inline void expect_alike(const std::vector<double>& found, const std::vector<double>& expected, DType dtype,
                         double tolerance, const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  const double largest = dtype == DType::float16 ? 65504.0 : dtype == DType::float64 ? 1e308 : 3.38e38;
  for (size_t i = 0; i < expected.size(); ++i) {
    const bool is_near = std::abs(found[i] - expected[i]) <= tolerance * (1.0 + std::abs(expected[i]));
    const bool is_same = found[i] == expected[i] || (std::isnan(found[i]) && std::isnan(expected[i])) ||
                         (std::isinf(found[i]) && std::abs(expected[i]) > largest && found[i] * expected[i] > 0.0);
    ASSERT_TRUE(is_near || is_same) << what << " " << i << ": found " << found[i] << ", expected " << expected[i];
  }
}

// Error of a result in a dtype: its rounding, with room for the order of summation.
inline double activation_tolerance(DType dtype) {
  return dtype == DType::float64 ? 1e-12 : dtype == DType::float32 ? 1e-5 : dtype == DType::bfloat16 ? 8e-3 : 1e-3;
}

// The gradients of the arguments x of relu or relu2, at most one row, for the upstream gradient `upstream` of every
// element: of the activation itself, of a glu whose other factor is 1, and of relu in both position encodings with all
// angles 0.
inline std::vector<std::vector<double>> relu_gradients(Context& context, Activation act, DType dtype,
                                                       const std::vector<double>& x, double upstream) {
  const auto size = static_cast<int64_t>(x.size());
  const auto filled = [&](int64_t count, double value) {
    const Tensor tensor = Tensor::empty(context, {1, count}, dtype);
    write_values(context, tensor, std::vector<double>(static_cast<size_t>(count), value));
    return tensor;
  };
  const Tensor argument = Tensor::empty(context, {1, size}, dtype), d_x = Tensor::empty(context, {1, size}, dtype);
  write_values(context, argument, x);
  const Tensor d_y = filled(size, upstream), both = filled(2 * size, upstream), ones = filled(size, 1.0);
  const Tensor theta = filled(size, 0.0);
  std::vector<std::vector<double>> results;
  activation_backward(context, {.x = rows_view(argument), .d_y = rows_view(d_y), .d_x = {rows_view(d_x)}, .act = act});
  results.push_back(read_values(context, d_x));
  glu_backward(context, {.a = rows_view(argument),
                         .b = rows_view(ones),
                         .d_y = rows_view(d_y),
                         .d_a = {rows_view(d_x)},
                         .d_b = {},
                         .act = act});
  results.push_back(read_values(context, d_x));
  if (!is_fused_activation(act)) return results;
  const auto run_lrpe = [&](auto args, const Tensor& d_y, const Tensor& theta, const auto& backward) {
    args.x = heads_view(argument.reshape({1, 1, size}));
    args.d_y = heads_view(d_y.reshape({1, 1, d_y.numel()}));
    args.theta = rows_view(theta);
    args.d_x = {heads_view(d_x.reshape({1, 1, size}))};
    args.options.act = act;
    backward(context, args);
    results.push_back(read_values(context, d_x));
  };
  run_lrpe(LrpeRotateBackwardArgs{}, d_y, theta.slice(1, 0, size / 2), lrpe_rotate_backward);
  LrpeCosineBackwardArgs cosine;
  cosine.options.extents[0] = 1;
  run_lrpe(cosine, both, theta, lrpe_cosine_backward);
  return results;
}

inline constexpr DType kActivationDTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

// Each of these activations in every kernel that computes it, with arguments at which it may fail.
inline void expect_limits(Context& context, std::span<const ActivationName> activations) {
  Context cpu(Device{}, {.threads = 1});
  for (const DType dtype : kActivationDTypes) {
    for (const auto& [name, act] : activations) {
      for (const double edge : activation_edges(dtype)) {
        SCOPED_TRACE(::testing::Message() << heddle::name(dtype) << " " << name << " at " << edge);
        const std::vector<double> arguments = activation_arguments_with(edge);
        const ActivationResults found = ActivationKernels(context, dtype, act, arguments).run();
        const ActivationResults expected = expected_activation_results(cpu, DType::float64, act, arguments);
        expect_alike(found.values, expected.values, dtype, 4 * activation_tolerance(dtype), "value");
        expect_alike(found.gradients, expected.gradients, dtype, 8 * activation_tolerance(dtype), "gradient");
      }
    }
  }
}

// A unit that is off passes nothing, not even infinity or NaN.
inline void expect_flat_relu(Context& context, Activation act) {
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> x = {-1.0, 0.0, -0.0, -infinity, 1.0, infinity};
  for (const DType dtype : kActivationDTypes) {
    for (const double upstream : {infinity, -infinity, std::nan("")}) {
      SCOPED_TRACE(::testing::Message() << heddle::name(dtype) << " upstream " << upstream);
      const std::vector<std::vector<double>> gradients = relu_gradients(context, act, dtype, x, upstream);
      for (const std::vector<double>& d_x : gradients) {
        for (size_t i = 0; i < 4; ++i) EXPECT_EQ(d_x[i], 0.0) << i;
      }
      for (size_t i = 4; i < 6; ++i) {
        EXPECT_EQ(std::isnan(gradients[0][i]), std::isnan(upstream)) << i;
        if (!std::isnan(upstream)) {
          EXPECT_EQ(gradients[0][i], upstream) << i;
        }
      }
    }
  }
}

// glu of numbers whose products in pairs leave the range of the dtype while the result is in it.
inline void expect_glu_within_range(Context& context, std::span<const ActivationName> activations) {
  std::vector<double> a_numbers, b_numbers, d_y_numbers;
  for (const double a : {1e-25, 1.5, 1e25, -1e-25, -1.5, -1e25}) {
    for (const double b : {1e-25, 1.5, 1e25}) {
      for (const double d_y : {1e-25, 1.5, 1e25}) {
        a_numbers.push_back(a);
        b_numbers.push_back(b);
        d_y_numbers.push_back(d_y);
      }
    }
  }
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const auto tensor = [&](const std::vector<double>& values) {
      const Tensor result = Tensor::empty(context, {1, static_cast<int64_t>(values.size())}, dtype);
      write_values(context, result, values);
      return result;
    };
    const Tensor a = tensor(a_numbers), b = tensor(b_numbers), d_y = tensor(d_y_numbers);
    const std::vector<double> gates = read_values(context, a), factors = read_values(context, b),
                              upstream = read_values(context, d_y);
    for (const ActivationName& chosen : activations) {
      const Activation act = chosen.activation;
      const Tensor y = tensor(a_numbers), d_a = tensor(a_numbers), d_b = tensor(a_numbers);
      glu_forward(context, {.a = rows_view(a), .b = rows_view(b), .y = rows_view(y), .act = act});
      glu_backward(context, {.a = rows_view(a),
                             .b = rows_view(b),
                             .d_y = rows_view(d_y),
                             .d_a = {rows_view(d_a)},
                             .d_b = {rows_view(d_b)},
                             .act = act});
      const auto expect = [&](const char* what, const Tensor& found, const auto& formula) {
        const std::vector<double> values = read_values(context, found);
        for (size_t i = 0; i < values.size(); ++i) {
          const double expected = formula(activation_formula(act, gates[i]), i);
          if (std::abs(expected) > 3e38) continue;
          EXPECT_NEAR(values[i], expected, activation_tolerance(dtype) * std::abs(expected) + 1e-37)
              << what << " of " << chosen.name << " in " << name(dtype) << ", a " << gates[i] << ", b " << factors[i]
              << ", d_y " << upstream[i];
        }
      };
      expect("y", y, [&](const ActivationFormula& gate, size_t i) { return gate.value * factors[i]; });
      expect("d_a", d_a,
             [&](const ActivationFormula& gate, size_t i) { return upstream[i] * gate.derivative * factors[i]; });
      expect("d_b", d_b, [&](const ActivationFormula& gate, size_t i) { return upstream[i] * gate.value; });
    }
  }
}

}  // namespace heddle::kernels
