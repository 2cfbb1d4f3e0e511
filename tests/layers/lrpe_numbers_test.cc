// Position encodings at the ends: extra tokens that hold infinity, more positions than there are partial sums of
// d_theta. On the CPU and, where there is one, on a GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/lrpe_cosine.h"
#include "layers/ops/lrpe_rotate.h"
#include "tests/layers/numbers.h"
#include "tests/layers/on_devices.h"

namespace heddle::lrpe_numbers_test {
namespace {

using test::random_numbers;
using Numbers = std::vector<double>;

Tensor tensor_of(Context& context, const Shape& shape, DType dtype, const Numbers& numbers) {
  const Tensor tensor = Tensor::empty(context, shape, dtype);
  write_values(context, tensor, numbers);
  return tensor;
}

struct CosineResults {
  Numbers y, d_x, d_theta;
};

// x and d_y are (1, tokens, 1, dim) and (1, tokens, 1, 2 dim).
CosineResults run_cosine(Context& context, DType dtype, const LrpeCosineOptions& options, int64_t dim, const Numbers& x,
                         const Numbers& d_y) {
  const auto tokens = static_cast<int64_t>(x.size()) / dim;
  Gradient d_x, d_theta;
  Tape tape(context);
  const Tensor theta = tensor_of(context, {1, dim}, accumulate_type(dtype), random_numbers(dim, 3));
  const Variable y = lrpe_cosine(tape, tape.leaf(tensor_of(context, {1, tokens, 1, dim}, dtype, x), d_x, "x"),
                                 tape.leaf(theta, d_theta, "theta"), options);
  tape.backward(y, tensor_of(context, y.shape(), dtype, d_y));
  return {read_values(context, y.value), read_values(context, d_x.tensor), read_values(context, d_theta.tensor)};
}

// y = concat(act(x), 0) for extra tokens, whatever x is, and nothing comes back from the zeros.
void extra_tokens_have_no_second_half(Context& context) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr int64_t kExtra = 2, kTokens = 5;
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    for (const Activation act : {Activation::none, Activation::relu, Activation::silu}) {
      for (const int64_t dim : {6, 16}) {  // single features on the GPU, and vectors
        const LrpeCosineOptions options{.act = act, .extra_tokens = kExtra, .offset = 3};
        Numbers x = random_numbers(kTokens * dim, 1), d_y = random_numbers(kTokens * 2 * dim, 2);
        const CosineResults usual = run_cosine(context, dtype, options, dim, x, d_y);
        x[0] = kInfinity;
        x[1] = -kInfinity;
        x[2] = -1.0;
        x[3] = std::nan("");
        for (int64_t i = 0; i < dim; ++i) d_y[static_cast<size_t>(dim + i)] = i % 2 == 0 ? kInfinity : std::nan("");
        const CosineResults found = run_cosine(context, dtype, options, dim, x, d_y);
        for (int64_t token = 0; token < kTokens; ++token) {
          for (int64_t i = 0; i < dim; ++i) {
            const double second = found.y[static_cast<size_t>((2 * token + 1) * dim + i)];
            const auto at = static_cast<size_t>(token * dim + i);
            if (token < kExtra) {
              EXPECT_EQ(second, 0.0) << token << " " << i;
              EXPECT_FALSE(std::signbit(second)) << token << " " << i;
            } else {
              EXPECT_EQ(second, usual.y[static_cast<size_t>((2 * token + 1) * dim + i)]);
            }
            if (at > 3) {
              EXPECT_EQ(found.d_x[at], usual.d_x[at]) << token << " " << i;
            }
          }
        }
        EXPECT_EQ(found.y[0], kInfinity);
        EXPECT_EQ(found.y[1], act == Activation::none ? -kInfinity : 0.0);
        EXPECT_TRUE(std::isnan(found.y[3]));
        EXPECT_EQ(found.d_theta, usual.d_theta);
      }
    }
  }
}

