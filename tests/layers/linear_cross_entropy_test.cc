// The loss of logits that never exist all at once: what linear and cross_entropy give, in less memory.
#include "layers/ops/linear_cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/linear.h"
#include "tests/error_of.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::linear_cross_entropy_test {
namespace {

struct Numbers {
  std::vector<double> loss, d_x, d_weight;
};

class LinearCrossEntropyTest : public OnDevices {
 protected:
  static constexpr int64_t kRows = 45, kDim = 17, kClasses = 33;

  Tensor normal(const Shape& shape, DType dtype, double scale) {
    const Tensor tensor = Tensor::empty(context(), shape, dtype);
    fill_normal(context(), tensor, random_, 0.0, scale);
    return tensor;
  }

  template <class Loss>
  Numbers run(const Tensor& x, const Tensor& weight, const Loss& compute) {
    Tape tape(context());
    Gradient d_x, d_weight;
    const Variable loss = compute(tape, tape.leaf(x, d_x, "x"), tape.leaf(weight, d_weight, "weight"));
    const Tensor upstream = Tensor::empty(context(), {}, loss.dtype());
    write_values(context(), upstream, {0.75});
    tape.backward(loss, upstream);
    return {read_values(context(), loss.value), read_values(context(), d_x.tensor),
            read_values(context(), d_weight.tensor)};
  }

  static void expect_near(const std::vector<double>& found, const std::vector<double>& expected, double tolerance,
                          const std::string& what) {
    ASSERT_EQ(found.size(), expected.size());
    double largest = 0.0;
    for (const double value : expected) largest = std::max(largest, std::abs(value));
    for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], tolerance * largest) << what;
  }

  Random random_{3, RandomStream::test};
};

TEST_P(LinearCrossEntropyTest, EqualsTheComposition) {
  const Tensor targets = Tensor::empty(context(), {5, 9}, DType::int32);
  std::vector<double> classes(kRows);
  for (double& target : classes) target = static_cast<double>(random_.next_below(kClasses));
  write_values(context(), targets, classes);
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    const double tolerance = dtype == DType::float64 ? 1e-12 : dtype == DType::float32 ? 1e-5 : 0.02;
    const Tensor x = normal({5, 9, kDim}, dtype, 1.0), weight = normal({kClasses, kDim}, dtype, 0.5);
    for (const CrossEntropyOptions& loss :
         {CrossEntropyOptions{}, CrossEntropyOptions{.ignore_index = 4, .label_smoothing = 0.1},
          CrossEntropyOptions{.label_smoothing = 0.2, .reduction = Reduction::sum, .z_loss = 0.01}}) {
      const Numbers whole = run(x, weight, [&](Tape& tape, const Variable& in, const Variable& table) {
        return cross_entropy(tape, linear(tape, in, table), targets, loss);
      });
      for (const int64_t chunk : {1, 7, 44, 45, 1000}) {
        const Numbers parts = run(x, weight, [&](Tape& tape, const Variable& in, const Variable& table) {
          return linear_cross_entropy(tape, in, table, targets, {.loss = loss, .chunk = chunk});
        });
        const std::string what = fmt::format("{} chunk {}", name(dtype), chunk);
        // On a GPU, products of other sizes may round a logit of 16 bits otherwise.
        const double of_loss = on_gpu() && size_of(dtype) == 2 ? 1e-3 : 1e-5;
        expect_near(parts.loss, whole.loss, std::min(tolerance, of_loss), what + " loss");
        expect_near(parts.d_x, whole.d_x, tolerance, what + " d_x");
        expect_near(parts.d_weight, whole.d_weight, tolerance, what + " d_weight");
      }
    }
  }
}

// In bytes: the logits of one chunk and three numbers for each row while the loss is computed, after it the gradients.
TEST_P(LinearCrossEntropyTest, HoldsTheLogitsOfOneChunk) {
  const int64_t rows = 256, dim = 16, classes = 512, chunk = 64;
  for (const DeviceType device : {GetParam(), DeviceType::meta}) {
    Context context(Device{device});
    CachingAllocator& allocator = context.allocator();
    const auto above = [&](size_t before) { return allocator.stats().allocated.peak - before; };
    const Tensor x = Tensor::zeros(context, {rows, dim}, DType::float32);
    const Tensor weight = Tensor::zeros(context, {classes, dim}, DType::float32);
    const Tensor targets = Tensor::zeros(context, {rows}, DType::int32);
    const Tensor upstream = Tensor::zeros(context, {}, DType::float32);
    Gradient d_x, d_weight;
    d_x.tensor = Tensor::zeros(context, x.shape(), DType::float32);
    d_weight.tensor = Tensor::zeros(context, weight.shape(), DType::float32);
    Tape tape(context);
    const size_t before = allocator.stats().allocated.current;
    const size_t logits = chunk * classes * sizeof(float), row_numbers = rows * sizeof(float), number = 512;
    allocator.reset_peaks();
    const Variable loss = linear_cross_entropy(tape, tape.leaf(x, d_x, "x"), tape.leaf(weight, d_weight, "weight"),
                                               targets, {.chunk = chunk});
    const size_t gradients = (rows + classes) * dim * sizeof(float);
    EXPECT_EQ(above(before), logits + gradients + 3 * row_numbers + 2 * number);  // two numbers: the loss, the count
    const size_t kept = allocator.stats().allocated.current;
    EXPECT_EQ(kept - before, gradients + 2 * number);
    allocator.reset_peaks();
    tape.backward(loss, upstream);
    EXPECT_EQ(above(kept), 0u);
    EXPECT_EQ(allocator.stats().allocated.current - before, number);  // the loss
  }
}

