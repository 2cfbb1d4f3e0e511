// Each activation inside every kernel that takes one, on the GPU in all dtypes against the CPU in float64.
#include <vector>

#include "tests/cuda/gpu_test.h"
#include "tests/kernels/activation_kernels.h"

namespace heddle::kernels {
namespace {

class ActivationsGpu : public GpuTest {};

TEST_F(ActivationsGpu, EveryKernelComputesAllOfThem) {
  const std::vector<double> arguments = activation_arguments();
  for (const DType dtype : kFloating) {
    for (const auto& [name, activation] : kElementwiseActivations) {
      SCOPED_TRACE(name);
      expect_same_as_cpu(
          dtype,
          [&, act = activation](Context& context, DType type) -> Results {
            const ActivationResults results = ActivationKernels(context, type, act, arguments).run();
            return {results.values, results.gradients};
          },
          4.0);
    }
  }
}

TEST_F(ActivationsGpu, EveryKernelTakesTheLimits) {
  Context context({DeviceType::cuda, 0});
  expect_limits(context, kElementwiseActivations);
}

TEST_F(ActivationsGpu, GluStaysWithinTheRange) {
  Context context({DeviceType::cuda, 0});
  expect_glu_within_range(context, kElementwiseActivations);
}

TEST_F(ActivationsGpu, ReluIsFlatBelowZero) {
  Context context({DeviceType::cuda, 0});
  for (const Activation act : {Activation::relu, Activation::relu2}) expect_flat_relu(context, act);
}

}  // namespace
}  // namespace heddle::kernels
