// The digits of cross entropy: loss and gradient against long double, from the logits as they are stored, for logits of
// any size and targets far ahead of, and far behind, the other classes.
#include "layers/ops/cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tests/layers/numbers.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::cross_entropy_test {
namespace {

constexpr int32_t kIgnored = -100;

struct LossAndGradient {
  double loss = 0.0;             // the sum where there is one for each row
  std::vector<double> gradient;  // of loss times kUpstream
};
constexpr double kUpstream = 3.0;

class CrossEntropyDigits : public OnDevices {
 protected:
  // `logits` (targets.size(), classes) are rounded to dtype first, and are so afterwards.
  LossAndGradient run(DType dtype, std::vector<double>& logits, const std::vector<double>& targets,
                      const CrossEntropyOptions& options = {}) {
    const auto rows = static_cast<int64_t>(targets.size());
    const Tensor z = Tensor::empty(context(), {rows, static_cast<int64_t>(logits.size()) / rows}, dtype);
    write_values(context(), z, logits);
    logits = read_values(context(), z);
    const Tensor indices = Tensor::empty(context(), {rows}, DType::int32);
    write_values(context(), indices, targets);
    Tape tape(context());
    Gradient gradient;
    const Variable loss = cross_entropy(tape, tape.leaf(z, gradient, "logits"), indices, options);
    const Tensor upstream = Tensor::empty(context(), loss.shape(), loss.dtype());
    write_values(context(), upstream, std::vector<double>(static_cast<size_t>(loss.value.numel()), kUpstream));
    tape.backward(loss, upstream);
    const std::vector<double> losses = read_values(context(), loss.value);
    return {std::accumulate(losses.begin(), losses.end(), 0.0), read_values(context(), gradient.tensor)};
  }