// Without a gradient that is wanted, neither memory nor a product is spent on it.
TEST_P(LinearCrossEntropyTest, OnlyWantedGradientsAreMade) {
  const int64_t rows = 256, dim = 16, classes = 512;
  const Tensor x = normal({rows, dim}, DType::float32, 1.0), weight = normal({classes, dim}, DType::float32, 1.0);
  const Tensor targets = Tensor::zeros(context(), {rows}, DType::int32);
  const auto kept = [&](bool of_x, bool of_weight) {
    Gradient d_x, d_weight;
    Tape tape(context());
    const size_t before = context().allocator().stats().allocated.current;
    const Variable loss =
        linear_cross_entropy(tape, of_x ? tape.leaf(x, d_x, "x") : tape.constant(x),
                             of_weight ? tape.leaf(weight, d_weight, "weight") : tape.constant(weight), targets);
    const size_t bytes = context().allocator().stats().allocated.current - before;
    if (of_x || of_weight) tape.backward(loss);
    EXPECT_EQ(d_x.tensor.defined(), of_x);
    EXPECT_EQ(d_weight.tensor.defined(), of_weight);
    return bytes;
  };
  const size_t number = 512, of_x = rows * dim * sizeof(float), of_weight = classes * dim * sizeof(float);
  EXPECT_EQ(kept(true, true), of_x + of_weight + 2 * number);
  EXPECT_EQ(kept(true, false), of_x + 2 * number);
  EXPECT_EQ(kept(false, true), of_weight + 2 * number);
  EXPECT_EQ(kept(false, false), number);
}

// The gradient of x stays where forward made it, when it is of that type and nothing else arrived there.
TEST_P(LinearCrossEntropyTest, TheGradientOfXTakesNoOtherMemory) {
  const int64_t rows = 256, dim = 16, classes = 512;
  const Tensor narrow = normal({rows, 1}, DType::float32, 1.0), widened = normal({dim, 1}, DType::float32, 1.0);
  const Tensor weight = normal({classes, dim}, DType::float32, 1.0);
  const Tensor targets = Tensor::zeros(context(), {rows}, DType::int32);
  Gradient d_narrow;
  Tape tape(context());
  const Variable x = linear(tape, tape.leaf(narrow, d_narrow, "narrow"), tape.constant(widened));
  const Variable loss = linear_cross_entropy(tape, x, tape.constant(weight), targets);
  CachingAllocator& allocator = context().allocator();
  const size_t before = allocator.stats().allocated.current, number = 512;
  allocator.reset_peaks();
  tape.backward(loss);
  EXPECT_LE(allocator.stats().allocated.peak - before, rows * sizeof(float) + number);  // d_narrow, a one
}

TEST_P(LinearCrossEntropyTest, NamesWhatDoesNotFit) {
  Tape tape(context());
  const Variable x = tape.constant(normal({3, 4}, DType::float32, 1.0));
  const Variable weight = tape.constant(normal({5, 4}, DType::float32, 1.0));
  const Tensor targets = Tensor::zeros(context(), {3}, DType::int32);
  EXPECT_EQ(testing::error_of([&] {
              linear_cross_entropy(tape, x, tape.constant(normal({5, 3}, DType::float32, 1.0)), targets);
            }),
            "[linear_cross_entropy] weight has shape (5, 3), expected (classes, 4), at least one class: 4 is the last "
            "dimension of x (3, 4)");
  EXPECT_EQ(
      testing::error_of([&] { linear_cross_entropy(tape, x, weight, Tensor::zeros(context(), {2}, DType::int32)); }),
      "[linear_cross_entropy] targets are int32 (2), expected dense int32 (3): one for each row of x (3, 4)");
  EXPECT_EQ(testing::error_of(
                [&] { linear_cross_entropy(tape, x, weight, targets, {.loss = {.reduction = Reduction::none}}); }),
            "[linear_cross_entropy] reduction is none, expected mean or sum");
  EXPECT_EQ(testing::error_of([&] { linear_cross_entropy(tape, x, weight, targets, {.chunk = 0}); }),
            "[linear_cross_entropy] chunk is 0, expected at least one row");
}

// Counted over all rows, whichever part of them a target is in.
TEST_P(LinearCrossEntropyTest, NamesTheTargetThatIsNoClass) {
  if (on_gpu()) GTEST_SKIP() << "a GPU does not check targets";
  Tape tape(context());
  const Variable x = tape.constant(normal({7, 4}, DType::float32, 1.0));
  const Variable weight = tape.constant(normal({5, 4}, DType::float32, 1.0));
  const Tensor targets = Tensor::zeros(context(), {7}, DType::int32);
  write_values(context(), targets, {0, 1, -100, 3, 4, 5, -1});
  EXPECT_EQ(testing::error_of([&] { linear_cross_entropy(tape, x, weight, targets, {.chunk = 2}); }),
            "[linear_cross_entropy] target 5 is 5, expected one of [0, 5) or ignore_index -100");
}

HEDDLE_ON_DEVICES(LinearCrossEntropyTest);

}  // namespace
}  // namespace heddle::test::linear_cross_entropy_test