// Every number of extra tokens with every offset: tokens of the grid are counted from behind the extra ones.
void offsets_count_behind_extra_tokens(Context& context) {
  constexpr int64_t kTokens = 6;
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16}) {
    const double tolerance = dtype == DType::float64 ? 1e-12 : dtype == DType::float32 ? 1e-5 : 2e-2;
    for (const int64_t dim : {6, 16}) {
      for (const int64_t extra : {0, 1, 2, 6}) {
        for (const int64_t offset : {0, 1, 700}) {
          SCOPED_TRACE(::testing::Message()
                       << name(dtype) << " dim " << dim << " extra " << extra << " offset " << offset);
          const Numbers x = random_numbers(kTokens * dim, 1), d_y = random_numbers(kTokens * 2 * dim, 2);
          const Numbers theta = random_numbers(dim, 3);
          const LrpeCosineOptions options{.extra_tokens = extra, .offset = offset};
          const CosineResults found = run_cosine(context, dtype, options, dim, x, d_y);
          for (int64_t i = 0; i < dim; ++i) {
            double d_theta = 0.0, terms = 1.0;
            for (int64_t token = 0; token < kTokens; ++token) {
              const double s = token < extra ? 0.0 : static_cast<double>(token - extra + offset);
              const double phi = s * theta[static_cast<size_t>(i)], cosine = std::cos(phi), sine = std::sin(phi);
              const auto at = static_cast<size_t>(token * dim + i), first = static_cast<size_t>(2 * token * dim + i);
              const size_t second = first + static_cast<size_t>(dim);
              EXPECT_NEAR(found.y[first], x[at] * cosine, 2.0 * tolerance) << token << " " << i;
              EXPECT_NEAR(found.y[second], x[at] * sine, 2.0 * tolerance) << token << " " << i;
              EXPECT_NEAR(found.d_x[at], d_y[first] * cosine + d_y[second] * sine, 4.0 * tolerance)
                  << token << " " << i;
              d_theta += s * x[at] * (d_y[second] * cosine - d_y[first] * sine);
              terms += s * 8.0;
            }
            EXPECT_NEAR(found.d_theta[static_cast<size_t>(i)], d_theta, tolerance * terms) << i;
          }
        }
      }
    }
  }
}

// Tokens behind others of their text have the angles of their places in it, where the number of the others lies on the
// device, too.
void tokens_before_are_read_on_the_device(Context& context) {
  constexpr int64_t kTokens = 3, kHeads = 2;
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    const double tolerance = dtype == DType::float64    ? 1e-12
                             : dtype == DType::float32  ? 1e-5
                             : dtype == DType::bfloat16 ? 3e-2
                                                        : 4e-3;
    for (const int64_t dim : {6, 16, 128}) {
      const Tensor x =
          tensor_of(context, {2, kTokens, kHeads, dim}, dtype, random_numbers(2 * kTokens * kHeads * dim, 1));
      const Tensor angles = tensor_of(context, {kHeads, dim}, accumulate_type(dtype), random_numbers(kHeads * dim, 2));
      for (const int64_t before : {0, 1, 4, 70000}) {
        const Tensor on_device = tensor_of(context, {1}, DType::int32, {static_cast<double>(before)});
        Tape tape(context, Tape::Mode::inference);
        const auto expect_near = [&](const Variable& found, const Variable& expected) {
          EXPECT_THAT(read_values(context, found.value),
                      ::testing::Pointwise(::testing::DoubleNear(tolerance), read_values(context, expected.value)))
              << name(dtype) << " dim " << dim << " behind " << before;
        };
        const Variable half = tape.constant(angles.slice(1, 0, dim / 2)), all = tape.constant(angles);
        for (const Pairing pairing : {Pairing::half, Pairing::interleaved}) {
          LrpeRotateOptions options;
          options.softmax = pairing == Pairing::half ? Softmax::none : Softmax::feature;
          options.act = pairing == Pairing::half ? Activation::silu : Activation::none;
          options.pairing = pairing;
          options.offset = before;
          const Variable expected = lrpe_rotate(tape, tape.constant(x), half, options);
          options.offset = 0;
          options.tokens_before = on_device;
          expect_near(lrpe_rotate(tape, tape.constant(x), half, options), expected);
        }
        for (const int64_t extra : {0, 2, 5}) {
          const LrpeCosineOptions told{.act = Activation::relu,
                                       .extra_tokens = std::clamp<int64_t>(extra - before, 0, kTokens),
                                       .offset = std::max<int64_t>(before - extra, 0)};
          const LrpeCosineOptions read{.act = Activation::relu, .extra_tokens = extra, .tokens_before = on_device};
          expect_near(lrpe_cosine(tape, tape.constant(x), all, read), lrpe_cosine(tape, tape.constant(x), all, told));
        }
      }
    }
  }
}

