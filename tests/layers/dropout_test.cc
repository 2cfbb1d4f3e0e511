// Dropout: what is dropped and how often, that nothing is stored, and where it does nothing.
#include "layers/ops/dropout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tests/error_of.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::dropout_test {
namespace {

std::vector<double> dropped(Context& context, const DropoutOptions& options, const Shape& shape) {
  const Tensor x = Tensor::empty(context, shape, DType::float32);
  write_values(context, x, std::vector<double>(static_cast<size_t>(x.numel()), 1.0));
  Tape tape(context);
  return read_values(context, dropout(tape, tape.constant(x), options).value);
}

class Dropout : public OnDevices {};

TEST_P(Dropout, DropsTheShareThatIsAskedFor) {
  for (const double p : {0.1, 0.5, 0.9}) {
    const std::vector<double> y = dropped(context(), {.p = p, .seed = 5}, {1000, 100});
    double zeros = 0.0;
    for (const double value : y) {
      zeros += value == 0.0;
      ASSERT_TRUE(value == 0.0 || std::abs(value - 1.0 / (1.0 - p)) < 1e-6);
    }
    EXPECT_NEAR(zeros / 1e5, p, 5 * std::sqrt(p * (1 - p) / 1e5));
  }
}

TEST_P(Dropout, TheMaskIsAFunctionOfSeedAndPlace) {
  Context one(Device{}, {.threads = 1}), three(Device{}, {.threads = 3});
  const DropoutOptions options{.p = 0.4, .seed = 1};
  const std::vector<double> mask = dropped(context(), options, {200, 301});
  EXPECT_EQ(dropped(one, options, {200, 301}), mask);
  EXPECT_EQ(dropped(three, options, {200, 301}), mask);
  EXPECT_EQ(dropped(context(), options, {60200}), mask);
  EXPECT_NE(dropped(context(), {.p = 0.4, .seed = 2}, {200, 301}), mask);
  EXPECT_NE(dropped(context(), {.p = 0.4, .seed = uint64_t{1} << 32 | 1}, {200, 301}), mask);
}

TEST_P(Dropout, OfEverythingIsZero) {
  const double infinity = std::numeric_limits<double>::infinity();
  const Tensor x = Tensor::empty(context(), {4}, DType::float32);
  write_values(context(), x, {1.0, infinity, -infinity, std::nan("")});
  Tape tape(context());
  Gradient d_x;
  const Variable y = dropout(tape, tape.leaf(x, d_x, "x"), {.p = 1.0, .seed = 3});
  EXPECT_EQ(read_values(context(), y.value), std::vector<double>(4, 0.0));
  tape.backward(y, x);
  EXPECT_EQ(read_values(context(), d_x.tensor), std::vector<double>(4, 0.0));
}

// What is dropped is 0, whatever it was, and what is kept keeps its infinity or NaN, in forward and backward.
TEST_P(Dropout, TakesInfinitiesAndNaN) {
  const DropoutOptions options{.p = 0.5, .seed = 9};
  const std::vector<double> mask = dropped(context(), options, {40});
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    for (const double value : {std::numeric_limits<double>::infinity(), std::nan("")}) {
      const Tensor x = Tensor::empty(context(), {40}, dtype);
      write_values(context(), x, std::vector<double>(40, value));
      Tape tape(context());
      Gradient d_x;
      const Variable y = dropout(tape, tape.leaf(x, d_x, "x"), options);
      tape.backward(y, x);
      for (const Tensor& result : {y.value, d_x.tensor}) {
        const std::vector<double> found = read_values(context(), result);
        for (size_t i = 0; i < found.size(); ++i) {
          if (mask[i] == 0.0) {
            EXPECT_EQ(found[i], 0.0) << name(dtype) << " " << i;
          } else {
            EXPECT_TRUE(found[i] == value || (std::isnan(found[i]) && std::isnan(value))) << name(dtype) << " " << i;
          }
        }
      }
    }
  }
}

TEST_P(Dropout, DoesNothingInInferenceOrWithoutAProbability) {
  const Tensor x = Tensor::zeros(context(), {3, 4}, DType::float32);
  Tape inference(context(), Tape::Mode::inference), record(context());
  EXPECT_TRUE(dropout(inference, inference.constant(x), {.p = 0.5}).value.shares_storage_with(x));
  EXPECT_TRUE(dropout(record, record.constant(x), {.p = 0.0}).value.shares_storage_with(x));
  Tape unrecorded(context(), Tape::Mode::unrecorded);
  EXPECT_FALSE(dropout(unrecorded, unrecorded.constant(x), {.p = 0.5}).value.shares_storage_with(x));
}

