// The table of activations, and each of them inside every kernel that takes one: a kernel with an activation does what
// the kernel without it does to the activation's values.
#include "kernels/common/activation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/runtime/error.h"
#include "tests/kernels/activation_kernels.h"

namespace heddle::kernels {
namespace {

TEST(Activations, HaveOneNameEach) {
  std::set<std::string_view> names;
  std::set<Activation> activations;
  for (const auto& [name, activation] : kElementwiseActivations) {
    names.insert(name);
    activations.insert(activation);
    EXPECT_EQ(kernels::name(activation), name);
  }
  EXPECT_EQ(names, (std::set<std::string_view>{"none", "relu", "sigmoid", "silu", "elu1", "relu2", "tanh", "gelu",
                                               "gelu_tanh"}));
  EXPECT_EQ(activations.size(), names.size());
}

TEST(Activations, OfFusedKernelsComeFirst) {
  EXPECT_EQ(kActivations.size(), 5u);
  for (const ActivationName& one : kElementwiseActivations) {
    const bool is_fused = std::any_of(kActivations.begin(), kActivations.end(),
                                      [&](const auto& known) { return known.name == one.name; });
    EXPECT_EQ(is_fused_activation(one.activation), is_fused) << one.name;
  }
}

TEST(Activations, EveryKernelComputesAllOfThem) {
  const std::vector<double> arguments = activation_arguments();
  for (const auto& [name, act] : kElementwiseActivations) {
    SCOPED_TRACE(name);
    Context context;
    const ActivationResults found = ActivationKernels(context, DType::float64, act, arguments).run();
    const ActivationResults expected = expected_activation_results(context, DType::float64, act, arguments);
    expect_alike(found.values, expected.values, DType::float64, 1e-11, "value");
    expect_alike(found.gradients, expected.gradients, DType::float64, 1e-11, "gradient");
  }
}

TEST(Activations, EveryKernelTakesTheLimits) {
  Context context(Device{}, {.threads = 1});
  expect_limits(context, kElementwiseActivations);
}

TEST(Activations, GluStaysWithinTheRange) {
  Context context;
  expect_glu_within_range(context, kElementwiseActivations);
}

TEST(Activations, ReluIsFlatBelowZero) {
  Context context;
  for (const Activation act : {Activation::relu, Activation::relu2}) expect_flat_relu(context, act);
}

}  // namespace
}  // namespace heddle::kernels
