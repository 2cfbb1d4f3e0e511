// Plain sums of up to a million float32 numbers, in forward and backward: right to a few roundings of the result. Equal
// terms are the hardest, because all roundings of a binade have one direction.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/embedding.h"
#include "layers/ops/linear.h"
#include "layers/ops/lrpe_rotate.h"
#include "layers/ops/norm.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::long_sums_test {
namespace {

constexpr DType kFloat = DType::float32;
constexpr double kRounding = 0x1p-24;
constexpr double kHundredth = 0.01f;

class LongSums : public OnDevices {
 protected:
  Tensor tensor(const Shape& shape, const std::vector<double>& values, DType dtype = kFloat) {
    const Tensor result = Tensor::empty(context(), shape, dtype);
    write_values(context(), result, values);
    return result;
  }
  Tensor filled(const Shape& shape, double value, DType dtype = kFloat) {
    return tensor(shape, std::vector<double>(static_cast<size_t>(numel(shape)), value), dtype);
  }
  Tensor uniform(const Shape& shape) {
    std::vector<double> values(static_cast<size_t>(numel(shape)));
    for (double& value : values) value = random_.next_uniform();
    return tensor(shape, values);
  }
  std::vector<double> read(const Tensor& values) { return read_values(context(), values); }

  static void expect_near(const std::vector<double>& found, double wanted, double roundings, const char* what) {
    for (const double value : found) {
      ASSERT_NEAR(value, wanted, roundings * kRounding * std::abs(wanted))
          << what << ": " << (value / wanted - 1.0) / kRounding << " roundings";
    }
  }

