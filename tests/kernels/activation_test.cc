// The table of activations, and each of them inside every kernel that takes one: a kernel with an activation does what
// the kernel without it does to the activation's values.
#include "kernels/common/activation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "core/runtime/error.h"
#include "tests/kernels/activation_kernels.h"

namespace heddle::kernels {
namespace {

struct Formula {
  double value, derivative;
};

Formula formula(Activation act, double x) {
  const double s = 1.0 / (1.0 + std::exp(-x));
  switch (act) {
    case Activation::none:
      return {x, 1.0};
    case Activation::relu:
      return x > 0.0 ? Formula{x, 1.0} : Formula{0.0, 0.0};
    case Activation::sigmoid:
      return {s, s * (1.0 - s)};
    case Activation::silu:
      return {x * s, s * (1.0 + x * (1.0 - s))};
    case Activation::elu1:
      return x > 0.0 ? Formula{x + 1.0, 1.0} : Formula{std::exp(x), std::exp(x)};
  }
  fail("no formula for activation {}", static_cast<int>(act));
}

TEST(Activations, HaveOneNameEach) {
  std::set<std::string_view> names;
  std::set<Activation> activations;
  for (const auto& [name, activation] : kActivations) {
    names.insert(name);
    activations.insert(activation);
  }
  EXPECT_EQ(names, (std::set<std::string_view>{"none", "relu", "sigmoid", "silu", "elu1"}));
  EXPECT_EQ(activations.size(), names.size());
}

TEST(Activations, EveryKernelComputesAllOfThem) {
  const std::vector<double> arguments = activation_arguments();
  for (const auto& [name, act] : kActivations) {
    SCOPED_TRACE(name);
    std::vector<double> values, derivatives;
    for (const double x : arguments) {
      values.push_back(formula(act, x).value);
      derivatives.push_back(formula(act, x).derivative);
    }
    Context context;
    const ActivationResults found = ActivationKernels(context, DType::float64, act, arguments).run();
    const ActivationResults plain = ActivationKernels(context, DType::float64, Activation::none, values).run();
    ASSERT_EQ(found.values.size(), plain.values.size());
    for (size_t i = 0; i < plain.values.size(); ++i) {
      ASSERT_NEAR(found.values[i], plain.values[i], 1e-11 * (1.0 + std::abs(plain.values[i]))) << "value " << i;
    }
    ASSERT_EQ(found.gradients.size(), plain.gradients.size());
    for (size_t i = 0; i < plain.gradients.size(); ++i) {
      const double wanted = plain.gradients[i] * derivatives[i % derivatives.size()];
      ASSERT_NEAR(found.gradients[i], wanted, 1e-11 * (1.0 + std::abs(wanted))) << "gradient " << i;
    }
  }
}

}  // namespace
}  // namespace heddle::kernels