// Each position counts, the last of every part into which they are cut among them.
void d_theta_is_the_sum_over_all_positions(Context& context) {
  constexpr int64_t kDim = 16, kHalf = kDim / 2;
  for (const int64_t length : {int64_t{1}, int64_t{255}, int64_t{256}, int64_t{257}, int64_t{600}, int64_t{1030}}) {
    const Numbers x = random_numbers(length * kDim, 1), d_y = random_numbers(length * kDim, 2);
    const Numbers theta = random_numbers(kHalf, 3);
    // Only one position has an upstream gradient: a sum that loses its part is 0.
    for (const int64_t only : {length - 1, length / 2, int64_t{0}}) {
      Numbers upstream(d_y.size(), 0.0);
      for (int64_t i = 0; i < kDim; ++i) {
        upstream[static_cast<size_t>(only * kDim + i)] = d_y[static_cast<size_t>(only * kDim + i)];
      }
      Gradient gradient;
      Tape tape(context);
      const Variable y =
          lrpe_rotate(tape, tape.constant(tensor_of(context, {1, length, 1, kDim}, DType::float32, x)),
                      tape.leaf(tensor_of(context, {1, kHalf}, DType::float32, theta), gradient, "theta"), {});
      tape.backward(y, tensor_of(context, y.shape(), DType::float32, upstream));
      const Numbers found = read_values(context, gradient.tensor);
      for (int64_t k = 0; k < kHalf; ++k) {
        const auto first = static_cast<size_t>(only * kDim + k), other = first + static_cast<size_t>(kHalf);
        const long double phi = static_cast<long double>(only) * theta[static_cast<size_t>(k)];
        const long double y_first = x[first] * std::cos(phi) - x[other] * std::sin(phi);
        const long double y_other = x[first] * std::sin(phi) + x[other] * std::cos(phi);
        const double wanted = static_cast<double>(only * (d_y[other] * y_first - d_y[first] * y_other));
        EXPECT_NEAR(found[static_cast<size_t>(k)], wanted, 1e-5 * static_cast<double>(only + 1))
            << "position " << only << " of " << length << ", angle " << k;
      }
    }
  }
}

// A float64 product of angle and position, both with many digits, is rounded by more than the result may be wrong.
void float64_angles_keep_their_digits(Context& context) {
  const Numbers theta{0.1, 1.0 / 3.0, 0.7, 1.0 / 7.0}, pairs{1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 0.0, 0.0};
  for (const int64_t position : {int64_t{131071}, (int64_t{1} << 20) - 1}) {
    Tape tape(context);
    const Variable x = tape.constant(tensor_of(context, {1, 1, 1, 8}, DType::float64, pairs));
    const Variable angles = tape.constant(tensor_of(context, {1, 4}, DType::float64, theta));
    LrpeRotateOptions options;
    options.offset = position;
    const Numbers y = read_values(context, lrpe_rotate(tape, x, angles, options).value);
    for (size_t k = 0; k < theta.size(); ++k) {
      const long double phi = static_cast<long double>(position) * theta[k];
      EXPECT_NEAR(y[k], pairs[k] * static_cast<double>(std::cos(phi)), 1e-11) << theta[k] << " at " << position;
      EXPECT_NEAR(y[k + 4], pairs[k] * static_cast<double>(std::sin(phi)), 1e-11) << theta[k] << " at " << position;
    }
  }
}

