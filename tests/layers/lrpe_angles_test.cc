// The angles of both position encodings at far positions, through the operators, against cos and sin of the exact
// product in long double: 1e-6 in float32, on the CPU and, where there is one, on a GPU.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"
#include "layers/ops/lrpe_cosine.h"
#include "layers/ops/lrpe_rotate.h"

namespace heddle::lrpe_angles_test {
namespace {

constexpr int64_t kLength = 131072, kAngles = 16, kHalf = kAngles / 2;
constexpr int64_t kFarOffset = (int64_t{1} << 20) - kLength;
constexpr int64_t kTokens[] = {0, 1, 2047, 32767, kLength - 1};

std::vector<double> frequencies(int64_t count) {
  std::vector<double> theta;
  for (int64_t k = 0; k < count; ++k) {
    const double scale[] = {1.0, 3.14159265, 1e-6, 1e-3, 1e3, 1e9, 1e20, 1e37, 1e6, 1e11, 1e13, 1e30};
    theta.push_back(static_cast<float>(scale[k % 12] * (1.0 + 0.1 * static_cast<double>(k))));
  }
  return theta;
}

Variable constant(Tape& tape, const Shape& shape, const std::vector<double>& values) {
  const Tensor tensor = Tensor::empty(tape.context(), shape, DType::float32);
  write_values(tape.context(), tensor, values);
  return tape.constant(tensor);
}

// y (1, kLength, 1, 2 kAngles) holds the cosines and then the sines of position(token, k) * theta[k].
template <class Position>
void expect_right(Context& context, const Variable& y, const std::vector<double>& theta, const Position& position) {
  for (const int64_t token : kTokens) {
    const std::vector<double> row = read_values(context, y.value.slice(1, token, token + 1));
    for (int64_t k = 0; k < kAngles; ++k) {
      const long double number = theta[static_cast<size_t>(k) % theta.size()];
      const long double phi = static_cast<long double>(position(token, k)) * number;
      EXPECT_NEAR(row[static_cast<size_t>(k)], static_cast<double>(std::cos(phi)), 1e-6) << token << " " << k;
      EXPECT_NEAR(row[static_cast<size_t>(k + kAngles)], static_cast<double>(std::sin(phi)), 1e-6) << token << " " << k;
    }
  }
}

void rotate_is_right(Context& context) {
  Tape tape(context, Tape::Mode::inference);
  std::vector<double> ones_and_zeros;
  for (int64_t i = 0; i < kLength * 2 * kAngles; ++i) ones_and_zeros.push_back(i % (2 * kAngles) < kAngles ? 1.0 : 0.0);
  const Variable x = constant(tape, {1, kLength, 1, 2 * kAngles}, ones_and_zeros);
  const std::vector<double> theta = frequencies(kAngles);
  for (const int64_t offset : {int64_t{0}, kFarOffset}) {
    LrpeRotateOptions options;
    options.offset = offset;
    const Variable y = lrpe_rotate(tape, x, constant(tape, {1, kAngles}, theta), options);
    expect_right(context, y, theta, [&](int64_t token, int64_t) { return token + offset; });
  }
}

void cosine_is_right(Context& context) {
  Tape tape(context, Tape::Mode::inference);
  const Variable x = constant(tape, {1, kLength, 1, kAngles}, std::vector<double>(kLength * kAngles, 1.0));
  const std::vector<double> theta = frequencies(kAngles), of_axis = frequencies(kHalf);
  for (const int64_t offset : {int64_t{0}, kFarOffset}) {
    const Variable y = lrpe_cosine(tape, x, constant(tape, {1, kAngles}, theta), {.offset = offset});
    expect_right(context, y, theta, [&](int64_t token, int64_t) { return token + offset; });
  }
  const Variable y = lrpe_cosine(tape, x, constant(tape, {1, kHalf}, of_axis), {.shape = {4, kLength / 4}});
  expect_right(context, y, of_axis,
               [&](int64_t token, int64_t k) { return k < kHalf ? token / (kLength / 4) : token % (kLength / 4); });
}

class LrpeAnglesGpu : public ::testing::Test {
 protected:
  void run(void (*is_right)(Context&)) {
    if (resolve_device("auto").type != DeviceType::cuda) GTEST_SKIP() << "no GPU";
    Context context({DeviceType::cuda});
    is_right(context);
  }
};

TEST(LrpeAngles, RotateIsRightAtEveryPosition) {
  Context context;
  rotate_is_right(context);
}
TEST(LrpeAngles, CosineIsRightAtEveryPosition) {
  Context context;
  cosine_is_right(context);
}
TEST_F(LrpeAnglesGpu, RotateIsRightAtEveryPosition) { run(rotate_is_right); }
TEST_F(LrpeAnglesGpu, CosineIsRightAtEveryPosition) { run(cosine_is_right); }

}  // namespace
}  // namespace heddle::lrpe_angles_test