  Random random_{4, RandomStream::test};
};

TEST_P(LongSums, GradientOfARepeatedToken) {
  for (const int64_t dim : {1, 3, 8}) {
    for (const int64_t vocabulary : {1, 2}) {
      const int64_t count = 1000003;
      std::vector<double> tokens(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) tokens[i] = static_cast<double>(i % vocabulary);
      Tape tape(context());
      Gradient gradient;
      const Variable weight = tape.leaf(filled({vocabulary, dim}, 1.0), gradient, "weight");
      const Variable y = embedding(tape, tensor({count}, tokens, DType::int32), weight);
      tape.backward(y, filled({count, dim}, kHundredth));
      const auto found = read(gradient.tensor);
      for (int64_t i = 0; i < vocabulary * dim; ++i) {
        const double repeats = static_cast<double>((count - i / dim + vocabulary - 1) / vocabulary);
        expect_near({found[i]}, kHundredth * repeats, 4, "embedding");
      }
    }
  }
}

// x (rows, in), weight (out, in): gradients are sums over rows.
TEST_P(LongSums, GradientsOfLinearOverManyRows) {
  for (const auto& [rows, in, out] : {std::array<int64_t, 3>{100003, 1, 1}, std::array<int64_t, 3>{100003, 70, 1},
                                      std::array<int64_t, 3>{1000003, 3, 1}, std::array<int64_t, 3>{100003, 1, 40}}) {
    Tape tape(context());
    Gradient d_weight, d_bias;
    const Variable x = tape.constant(filled({rows, in}, 1.0));
    const Variable weight = tape.leaf(filled({out, in}, 1.0), d_weight, "weight");
    const Variable bias = tape.leaf(filled({out}, 1.0), d_bias, "bias");
    tape.backward(linear(tape, x, weight, bias), filled({rows, out}, kHundredth));
    const double wanted = kHundredth * static_cast<double>(rows);
    expect_near(read(d_weight.tensor), wanted, 4, "weight");
    expect_near(read(d_bias.tensor), wanted, 4, "bias");
  }
}

// A library adds up some thousands of terms at once, with the roundings of that.
TEST_P(LongSums, GradientOfASmallMatrixOverManyRows) {
  const int64_t rows = 200003, in = 16, out = 8;
  const Tensor x = uniform({rows, in}), d_y = uniform({rows, out});
  Tape tape(context());
  Gradient gradient;
  const Variable weight = tape.leaf(filled({out, in}, 1.0), gradient, "weight");
  tape.backward(linear(tape, tape.constant(x), weight), d_y);
  const auto found = read(gradient.tensor), left = read(d_y), right = read(x);
  for (int64_t i = 0; i < out; ++i) {
    for (int64_t j = 0; j < in; ++j) {
      double wanted = 0.0;
      for (int64_t row = 0; row < rows; ++row) wanted += left[row * out + i] * right[row * in + j];
      expect_near({found[i * in + j]}, wanted, 6, "weight");
    }
  }
}

TEST_P(LongSums, ProductsOfLongRows) {
  const int64_t in = 1000003;
  for (const auto& [rows, out] :
       {std::pair<int64_t, int64_t>{1, 1}, std::pair<int64_t, int64_t>{1, 3}, std::pair<int64_t, int64_t>{4, 1}}) {
    Tape tape(context(), Tape::Mode::inference);
    const Variable y = linear(tape, tape.constant(filled({rows, in}, kHundredth)),
                              tape.constant(filled({out, in}, 1.0)), tape.constant(filled({out}, 1.0)));
    expect_near(read(y.value), kHundredth * static_cast<double>(in) + 1.0, 4, "y");
  }
}

// Half of the numbers are 0 and half are -1/2. Then d_y of ones has no gradient: the sum of all a is 1.
TEST_P(LongSums, SoftmaxOverALongSequence) {
  LrpeRotateOptions options;
  options.softmax = Softmax::sequence;
  for (const int64_t dim : {2, 8, 256}) {
    const int64_t length = dim > 8 ? 100000 : 1000000;
    std::vector<double> numbers(static_cast<size_t>(length * dim));
    for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = (i / dim + i % dim) % 2 == 0 ? 0.0 : -0.5;
    Tape tape(context());
    Gradient gradient;
    const Variable x = tape.leaf(tensor({1, length, 1, dim}, numbers), gradient, "x");
    const Variable y = lrpe_rotate(tape, x, tape.constant(filled({1, dim / 2}, 0.0)), options);
    tape.backward(y, filled({1, length, 1, dim}, 1.0));
    const double sum = 0.5 * static_cast<double>(length) * (1.0 + std::exp(-0.5));
    const auto found = read(y.value), d_x = read(gradient.tensor);
    for (size_t i = 0; i < numbers.size(); i += 997) {
      const double wanted = std::exp(numbers[i]) / sum;
      expect_near({found[i]}, wanted, 6, "softmax");
      ASSERT_NEAR(d_x[i], 0.0, 8 * kRounding * wanted);
    }
  }
}

// d_theta is the sum over tokens of position times d_phi, which is a hundredth here.
TEST_P(LongSums, GradientOfAnAngle) {
  const int64_t length = 300007;
  std::vector<double> x(static_cast<size_t>(2 * length)), d_y(static_cast<size_t>(2 * length));
  for (int64_t i = 0; i < length; ++i) {
    x[2 * i] = 1.0;
    d_y[2 * i + 1] = kHundredth;
  }
  Tape tape(context());
  Gradient gradient;
  const Variable theta = tape.leaf(filled({1, 1}, 0.0), gradient, "theta");
  const Variable y = lrpe_rotate(tape, tape.constant(tensor({1, length, 1, 2}, x)), theta, {});
  tape.backward(y, tensor({1, length, 1, 2}, d_y));
  const auto n = static_cast<double>(length);
  expect_near(read(gradient.tensor), kHundredth * n * (n - 1.0) / 2.0, 4, "theta");
}

// The mean of the squares of a million features that are 0.3 or, where the mean is taken away, as often -0.3; and
// d_weight, the sum over rows of d_y times 1 or -1.
TEST_P(LongSums, StatisticsAndGradientsOfANorm) {
  if (on_gpu()) GTEST_SKIP() << "norms on a GPU add up rows in float32";
  for (const auto& [rows, dim] : {std::pair<int64_t, int64_t>{1, 1000002}, std::pair<int64_t, int64_t>{300007, 4}}) {
    for (const bool center : {false, true}) {
      NormOptions options;
      options.center = center;
      options.eps = 0.0;
      const auto sign = [center](size_t i) { return center && i % 2 == 1 ? -1.0 : 1.0; };
      std::vector<double> numbers(static_cast<size_t>(rows * dim));
      for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = 0.3 * sign(i);
      Tape tape(context());
      Gradient d_weight;
      NormInputs inputs;
      inputs.weight = tape.leaf(filled({dim}, 1.0), d_weight, "weight");
      const Variable y = norm(tape, tape.constant(tensor({rows, dim}, numbers)), inputs, options).y;
      tape.backward(y, filled({rows, dim}, kHundredth));
      const auto found = read(y.value), gradient = read(d_weight.tensor);
      for (size_t i = 0; i < found.size(); ++i) expect_near({found[i]}, sign(i), 4, "y");
      for (size_t i = 0; i < gradient.size(); ++i) {
        expect_near({gradient[i]}, sign(i) * kHundredth * static_cast<double>(rows), 6, "d_weight");
      }
    }
  }
}

HEDDLE_ON_DEVICES(LongSums);

}  // namespace
}  // namespace heddle::test::long_sums_test