// More features than the parts in which they are worked on, of 512, 1024 and 4096. A theta of 0 rotates nothing. Among
// features, and among tokens, one may be far larger than all others, wherever it is.
void softmax_of_many_features(Context& context) {
  constexpr int64_t kTokens = 3;
  for (const Softmax softmax : {Softmax::feature, Softmax::sequence}) {
    for (const int64_t dim : {514, 1030, 4096, 4098, 9000}) {
      for (const int64_t spike : {int64_t{-1}, int64_t{0}, dim / 2, kTokens * dim - 1}) {
        Numbers x = random_numbers(kTokens * dim, 1);
        const Numbers d_y = random_numbers(kTokens * dim, 2);
        if (spike >= 0) x[static_cast<size_t>(spike)] = 120.0;
        Gradient d_x;
        Tape tape(context);
        LrpeRotateOptions options;
        options.softmax = softmax;
        const Tensor input = tensor_of(context, {1, kTokens, 1, dim}, DType::float32, x);
        const Variable theta = tape.constant(tensor_of(context, {1, 1}, DType::float32, {0.0}));
        const Variable y = lrpe_rotate(tape, tape.leaf(input, d_x, "x"), theta, options);
        tape.backward(y, tensor_of(context, y.shape(), DType::float32, d_y));
        const Numbers found = read_values(context, y.value), gradient = read_values(context, d_x.tensor);
        // A softmax is over `count` numbers that are `step` apart.
        const bool of_row = softmax == Softmax::feature;
        const int64_t groups = of_row ? kTokens : dim, count = of_row ? dim : kTokens, step = of_row ? 1 : dim;
        for (int64_t group = 0; group < groups; ++group) {
          const auto at = [&](int64_t i) { return static_cast<size_t>(group * (of_row ? dim : 1) + i * step); };
          double largest = x[at(0)], sum = 0.0, dot = 0.0;
          for (int64_t i = 0; i < count; ++i) largest = std::max(largest, x[at(i)]);
          for (int64_t i = 0; i < count; ++i) sum += std::exp(x[at(i)] - largest);
          const auto a = [&](int64_t i) { return std::exp(x[at(i)] - largest) / sum; };
          for (int64_t i = 0; i < count; ++i) dot += a(i) * d_y[at(i)];
          for (int64_t i = 0; i < count; ++i) {
            ASSERT_NEAR(found[at(i)], a(i), 1e-5 * a(i) + 1e-30) << dim << " features, spike " << spike;
            ASSERT_NEAR(gradient[at(i)], a(i) * (d_y[at(i)] - dot), 1e-5 * a(i) + 1e-30)
                << dim << " features, spike " << spike;
          }
        }
      }
    }
  }
}

// So many features that they are worked on in parts, with angles of each head's own.
void softmax_of_many_features_and_angles_of_heads(Context& context) {
  constexpr int64_t kTokens = 3, kHeads = 2, kDim = 4100, kHalf = kDim / 2, kOffset = 5;
  const Numbers x = random_numbers(kTokens * kHeads * kDim, 1), theta = random_numbers(kHeads * kHalf, 2);
  Tape tape(context);
  LrpeRotateOptions options;
  options.softmax = Softmax::feature;
  options.offset = kOffset;
  const Variable input = tape.constant(tensor_of(context, {1, kTokens, kHeads, kDim}, DType::float64, x));
  const Variable angles = tape.constant(tensor_of(context, {kHeads, kHalf}, DType::float64, theta));
  const Numbers y = read_values(context, lrpe_rotate(tape, input, angles, options).value);
  for (int64_t row = 0; row < kTokens * kHeads; ++row) {
    const double* const numbers = x.data() + row * kDim;
    double sum = 0.0;
    for (int64_t i = 0; i < kDim; ++i) sum += std::exp(numbers[i]);
    for (int64_t i = 0; i < kHalf; ++i) {
      const double angle =
          static_cast<double>(row / kHeads + kOffset) * theta[static_cast<size_t>(row % kHeads * kHalf + i)];
      const double first = std::exp(numbers[i]) / sum, second = std::exp(numbers[i + kHalf]) / sum;
      const auto at = static_cast<size_t>(row * kDim + i);
      ASSERT_NEAR(y[at], first * std::cos(angle) - second * std::sin(angle), 1e-14) << row << ", " << i;
      ASSERT_NEAR(y[at + kHalf], second * std::cos(angle) + first * std::sin(angle), 1e-14) << row << ", " << i;
    }
  }
}

