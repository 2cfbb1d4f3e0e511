// Gradients of the large cases of every operator against the derivative of its unfused specification along a random
// direction. A finite difference of every element would take too long there, and another dtype of the same kernel may
// have the same fault; one row that is missing in a gradient changes this one number by much more than the tolerance.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "core/runtime/error.h"
#include "tests/layers/on_devices.h"
#include "tests/layers/operator_runner.h"

namespace heddle::test::large_gradients_test {
namespace {

using Numbers = std::vector<double>;

ReferenceTensor draw(const OperatorCase& op_case, const std::string& name, const Shape& shape) {
  return draw_numbers(op_case, name, {.name = name, .shape = shape}, DType::float64);
}

// The sum of all outputs, each number times that of the upstream gradient that run_case() gives it.
double weighted_outputs(const OperatorCase& op_case, const ReferenceTensors& inputs) {
  double sum = 0.0;
  for (const auto& [name, output] : op_case.reference(parse_config(op_case.options), inputs, DType::float64)) {
    const ReferenceTensor upstream = draw(op_case, "d_" + name, output.shape);
    for (size_t i = 0; i < output.values.size(); ++i) sum += output.values[i] * upstream.values[i];
  }
  return sum;
}

void gradients_match_along_a_direction(Context& context, const OperatorCase& op_case) {
  const ReferenceTensors inputs = case_inputs(op_case, DType::float64);
  const RunResult found = run_case(context, op_case, inputs, {.dtype = DType::float64});
  for (const CaseInput& input : op_case.inputs) {
    const std::string& name = input.name;
    const bool is_angle = name == "theta";
    if (!found.gradients.contains(name)) continue;
    const ReferenceTensor& gradient = found.gradients.at(name);
    const ReferenceTensor direction = draw(op_case, "direction of " + name, gradient.shape);
    const auto moved = [&](double step) {
      ReferenceTensors result = inputs;
      Numbers& numbers = result.at(name).values;
      for (size_t i = 0; i < numbers.size(); ++i) numbers[i] += step * direction.values[i];
      return weighted_outputs(op_case, result);
    };
    const double step = is_angle ? 1e-9 : 3e-6;  // an angle is multiplied by positions of up to a million
    const double wanted = (moved(step) - moved(-step)) / (2.0 * step);
    double derivative = 0.0, squares = 0.0;
    for (size_t i = 0; i < gradient.values.size(); ++i) {
      const double term = gradient.values[i] * direction.values[i];
      derivative += term;
      squares += term * term;
    }
    EXPECT_NEAR(derivative, wanted, 2e-5 * std::sqrt(squares) + 1e-9) << "gradient of " << name;
  }
}

// The reference multiplies angles by positions in double, which has too few digits for these; LrpeAngles checks them.
bool has_large_angles(const OperatorCase& op_case) {
  return std::any_of(op_case.inputs.begin(), op_case.inputs.end(),
                     [](const CaseInput& input) { return input.name == "theta" && input.scale > 1.0; });
}

class LargeGradients : public ::testing::TestWithParam<std::string> {
 protected:
  static constexpr int kCases = 20;  // then every fourth

  void run(Device device) {
    Context context(device, {.threads = 2});
    int large = 0;
    for (const OperatorCase& op_case : built_in_registry().find(GetParam()).cases_on(device.type)) {
      if (!op_case.large || has_large_angles(op_case) || (large++ >= kCases && large % 4 != 0)) continue;
      SCOPED_TRACE(op_case.name);
      gradients_match_along_a_direction(context, op_case);
    }
  }
};
class LargeGradientsGpu : public LargeGradients {
 protected:
  void SetUp() override {
    try {
      Context context({DeviceType::cuda});
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
};

TEST_P(LargeGradients, MatchAlongADirection) { run({}); }
TEST_P(LargeGradientsGpu, MatchAlongADirection) { run({DeviceType::cuda}); }

HEDDLE_FOR_OPERATORS(LargeGradients);
HEDDLE_FOR_OPERATORS(LargeGradientsGpu);

}  // namespace
}  // namespace heddle::test::large_gradients_test
