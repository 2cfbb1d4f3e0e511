// log_sigmoid where a table of cases does not go: infinities, NaN, and numbers so large or small that digits could go.
#include "layers/ops/log_sigmoid.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/layers/numbers.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::log_sigmoid_test {
namespace {

class LogSigmoid : public OnDevices {};

TEST_P(LogSigmoid, KeepsItsDigitsAndTakesItsLimits) {
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    const double largest = dtype == DType::float64 ? 1e300 : dtype == DType::float16 ? 65504.0 : 0x1.fep126;
    const std::vector<double> x = {kInfinity, -kInfinity, std::nan(""), 0.0,   -0.0,  largest, -largest,
                                   0x1p-24,   -0x1p-24,   88.0,         -88.0, 15.25, -15.25,  0.75};
    const Tensor values = Tensor::empty(context(), {2, 7}, dtype);
    write_values(context(), values, x);
    const DType wide = accumulate_type(dtype);
    for (const double divisor : {1.0, 16.0}) {
      Tape tape(context());
      Gradient d_x;
      const Variable y = log_sigmoid(tape, tape.leaf(values, d_x, "x"), divisor);
      EXPECT_EQ(y.dtype(), wide);
      const Tensor upstream = Tensor::empty(context(), {2, 7}, wide);
      write_values(context(), upstream, std::vector<double>(14, 3.0));
      tape.backward(y, upstream);
      const std::vector<double> found = read_values(context(), y.value), gradient = read_values(context(), d_x.tensor);
      const double roundings = wide == DType::float64 ? 8 * 0x1p-53 : 8 * 0x1p-24;
      const double stored = dtype == DType::bfloat16 ? 0x1p-8 : dtype == DType::float16 ? 0x1p-11 : 0.0;
      const double smallest = dtype == DType::float16 ? 0x1p-24 : 0x1p-126;
      for (size_t i = 0; i < x.size(); ++i) {
        SCOPED_TRACE(::testing::Message() << name(dtype) << " " << x[i] << " divisor " << divisor);
        if (std::isnan(x[i])) {
          EXPECT_TRUE(std::isnan(found[i]) && std::isnan(gradient[i]));
          continue;
        }
        const double wanted = ((x[i] > 0.0 ? 0.0 : x[i]) - std::log1p(std::exp(-std::abs(x[i])))) / divisor;
        const double slope = 3.0 / (1.0 + std::exp(x[i])) / divisor;
        if (std::isinf(wanted)) {
          EXPECT_EQ(found[i], wanted);
        } else {
          EXPECT_NEAR(found[i], wanted, roundings * std::abs(wanted) + 0x1p-126);
        }
        EXPECT_NEAR(gradient[i], slope, (roundings + stored) * slope + smallest);
      }
    }
  }
}

HEDDLE_ON_DEVICES(LogSigmoid);

}  // namespace
}  // namespace heddle::test::log_sigmoid_test