// Products of x and d_y beyond float, on the CPU, whose sum over features, batches or positions fits.
TEST(LrpeSums, OfProductsBeyondFloatAreRight) {
  Context context(Device{}, {.threads = 1});
  constexpr double kHuge = 0x1p70, kTimes = 0x1p65;
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const auto d_theta = [&](const Shape& shape, const Numbers& x, const Numbers& d_y, int64_t offset) {
      Gradient gradient;
      Tape tape(context);
      LrpeRotateOptions options;
      options.offset = offset;
      const Tensor theta = tensor_of(context, {1, 1}, DType::float32, {0.0});
      const Variable y = lrpe_rotate(tape, tape.constant(tensor_of(context, shape, dtype, x)),
                                     tape.leaf(theta, gradient, "theta"), options);
      tape.backward(y, tensor_of(context, y.shape(), dtype, d_y));
      return read_values(context, gradient.tensor)[0];
    };
    // s (d_y2 x1 - d_y1 x2), of one pair, of two sequences, and of positions 1 and 2.
    EXPECT_EQ(d_theta({1, 1, 1, 2}, {kHuge, kHuge}, {kTimes, kTimes}, 1), 0.0);
    EXPECT_EQ(d_theta({2, 1, 1, 2}, {kHuge, 0.0, kHuge, 0.0}, {-1.0, kTimes, -3.0, -kTimes}, 1), 0.0);
    EXPECT_EQ(d_theta({1, 2, 1, 2}, {kHuge, 0.0, kHuge, 0.0}, {0.0, kTimes, 0.0, -kTimes / 2}, 1), 0.0);
    // One that does not fit is infinite.
    EXPECT_EQ(d_theta({1, 1, 1, 2}, {kHuge, 0.0}, {0.0, kTimes}, 1), std::numeric_limits<double>::infinity());
  }
  const CosineResults found = [&] {
    Gradient d_x, d_theta;
    Tape tape(context);
    const Tensor theta = tensor_of(context, {1, 2}, DType::float32, {0.0, 0.0});
    const Variable y = lrpe_cosine(
        tape, tape.leaf(tensor_of(context, {2, 1, 1, 2}, DType::float32, {kHuge, kHuge, kHuge, -kHuge}), d_x, "x"),
        tape.leaf(theta, d_theta, "theta"), {.offset = 1});
    tape.backward(y,
                  tensor_of(context, y.shape(), DType::float32, {0.0, 0.0, kTimes, kTimes, 0.0, 0.0, -kTimes, kTimes}));
    return CosineResults{{}, {}, read_values(context, d_theta.tensor)};
  }();
  EXPECT_EQ(found.d_theta, (Numbers{0.0, 0.0}));
}

class LrpeNumbers : public test::OnDevices {};

TEST_P(LrpeNumbers, ExtraTokensHaveNoSecondHalf) { extra_tokens_have_no_second_half(context()); }
TEST_P(LrpeNumbers, ThetaGetsTheSumOverAllPositions) { d_theta_is_the_sum_over_all_positions(context()); }
TEST_P(LrpeNumbers, Float64AnglesKeepTheirDigits) { float64_angles_keep_their_digits(context()); }
TEST_P(LrpeNumbers, OffsetsCountBehindExtraTokens) { offsets_count_behind_extra_tokens(context()); }
TEST_P(LrpeNumbers, TokensBeforeAreReadOnTheDevice) { tokens_before_are_read_on_the_device(context()); }
TEST_P(LrpeNumbers, SoftmaxOfManyFeatures) { softmax_of_many_features(context()); }
TEST_P(LrpeNumbers, SoftmaxOfManyFeaturesAndAnglesOfHeads) { softmax_of_many_features_and_angles_of_heads(context()); }
HEDDLE_ON_DEVICES(LrpeNumbers);

}  // namespace
}  // namespace heddle::lrpe_numbers_test
