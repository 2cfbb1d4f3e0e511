// Every kernel that takes an activation, run with one of them: what the tests of the CPU and of the GPU share.
#pragma once

#include <vector>

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

  ActivationKernels(Context& context, DType dtype, Activation act, const std::vector<double>& argument)
      : context_(context), dtype_(dtype), act_(act), argument_(tensor({kRows, kCols}, dtype)) {
    write_values(context, argument_, argument);
  }

  ActivationResults run() {
    run_activation();
    run_glu();
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
  const Tensor argument_;
  Random random_{11, RandomStream::test};
  ActivationResults results_;
};

// Arguments of both signs, 0 among them.
inline std::vector<double> activation_arguments() {
  Random random(12, RandomStream::test);
  std::vector<double> values(ActivationKernels::kSize);
  for (double& value : values) value = (static_cast<double>(random.next_below(511)) - 255.0) / 64.0;
  values[5] = 0.0;
  return values;
}

}  // namespace heddle::kernels