TEST_P(Dropout, KeepsNothing) {
  const auto allocated = [&] { return context().allocator().stats().allocated.current; };
  Tape tape(context());
  Gradient d_x;
  Variable x = tape.leaf(Tensor::zeros(context(), {128, 4}, DType::float32), d_x, "x");
  const size_t before = allocated();
  Variable y = dropout(tape, x, {.p = 0.5, .seed = 1});
  EXPECT_EQ(allocated() - before, size_t{128 * 4 * 4});
  y.value = {};
  EXPECT_EQ(allocated(), before);
}

TEST_P(Dropout, RefusesWhatIsNoProbability) {
  Tape tape(context());
  const Variable x = tape.constant(Tensor::zeros(context(), {3}, DType::float32));
  for (const double p : {-0.1, 1.5, std::nan("")}) EXPECT_THROW(dropout(tape, x, {.p = p}), Error) << p;
  try {
    dropout(tape, x, {.p = 1.5});
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[dropout] p is 1.5, expected a number from 0 to 1");
  }
}

TEST_P(Dropout, RefusesPlacesThatNoMaskHas) {
  Tape tape(context());
  const Variable x = tape.constant(Tensor::zeros(context(), {3}, DType::float32));
  const auto message = [&](int64_t first) {
    return testing::error_of([&] { dropout(tape, x, {.p = 0.5, .first_element = first}); });
  };
  const int64_t last = std::numeric_limits<int64_t>::max() - 3;
  const std::string expected = fmt::format(", expected 0 to {}: elements that come before x (3)", last);
  EXPECT_EQ(message(-1), "[dropout] first_element is -1" + expected);
  EXPECT_EQ(message(last + 1), fmt::format("[dropout] first_element is {}", last + 1) + expected);
  EXPECT_EQ(message(last), "no error");
}

// A mask whose seed lies on the device is that of the same seed on the host, in forward and backward.
TEST_P(Dropout, TakesTheBitsOfASeedOnTheDevice) {
  constexpr int64_t kFirst = 6;
  const Tensor ones = Tensor::empty(context(), {30, 7}, DType::float32);
  write_values(context(), ones, std::vector<double>(210, 1.0));
  const Tensor on_device = Tensor::empty(context(), {2, 1}, DType::int64);
  for (const uint64_t seed : {uint64_t{0}, uint64_t{5}, uint64_t{1} << 63 | 12345, ~uint64_t{0}}) {
    for (const int64_t first : {int64_t{0}, kFirst}) {
      const int64_t bits[2] = {0, static_cast<int64_t>(seed)};
      copy_from_host(context(), on_device, bits);
      Tape tape(context());
      Gradient d_x;
      const Variable y =
          dropout(tape, tape.leaf(ones, d_x, "x"),
                  {.p = 0.4, .seed = 77, .first_element = first, .seed_on_device = on_device.select(0, 1)});
      tape.backward(y, ones);
      const std::vector<double> expected =
          dropped(context(), {.p = 0.4, .seed = seed, .first_element = first}, {30, 7});
      EXPECT_EQ(read_values(context(), y.value), expected) << seed;
      EXPECT_EQ(read_values(context(), d_x.tensor), expected) << seed;
    }
  }
  const auto message = [&](const Tensor& seeds) {
    Tape tape(context());
    return testing::error_of([&] { dropout(tape, tape.constant(ones), {.p = 0.4, .seed_on_device = seeds}); });
  };
  EXPECT_EQ(message(on_device), "[dropout] seed_on_device is int64 (2, 1), expected one int64");
  EXPECT_EQ(message(Tensor::zeros(context(), {1}, DType::int32)),
            "[dropout] seed_on_device is int32 (1), expected one int64");
}

HEDDLE_ON_DEVICES(Dropout);

TEST(DropoutSeeds, Differ) {
  std::set<uint64_t> seeds;
  for (const uint64_t seed : {0, 1, 2}) {
    for (uint64_t position = 0; position < 1000; ++position) seeds.insert(derived_seed(seed, position));
  }
  EXPECT_EQ(seeds.size(), 3000u);
}

}  // namespace
}  // namespace heddle::test::dropout_test
