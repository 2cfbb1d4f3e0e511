// Elementwise kernels where a layer does not take them: in place, and with every pair of dtypes.
#include "kernels/dense/elementwise.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"

namespace heddle::kernels {
namespace {

constexpr DType kTypes[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

// Multiples of 1/8, so that halves of them are numbers of every dtype too.
std::vector<double> numbers(int64_t count, uint64_t seed) {
  Random random(seed, RandomStream::test);
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) value = (static_cast<double>(random.next_below(63)) - 31.0) / 8.0;
  return values;
}

class Elementwise : public ::testing::Test {
 protected:
  Tensor tensor(DType dtype, const std::vector<double>& values) {
    const Tensor result = Tensor::empty(context_, {3, static_cast<int64_t>(values.size()) / 3}, dtype);
    write_values(context_, result, values);
    return result;
  }
  std::vector<double> read(const Tensor& values) { return read_values(context_, values); }

  Context context_;
};

TEST_F(Elementwise, GluMayWriteEitherGradientOverTheUpstreamOne) {
  for (const DType dtype : kTypes) {
    for (const ActivationName& one : kElementwiseActivations) {
      const int64_t count = 3 * 4099;
      const Tensor a = tensor(dtype, numbers(count, 1)), b = tensor(dtype, numbers(count, 2));
      const auto run = [&](bool over_a, bool over_b) {
        const Tensor d_y = tensor(dtype, numbers(count, 3));
        const Tensor d_a = over_a ? d_y : tensor(dtype, numbers(count, 4));
        const Tensor d_b = over_b ? d_y : tensor(dtype, numbers(count, 4));
        glu_backward(context_,
                     {rows_view(a), rows_view(b), rows_view(d_y), {rows_view(d_a)}, {rows_view(d_b)}, one.activation});
        return std::vector<std::vector<double>>{read(d_a), read(d_b)};
      };
      const auto apart = run(false, false);
      EXPECT_EQ(run(true, false), apart) << name(dtype) << " " << one.name;
      EXPECT_EQ(run(false, true), apart) << name(dtype) << " " << one.name;
    }
  }
}

// d_y times the value is infinite, and the derivative of the gate brings the product back, or is 0.
TEST_F(Elementwise, GluOfAProductBeyondTheRange) {
  const Tensor a = tensor(DType::float32, {200.0, -30.0, 30.0}), b = tensor(DType::float32, {1e30, 1e25, 1e25});
  const Tensor d_y = tensor(DType::float32, {1e20, -1e20, 1e20}), d_a = tensor(DType::float32, {0.0, 0.0, 0.0});
  glu_backward(context_, {rows_view(a), rows_view(b), rows_view(d_y), {rows_view(d_a)}, {}, Activation::sigmoid});
  const std::vector<double> found = read(d_a);
  const double wanted = 1e20 * std::exp(-30.0) * 1e25;
  EXPECT_EQ(found[0], 0.0);
  EXPECT_NEAR(found[1], -wanted, 1e-5 * wanted);
  EXPECT_NEAR(found[2], wanted, 1e-5 * wanted);
}

TEST_F(Elementwise, AccumulateTakesScaleAndModeBetweenAllTypes) {
  const int64_t count = 3 * 50;
  const std::vector<double> values = numbers(count, 1), old = numbers(count, 2);
  for (const DType from : kTypes) {
    for (const DType to : kTypes) {
      for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
        const Tensor target = tensor(to, old);
        accumulate(context_, {rows_view(tensor(from, values)), {rows_view(target), mode}, -0.5});
        std::vector<double> wanted(values.size());
        for (size_t i = 0; i < wanted.size(); ++i) {
          wanted[i] = -0.5 * values[i] + (mode == GradientMode::accumulate ? old[i] : 0.0);
        }
        EXPECT_EQ(read(target), wanted) << name(from) << " to " << name(to);
      }
    }
  }
}

TEST_F(Elementwise, ScaleReadsItsQuotientFromMemory) {
  const int64_t count = 3 * 4099;
  for (const DType to : kTypes) {
    const DType from = accumulate_type(to);
    const std::vector<double> values = numbers(count, 7), old = numbers(count, 8);
    const auto number = [&](double value) { return tensor(from, {value, value, value}).slice(0, 0, 1).reshape({1}); };
    const auto run = [&](GradientMode mode, const VectorView& factor, const VectorView& divisor) {
      const Tensor target = tensor(to, old);
      scale(context_, {rows_view(tensor(from, values)), {rows_view(target), mode}, factor, divisor});
      return read(target);
    };
    const auto wanted = [&](double quotient, bool adds) {
      std::vector<double> result(values.size());
      for (size_t i = 0; i < values.size(); ++i) result[i] = quotient * values[i] + (adds ? old[i] : 0.0);
      return read(tensor(to, result));
    };
    const Tensor three = number(3.0), six = number(6.0), zero = number(0.0);
    EXPECT_EQ(run(GradientMode::overwrite, vector_view(three), {}), wanted(3.0, false)) << name(to);
    EXPECT_EQ(run(GradientMode::accumulate, vector_view(three), vector_view(six)), wanted(0.5, true)) << name(to);
    EXPECT_EQ(run(GradientMode::overwrite, vector_view(three), vector_view(zero)), wanted(0.0, false)) << name(to);
    EXPECT_EQ(run(GradientMode::accumulate, vector_view(three), vector_view(zero)), wanted(0.0, true)) << name(to);
  }
}

}  // namespace
}  // namespace heddle::kernels
