// Vectorised mathematics of the CPU kernels against the library's in double.
#include "kernels/common/cpu/math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "kernels/common/cpu/activation.h"
#include "kernels/common/cpu/convert.h"

namespace heddle::kernels::cpu {
namespace {

// |found - wanted| in units of the last place of a float of wanted's size, subnormal ones included.
double ulps(float found, double wanted) {
  if (std::isnan(wanted)) return std::isnan(found) ? 0.0 : INFINITY;
  const auto rounded = static_cast<float>(wanted);
  if (std::isinf(rounded)) return found == rounded ? 0.0 : INFINITY;
  int exponent = 0;
  std::frexp(wanted, &exponent);
  return std::abs(found - wanted) / std::ldexp(1.0, std::max(exponent - 24, -149));
}

// Floats of every exponent and sign, the infinities and NaN among them.
std::vector<float> all_kinds() {
  std::vector<float> values = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 88.72283f, 88.72284f, -87.33654f, -103.9f};
  for (uint64_t bits = 0; bits < 0x100000000ull; bits += 65521) {
    values.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
  for (float x = -110.0f; x < 100.0f; x += 0.0037f) values.push_back(x);
  return values;
}

TEST(Math, ExponentialIsRightToOneUlp) {
  for (const float x : all_kinds()) ASSERT_LE(ulps(exponential(x), std::exp(double{x})), 1.0) << x;
}

TEST(Math, ActivationsAreRightToThreeUlps) {
  for (const float x : all_kinds()) {
    const double s = 1.0 / (1.0 + std::exp(-double{x}));
    const bool is_normal = !(s < std::numeric_limits<float>::min());
    if (is_normal) {
      ASSERT_LE(ulps(apply_activation<Activation::sigmoid>(x), s), 3.0) << x;
    } else {
      ASSERT_NEAR(apply_activation<Activation::sigmoid>(x), s, std::numeric_limits<float>::min()) << x;
    }
    ASSERT_LE(ulps(apply_activation<Activation::relu>(x), x < 0.0f ? 0.0 : x), 0.0) << x;
    ASSERT_LE(ulps(apply_activation<Activation::elu1>(x), x > 0.0f ? x + 1.0 : std::exp(double{x})), 1.0) << x;
    const double silu = x == -INFINITY ? 0.0 : x * s;
    if (is_normal) {
      ASSERT_LE(ulps(apply_activation<Activation::silu>(x), silu), 3.0) << x;
    } else {
      ASSERT_NEAR(apply_activation<Activation::silu>(x), silu, 2e-36) << x;
    }
  }
}

// In double, x is a float: the reference has digits to spare. Each is at most the limit where x is infinite.
double exact_gelu(double x) { return std::isinf(x) ? std::max(x, 0.0) : x * std::erfc(-x * M_SQRT1_2) / 2.0; }
double exact_gelu_tanh(double x) {
  const double v = 2.0 * std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
  return std::isinf(x) ? std::max(x, 0.0) : x / (1.0 + std::exp(-v));
}

TEST(Math, ElementwiseActivationsAreRightToAFewUlps) {
  for (const float x : all_kinds()) {
    ASSERT_LE(ulps(apply_activation<Activation::relu2>(x), x < 0.0f ? 0.0 : double{x} * x), 0.5) << x;
    ASSERT_LE(ulps(apply_activation<Activation::tanh>(x), std::tanh(double{x})), 3.0) << x;
    ASSERT_LE(ulps(apply_activation<Activation::gelu>(x), exact_gelu(x)), 8.0) << x;
    ASSERT_LE(ulps(apply_activation<Activation::gelu_tanh>(x), exact_gelu_tanh(x)), 8.0) << x;
  }
}

TEST(Math, ElementwiseDerivativesMatchTheirFormulas) {
  for (const float given : all_kinds()) {
    if (std::isnan(given)) continue;
    const double x = std::clamp(double{given}, -1e3, 1e3), cosh = std::cosh(x);
    ASSERT_EQ(activation_derivative<Activation::relu2>(given), given > 0.0f ? 2.0f * given : 0.0f) << given;
    ASSERT_LE(ulps(activation_derivative<Activation::tanh>(given), std::abs(x) < 43.0 ? 1.0 / (cosh * cosh) : 0.0), 6.0)
        << given;
    const double normal = std::erfc(-x * M_SQRT1_2) / 2.0 + x * std::exp(-x * x / 2.0) / std::sqrt(2.0 * M_PI);
    ASSERT_NEAR(activation_derivative<Activation::gelu>(given), normal,
                4e-7 * std::min(1.0, 4 * std::abs(normal) + 0.3));
    if (x < -1.5) {
      ASSERT_LE(ulps(activation_derivative<Activation::gelu>(given), normal), 16.0) << given;
    }
    const double v = 2.0 * std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x);
    const double s = 1.0 / (1.0 + std::exp(-v)), other = 1.0 / (1.0 + std::exp(v));
    const double sigmoid = s * (1.0 + other * 2.0 * std::sqrt(2.0 / M_PI) * (x + 3 * 0.044715 * x * x * x));
    ASSERT_NEAR(activation_derivative<Activation::gelu_tanh>(given), sigmoid, 4e-7) << given;
    if (x < -1.5) {
      ASSERT_LE(ulps(activation_derivative<Activation::gelu_tanh>(given), sigmoid), 16.0) << given;
    }
  }
}

TEST(Math, NaNHasNoDerivative) {
  EXPECT_TRUE(std::isnan(activation_derivative<Activation::relu2>(NAN)));
  EXPECT_TRUE(std::isnan(activation_derivative<Activation::tanh>(NAN)));
  EXPECT_TRUE(std::isnan(activation_derivative<Activation::gelu>(NAN)));
  EXPECT_TRUE(std::isnan(activation_derivative<Activation::gelu_tanh>(NAN)));
  EXPECT_TRUE(std::isnan(activation_derivative<Activation::relu>(NAN)));
  EXPECT_TRUE(std::isnan(activation_derivative<Activation::sigmoid>(NAN)));
  EXPECT_TRUE(std::isnan(activation_derivative<Activation::silu>(NAN)));
  EXPECT_TRUE(std::isnan(activation_derivative<Activation::elu1>(NAN)));
}

TEST(Math, DerivativesMatchTheirFormulas) {
  for (const float x : all_kinds()) {
    if (std::isnan(x)) continue;
    const double s = 1.0 / (1.0 + std::exp(-double{x})), c = 1.0 / (1.0 + std::exp(double{x}));
    ASSERT_NEAR(activation_derivative<Activation::sigmoid>(x), s * c, 5e-7 * s * c + 1e-37) << x;
    ASSERT_NEAR(activation_derivative<Activation::silu>(x), std::isinf(x) ? s : s * (1.0 + x * c), 4e-7) << x;
    ASSERT_EQ(activation_derivative<Activation::relu>(x), x > 0.0f ? 1.0f : 0.0f) << x;
    ASSERT_LE(ulps(activation_derivative<Activation::elu1>(x), x > 0.0f ? 1.0 : std::exp(double{x})), 1.0) << x;
  }
}

template <Activation act>
void check_both(float x) {
  const Activated<float> both = activate_with_derivative<act>(x);
  const float value = apply_activation<act>(x), derivative = activation_derivative<act>(x);
  if (std::isnan(value)) {
    ASSERT_TRUE(std::isnan(both.value));
    return;
  }
  ASSERT_TRUE(both.value == value || std::abs(both.value - value) <= 3e-7f * std::abs(value)) << x;
  ASSERT_NEAR(both.derivative, derivative, 4e-7f) << x;
}

TEST(Math, BothAtOnceAreTheSame) {
  for (const float x : all_kinds()) {
    check_both<Activation::none>(x);
    check_both<Activation::relu>(x);
    check_both<Activation::sigmoid>(x);
    check_both<Activation::silu>(x);
    check_both<Activation::elu1>(x);
    check_both<Activation::tanh>(x);
    check_both<Activation::gelu>(x);
    check_both<Activation::gelu_tanh>(x);
  }
}

TEST(Math, SumsDependOnTheLengthAlone) {
  std::vector<float> memory(5000);
  for (size_t i = 0; i < memory.size(); ++i) memory[i] = std::sin(static_cast<float>(i % 1000));
  for (const int64_t count : {0, 1, 31, 32, 33, 1000}) {
    const auto sum_at = [&](const float* p) { return sum_of<float>(count, [p](int64_t i) { return p[i]; }); };
    const auto largest_at = [&](const float* p) { return maximum_of<float>(count, [p](int64_t i) { return p[i]; }); };
    double exact = 0.0;
    for (int64_t i = 0; i < count; ++i) exact += memory[static_cast<size_t>(i)];
    EXPECT_NEAR(sum_at(memory.data()), exact, 1e-4);
    EXPECT_EQ(largest_at(memory.data()),
              count > 0 ? *std::max_element(memory.begin(), memory.begin() + count) : -INFINITY);
    // The same numbers from another address.
    std::vector<float> moved(memory.begin(), memory.end());
    moved.insert(moved.begin(), 3, 0.0f);
    EXPECT_EQ(sum_at(moved.data() + 3), sum_at(memory.data()));
  }
}

// Equal numbers are the hardest to add up: all roundings of a binade have one direction.
TEST(Sums, OfAMillionNumbersAreRightToThreeRoundings) {
  std::vector<float> numbers(1000003);
  for (const float number : {0.01f, 0.1f, 1.0f / 3.0f, 0.7f}) {
    std::fill(numbers.begin(), numbers.end(), number);
    for (const int64_t count : {1000, 5000, 1000003}) {
      const double wanted = static_cast<double>(number) * static_cast<double>(count);
      const double roundings = count > 1024 ? 3.0 : 16.0;
      EXPECT_NEAR(sum_of<float>(count, [&](int64_t i) { return numbers[i]; }), wanted, roundings * 0x1p-24 * wanted);
    }
  }
  LongLanes<float, 2> lanes;  // in chunks, two sums at once
  for (int64_t begin = 0; begin < 1000003; begin += 4096) {
    lanes.add(std::min<int64_t>(4096, 1000003 - begin), [&](int64_t i) {
      return std::array<float, 2>{numbers[begin + i], numbers[begin + i] * numbers[begin + i]};
    });
  }
  EXPECT_NEAR(lanes.total(0), 1000003 * static_cast<double>(0.7f), 3 * 0x1p-24 * 700002.0);
  EXPECT_NEAR(lanes.total(1), 1000003 * static_cast<double>(0.7f * 0.7f), 3 * 0x1p-24 * 490001.0);
}

template <class T>
void check_conversions() {
  const std::vector<float> values = all_kinds();
  for (size_t begin = 0; begin + 37 <= values.size(); begin += 37) {
    T stored[37];
    float back[37];
    from_float(values.data() + begin, stored, 37);
    to_float(stored, back, 37);
    for (size_t i = 0; i < 37; ++i) {
      const float wanted = static_cast<float>(static_cast<T>(values[begin + i]));
      if (std::isnan(wanted)) {
        ASSERT_TRUE(std::isnan(back[i]));
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(back[i]), std::bit_cast<uint32_t>(wanted)) << values[begin + i];
      }
    }
  }
}

TEST(Convert, Bfloat16RoundsAsTheScalarType) { check_conversions<bfloat16>(); }
TEST(Convert, Float16RoundsAsTheScalarType) { check_conversions<float16>(); }

}  // namespace
}  // namespace heddle::kernels::cpu
