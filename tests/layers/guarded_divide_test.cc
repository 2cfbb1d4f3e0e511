// guarded_divide at its guard, where a table of random cases does not go.
#include "layers/ops/guarded_divide.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::guarded_divide_test {
namespace {

class GuardedDivide : public OnDevices {};

// A divisor that is eps itself has a gradient, as where PyTorch clamps from below; one below it has none.
TEST_P(GuardedDivide, TakesTheGradientOfADivisorAtTheGuard) {
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    SCOPED_TRACE(name(dtype));
    const Tensor x = Tensor::empty(context(), {1, 6}, dtype), divisor = Tensor::empty(context(), {1, 3}, dtype);
    write_values(context(), x, {1.0, 2.0, 3.0, 4.0, 5.0, 6.0});
    write_values(context(), divisor, {0.5, 0.25, 2.0});
    Tape tape(context());
    Gradient d_x, d_divisor;
    const Variable y = guarded_divide(tape, tape.leaf(x, d_x, "x"), tape.leaf(divisor, d_divisor, "divisor"), 0.5);
    const Tensor upstream = Tensor::empty(context(), {1, 6}, dtype);
    write_values(context(), upstream, {1.0, 0.5, 2.0, 1.0, 4.0, 2.0});
    const std::vector<double> found = read_values(context(), y.value);
    EXPECT_EQ(found, (std::vector<double>{2.0, 4.0, 6.0, 8.0, 2.5, 3.0}));
    tape.backward(y, upstream);
    EXPECT_EQ(read_values(context(), d_x.tensor), (std::vector<double>{2.0, 1.0, 4.0, 2.0, 2.0, 1.0}));
    // -(1 * 2 + 0.5 * 4) / 0.5, nothing, -(4 * 2.5 + 2 * 3) / 2
    EXPECT_EQ(read_values(context(), d_divisor.tensor), (std::vector<double>{-8.0, 0.0, -8.0}));
  }
}

TEST_P(GuardedDivide, ADivisorOfNaNIsNoGuard) {
  const Tensor x = Tensor::empty(context(), {1, 2}, DType::float32);
  const Tensor divisor = Tensor::empty(context(), {1, 1}, DType::float32);
  write_values(context(), x, {1.0, 2.0});
  write_values(context(), divisor, {std::nan("")});
  Tape tape(context());
  const Variable y = guarded_divide(tape, tape.constant(x), tape.constant(divisor), 0.5);
  for (const double value : read_values(context(), y.value)) EXPECT_TRUE(std::isnan(value));
}

// Below the least number of the type of arithmetic, eps is no other number: 0 is no divisor, and has no gradient.
TEST_P(GuardedDivide, ByAnEpsBelowTheLeastNumber) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    for (const double eps : {1e-50, 1e-40, 1e-300}) {
      SCOPED_TRACE(fmt::format("{} {}", name(dtype), eps));
      const Tensor x = Tensor::empty(context(), {1, 8}, dtype), divisor = Tensor::empty(context(), {1, 4}, dtype);
      write_values(context(), x, {0.0, 1.0, -2.0, 0.0, 1.0, 3.0, 0.0, 0.0});
      write_values(context(), divisor, {0.0, -3.0, 2.0, 0.0});
      Tape tape(context());
      Gradient d_x, d_divisor;
      const Variable y = guarded_divide(tape, tape.leaf(x, d_x, "x"), tape.leaf(divisor, d_divisor, "divisor"), eps);
      const double infinity = std::numeric_limits<double>::infinity();
      EXPECT_EQ(read_values(context(), y.value),
                (std::vector<double>{0.0, infinity, -infinity, 0.0, 0.5, 1.5, 0.0, 0.0}));
      const Tensor upstream = Tensor::empty(context(), {1, 8}, dtype);
      write_values(context(), upstream, {0.0, 1.0, 0.0, -1.0, 4.0, 2.0, 0.0, 1.0});
      tape.backward(y, upstream);
      EXPECT_EQ(read_values(context(), d_x.tensor),
                (std::vector<double>{0.0, infinity, 0.0, -infinity, 2.0, 1.0, 0.0, infinity}));
      EXPECT_EQ(read_values(context(), d_divisor.tensor), (std::vector<double>{0.0, 0.0, -2.5, 0.0}));
    }
  }
}

// An eps that float holds with few digits counts with all of them; and a sum of products beyond float, of which the
// divisor leaves a number of float.
TEST_P(GuardedDivide, NumbersNearTheEndsOfTheRange) {
  const Tensor x = Tensor::empty(context(), {1, 4}, DType::float32);
  const Tensor divisor = Tensor::empty(context(), {1, 2}, DType::float32);
  write_values(context(), x, {1e-30, 1e-20, 1e30, 1e30});
  write_values(context(), divisor, {0.0, 1e10});
  Tape tape(context());
  Gradient d_x, d_divisor;
  const Variable y = guarded_divide(tape, tape.leaf(x, d_x, "x"), tape.leaf(divisor, d_divisor, "divisor"), 1.2345e-43);
  const std::vector<double> found = read_values(context(), y.value);
  EXPECT_NEAR(found[0], 1e-30 / 1.2345e-43, 1e-6 * found[0]);
  EXPECT_NEAR(found[1], 1e-20 / 1.2345e-43, 1e-6 * found[1]);
  const Tensor upstream = Tensor::empty(context(), {1, 4}, DType::float32);
  write_values(context(), upstream, {1e-20, 1e-20, 1e20, 1e20});
  tape.backward(y, upstream);
  EXPECT_NEAR(read_values(context(), d_x.tensor)[0], 1e-20 / 1.2345e-43, 1e-6 * 1e-20 / 1.2345e-43);
  EXPECT_EQ(read_values(context(), d_divisor.tensor)[0], 0.0);
  EXPECT_NEAR(read_values(context(), d_divisor.tensor)[1], -2e30, 1e25);
}

HEDDLE_ON_DEVICES(GuardedDivide);

}  // namespace
}  // namespace heddle::test::guarded_divide_test