  // Every number is right to a few roundings: of the loss, of each gradient, and with label smoothing or z_loss of the
  // terms whose sum a gradient is.
  void expect_digits(DType dtype, std::vector<double> logits, const std::vector<double>& targets,
                     const CrossEntropyOptions& options, const std::string& what) {
    const LossAndGradient found = run(dtype, logits, targets, options);
    const double smoothing = options.label_smoothing, z_loss = options.z_loss;
    const size_t rows = targets.size(), classes = logits.size() / rows;
    const double counted = options.reduction == Reduction::mean
                               ? static_cast<double>(rows - std::count(targets.begin(), targets.end(), kIgnored))
                               : 1.0;
    const double arithmetic = 10 * roundoff(accumulate_type(dtype)), stored = 1.01 * roundoff(dtype);
    // In 16 bits a GPU takes the exponential of its hardware.
    const double exponent = on_gpu() && size_of(dtype) == 2 ? 0x1p-14 : 0.0;
    const double smallest = dtype == DType::float16 ? 6e-8 : 1e-37;  // of the dtype, about
    long double loss = 0.0L, loss_terms = 0.0L;
    for (size_t i = 0; i < rows; ++i) {
      const double* z = &logits[i * classes];
      if (targets[i] == kIgnored) {
        for (size_t j = 0; j < classes; ++j) EXPECT_EQ(found.gradient[i * classes + j], 0.0);
        continue;
      }
      const auto target = static_cast<size_t>(targets[i]);
      const long double maximum = *std::max_element(z, z + classes);
      long double others = 0.0L, gaps = 0.0L, row_sum = 0.0L;
      for (size_t j = 0; j < classes; ++j) {
        if (j != target) others += std::exp(z[j] - maximum);
        gaps += maximum - z[j];
      }
      const long double own = std::exp(z[target] - maximum), sum = own + others;
      const long double log_sum = own == 1.0L ? std::log1p(others) : std::log(sum);
      loss += log_sum + (1.0L - smoothing) * (maximum - z[target]);
      if (smoothing != 0.0) loss += smoothing * gaps / classes;
      // The logarithm of the sum is the maximum and another term: its error is one of theirs.
      const long double whole = maximum + log_sum, size = std::abs(maximum) + log_sum;
      if (z_loss != 0.0) loss += z_loss * whole * whole;
      if (z_loss != 0.0) loss_terms += z_loss * size * size;
      const long double scale = kUpstream / counted, spread = smoothing / classes;
      for (size_t j = 0; j < classes; ++j) {
        const long double share = (j == target ? others : std::exp(z[j] - maximum)) / sum;
        const long double part = std::exp(z[j] - maximum) / sum;
        const long double slope = z_loss != 0.0 ? 2.0L * z_loss * whole * part : 0.0L;
        const long double wanted =
            scale * ((j == target ? (static_cast<double>(classes) - 1.0) * spread - share : share - spread) + slope);
        const long double terms =
            scale * (share + (j == target ? smoothing : spread) + (z_loss != 0.0 ? 2.0L * z_loss * size * part : 0.0L));
        const double value = found.gradient[i * classes + j];
        ASSERT_LE(std::abs(value - wanted),
                  stored * std::abs(wanted) + (arithmetic + exponent) * terms + 0.5 * smallest)
            << what << ": gradient of class " << j << " of row " << i << " is " << value << ", expected "
            << static_cast<double>(wanted);
        row_sum += value;
      }
      if (z_loss != 0.0) continue;
      const double rounded = 2.0 * static_cast<double>(scale) * (stored + arithmetic + exponent);
      EXPECT_LE(std::abs(row_sum), rounded + static_cast<double>(classes) * smallest) << what << ": the row's sum";
    }
    loss /= counted;
    EXPECT_LE(std::abs(found.loss - loss), (arithmetic + exponent) * (loss + loss_terms / counted) + 1e-37)
        << what << ": the loss";
  }
};

TEST_P(CrossEntropyDigits, OfTwoClasses) {
  const auto gradient_of = [&](std::vector<double> logits) { return run(DType::float32, logits, {0.0}).gradient; };
  const double roundings = 4 * roundoff(DType::float32);
  const auto expect = [&](const std::vector<double>& found, double wanted) {
    EXPECT_NEAR(found[0] / kUpstream, -wanted, roundings * wanted);
    EXPECT_NEAR(found[1] / kUpstream, wanted, roundings * wanted);
  };
  expect(gradient_of({1e8, 1e8}), 0.5);
  expect(gradient_of({1010.0, 1000.0}), 4.5397868702434395e-5);
  expect(gradient_of({15.0, 0.0}), 3.0590222692562472e-7);
  expect(gradient_of({0.0, 15.0}), 0.9999996940977731);
  expect(gradient_of({-1e30, -1e30}), 0.5);
  expect(gradient_of({60.0, 0.0}), 8.75651076269652e-27);
}

TEST_P(CrossEntropyDigits, OfTheLossOfASureTarget) {
  std::vector<double> logits = {1015.0, 1000.0};
  const double loss = run(DType::float32, logits, {0.0}).loss;
  EXPECT_NEAR(loss, 3.0590227371337265e-7, 4 * 3.06e-7 * 0x1p-24);
}

// Offsets that all logits have in common, targets that are ahead of or behind the others, and so many classes that a
// row has several chunks, with the target in any of them.
TEST_P(CrossEntropyDigits, AtAnyOffsetAndForAnyTarget) {
  Random random(5, RandomStream::test);
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    for (const int64_t classes : {1, 2, 3, 37, 1030, 9001}) {
      for (const double offset : {0.0, 300.0, -1e6}) {
        if (dtype == DType::float16 && std::abs(offset) > 6e4) continue;
        for (const double smoothing : {0.0, 0.1, 1.0}) {
          const std::vector<double> targets = {0.0, static_cast<double>(classes - 1), kIgnored,
                                               static_cast<double>(classes / 2), static_cast<double>(classes * 2 / 3)};
          std::vector<double> logits(targets.size() * static_cast<size_t>(classes));
          for (double& value : logits) value = offset + 3.0 * random.next_normal();
          const double ahead[] = {0.0, 37.3, 0.0, -61.7, 13.9};
          for (size_t i = 0; i < targets.size(); ++i) {
            if (targets[i] != kIgnored) logits[i * classes + static_cast<size_t>(targets[i])] += ahead[i];
          }
          const std::string what =
              fmt::format("{} {} classes, offset {}, smoothing {}", name(dtype), classes, offset, smoothing);
          expect_digits(dtype, logits, targets, {.label_smoothing = smoothing}, what);
          if (HasFatalFailure()) return;
          for (const Reduction reduction : {Reduction::mean, Reduction::sum, Reduction::none}) {
            expect_digits(dtype, logits, targets,
                          {.label_smoothing = smoothing, .reduction = reduction, .z_loss = 1e-3},
                          fmt::format("{}, reduction {}, z_loss", what, static_cast<int>(reduction)));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// Where the label is mostly that of all classes, the gradient of the target is a small difference of two sums near 1.
TEST_P(CrossEntropyDigits, OfTheTargetOfAnEvenLabel) {
  Random random(8, RandomStream::test);
  for (const size_t classes : {1000, 50304}) {
    for (const double smoothing : {0.6, 0.99, 1.0}) {
      std::vector<double> logits(classes);
      for (double& value : logits) value = random.next_normal();
      const double found = run(DType::float32, logits, {7.0}, {.label_smoothing = smoothing}).gradient[7];
      long double sum = 0.0L;
      for (const double value : logits) sum += std::exp(static_cast<long double>(value));
      const long double probability = std::exp(static_cast<long double>(logits[7])) / sum;
      const long double label = 1.0L - smoothing + smoothing / static_cast<long double>(classes);
      EXPECT_NEAR(found, kUpstream * (probability - label), 2e-6 * kUpstream * std::max(probability, label))
          << classes << " classes, smoothing " << smoothing;
    }
  }
}

// An infinite upstream gradient gives infinite gradients, not NaN.
TEST_P(CrossEntropyDigits, OfAnInfiniteUpstreamGradient) {
  const Tensor z = Tensor::empty(context(), {1, 2}, DType::float32);
  write_values(context(), z, {0.0, 1.0});
  const Tensor target = Tensor::empty(context(), {1}, DType::int32);
  write_values(context(), target, {0.0});
  Tape tape(context());
  Gradient gradient;
  const Variable loss = cross_entropy(tape, tape.leaf(z, gradient, "logits"), target);
  const Tensor upstream = Tensor::empty(context(), loss.shape(), loss.dtype());
  write_values(context(), upstream, {kInfinity});
  tape.backward(loss, upstream);
  EXPECT_EQ(read_values(context(), gradient.tensor), (std::vector<double>{-kInfinity, kInfinity}));
}

// A logit of -infinity masks its class: no probability, no gradient, and no digit less for the others.
TEST_P(CrossEntropyDigits, MaskedClassesHaveNoShare) {
  Random random(6, RandomStream::test);
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    for (const int64_t classes : {5, 5000}) {
      std::vector<double> logits(static_cast<size_t>(3 * classes));
      for (double& value : logits) value = random.next_below(2) == 0 ? -kInfinity : 5.0 * random.next_normal();
      const std::vector<double> targets = {1.0, static_cast<double>(classes - 2), 0.0};
      for (size_t i = 0; i < 2; ++i) logits[i * classes + static_cast<size_t>(targets[i])] = 0.25;
      for (int64_t j = 1; j < classes; ++j) logits[static_cast<size_t>(2 * classes + j)] = -kInfinity;
      logits[static_cast<size_t>(2 * classes)] = 7.0;  // the target is all that is left
      expect_digits(dtype, logits, targets, {}, fmt::format("{} {} classes", name(dtype), classes));
    }
    std::vector<double> masked_target = {-kInfinity, 1.0, 2.0};
    const LossAndGradient found = run(dtype, masked_target, {0.0});
    EXPECT_EQ(found.loss, kInfinity);
    EXPECT_NEAR(found.gradient[0], -kUpstream, 2 * kUpstream * roundoff(dtype));
    EXPECT_NEAR(found.gradient[1] + found.gradient[2], kUpstream, 2 * kUpstream * roundoff(dtype));
  }
}

// Masks by the least number of a dtype are finite, and so is the smoothed loss, although sums of their distances, the
// distance from a large logit, and the sum of many such losses are not.
TEST_P(CrossEntropyDigits, MasksByTheLeastNumberWithSmoothing) {
  Random random(9, RandomStream::test);
  for (const auto& [dtype, least, rows] :
       {std::tuple{DType::float32, -3.4e38, 64}, {DType::bfloat16, -3.38e38, 64}, {DType::float64, -1.7e308, 3}}) {
    for (const int64_t classes : {2, 9, 700, 5000}) {
      for (const double largest : {0.0, -0.5 * least}) {
        for (const double smoothing : {0.1, 0.6}) {
          if (smoothing == 0.6 && dtype == DType::float64) continue;
          std::vector<double> logits(static_cast<size_t>(rows * classes)), targets;
          for (double& value : logits) value = random.next_below(2) == 0 ? least : largest + random.next_normal();
          for (int64_t i = 0; i < rows; ++i) {
            targets.push_back(static_cast<double>(random.next_below(static_cast<uint32_t>(classes))));
            logits[static_cast<size_t>(i * classes) + static_cast<size_t>(targets.back())] = largest;
          }
          for (const Reduction reduction : {Reduction::mean, Reduction::none}) {
            expect_digits(
                dtype, logits, targets, {.label_smoothing = smoothing, .reduction = reduction},
                fmt::format("{} {} classes, largest {}, smoothing {}", name(dtype), classes, largest, smoothing));
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// The losses of later rows are others, so the mean of some is not that of all.
TEST_P(CrossEntropyDigits, AMeanOverManyRows) {
  const int64_t rows = 300007;
  std::vector<double> logits(static_cast<size_t>(2 * rows), 0.0);
  double wanted = 0.0;
  for (int64_t i = 0; i < rows; ++i) {
    const float logit = 0.3f + 2.0f * static_cast<float>(i) / static_cast<float>(rows);
    logits[2 * i] = logit;
    wanted += std::log1p(std::exp(-static_cast<double>(logit))) / static_cast<double>(rows);
  }
  const double loss = run(DType::float32, logits, std::vector<double>(static_cast<size_t>(rows), 0.0)).loss;
  EXPECT_NEAR(loss, wanted, 4 * wanted * roundoff(DType::float32));
}

HEDDLE_ON_DEVICES(CrossEntropyDigits);

}  // namespace
}  // namespace heddle::test::cross_entropy_test
