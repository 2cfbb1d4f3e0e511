#include "core/autograd/parameter.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/autograd/test_nodes.h"
#include "tests/error_of.h"

namespace heddle {
namespace {

class ParameterTest : public ::testing::Test {
 protected:
  Values read(const Tensor& tensor) { return read_values(context_, tensor); }

  Context context_;
};

TEST_F(ParameterTest, NumbersThatCannotBeCountedAreRefused) {
  const auto refusal = [](const std::vector<Shape>& shapes) -> std::string {
    ParameterSet set;
    try {
      for (const Shape& shape : shapes) set.add(fmt::format("p{}", set.all().size()), shape, {}, true);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const int64_t large = int64_t{1} << 59;
  EXPECT_EQ(refusal({{large}}), "");
  EXPECT_EQ(refusal({{large}, {large, 1}}), "");
  EXPECT_EQ(refusal({{large}, {2, large}}),
            "parameter p1 has shape (2, 576460752303423488), too large: all parameters together may have 2^60 numbers");
  EXPECT_NE(refusal({{large, 1024}}), "");
  EXPECT_NE(refusal({{int64_t{1} << 32, int64_t{1} << 32}}), "") << "0 modulo 2^64";
}

TEST_F(ParameterTest, FlatBuffersHoldDecayingParametersFirst) {
  ParameterSet set;
  Parameter& bias = set.add("bias", {3}, Initializer::constant(2.0), false);
  Parameter& weight = set.add("weight", {2, 100}, Initializer::constant(1.0), true);
  Parameter& second = set.add("second", {5}, Initializer::given({1, 2, 3, 4, 5}), true);
  set.materialize(context_, DType::float32, 1);

  EXPECT_EQ(set.count(), 208);
  EXPECT_EQ(set.offset(1), 0);
  EXPECT_EQ(set.offset(2), 256) << "each starts at a multiple of 128 elements";
  EXPECT_EQ(set.offset(0), 384);
  EXPECT_EQ(set.master().shape(), (Shape{512}));
  EXPECT_EQ(set.gradient().shape(), (Shape{512}));

  const Values flat = read(set.master());
  Values expected(512, 0.0);
  std::fill_n(expected.begin(), 200, 1.0);
  for (size_t i = 0; i < 5; ++i) expected[256 + i] = static_cast<double>(i + 1);
  std::fill_n(expected.begin() + 384, 3, 2.0);
  EXPECT_EQ(flat, expected);
  EXPECT_EQ(read(set.gradient()), Values(512, 0.0));

  EXPECT_EQ(weight.value.shape(), (Shape{2, 100}));
  for (const Parameter* parameter : {&bias, &weight, &second}) {
    EXPECT_TRUE(parameter->value.shares_storage_with(set.value()));
    EXPECT_TRUE(parameter->master.shares_storage_with(set.master()));
    EXPECT_TRUE(parameter->gradient.tensor.shares_storage_with(set.gradient()));
  }
  EXPECT_TRUE(set.value().shares_storage_with(set.master())) << "no second copy when the dtypes agree";
}

TEST_F(ParameterTest, MasterAndGradientAreFloat32UnderANarrowComputeDtype) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    ParameterSet set;
    Parameter& weight = set.add("weight", {64}, Initializer::normal(1.0), true);
    set.materialize(context_, dtype, 1);
    EXPECT_EQ(weight.value.dtype(), dtype);
    EXPECT_EQ(weight.master.dtype(), DType::float32);
    EXPECT_EQ(weight.gradient.tensor.dtype(), DType::float32);
    const Tensor rounded = make_tensor(context_, {64}, read(weight.master), dtype);
    EXPECT_EQ(read(weight.value), read(rounded));
  }
  ParameterSet set;
  EXPECT_EQ(set.add("weight", {4}, Initializer::normal(1.0), true).name, "weight");
  set.materialize(context_, DType::float64, 1);
  EXPECT_EQ(set.gradient().dtype(), DType::float64);
}

TEST_F(ParameterTest, StartIsAFunctionOfSeedAndPlaceAlone) {
  const auto start = [&](uint64_t seed, int64_t other_size, double other_scale) {
    ParameterSet set;
    set.add("first", {other_size}, Initializer::normal(other_scale), false);
    const Parameter& second = set.add("second", {4, 4}, Initializer::normal(0.5), true);
    set.materialize(context_, DType::float32, seed);
    return read(second.value);
  };
  EXPECT_EQ(start(1, 3, 1.0), start(1, 1000, 0.1));
  EXPECT_NE(start(1, 3, 1.0), start(2, 3, 1.0));

  ParameterSet twins;
  const Parameter& a = twins.add("a", {16}, Initializer::normal(1.0), true);
  const Parameter& b = twins.add("b", {16}, Initializer::normal(1.0), true);
  twins.materialize(context_, DType::float32, 1);
  EXPECT_NE(read(a.value), read(b.value));
}

TEST_F(ParameterTest, NormalHasItsStandardDeviation) {
  ParameterSet set;
  const Parameter& weight = set.add("weight", {100, 100}, Initializer::normal(0.02), true);
  set.materialize(context_, DType::float32, 1);
  double sum = 0, squares = 0;
  for (double value : read(weight.value)) {
    sum += value;
    squares += value * value;
  }
  EXPECT_NEAR(sum / 1e4, 0.0, 4 * 0.02 / 100);
  EXPECT_NEAR(std::sqrt(squares / 1e4), 0.02, 0.02 * 0.03);
}

TEST_F(ParameterTest, StartsAreTheNumbersOfTheirStreamsTimesTheirDeviation) {
  ParameterSet set;
  const double scales[] = {0.02, 1.0, 0.5};
  for (const double scale : scales) {
    set.add(std::to_string(scale), {7, 9}, Initializer::normal(scale), scale < 1.0);
  }
  set.materialize(context_, DType::float64, 11);
  uint32_t index = 0;
  for (const Parameter& parameter : set.all()) {
    Random random(11, RandomStream::parameters, index);
    for (const double value : read(parameter.master)) EXPECT_DOUBLE_EQ(value, scales[index] * random.next_normal());
    ++index;
  }
}

TEST_F(ParameterTest, TakenNamesAndLateAdditionsAreErrors) {
  ParameterSet set;
  set.add("blocks.0.weight", {2, 3}, Initializer::normal(1.0), true);
  try {
    set.add("blocks.0.weight", {4}, Initializer::normal(1.0), true);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "two parameters are called blocks.0.weight: of shapes (2, 3) and (4)");
  }
  set.materialize(context_, DType::float32, 1);
  EXPECT_THROW(set.add("late", {1}, Initializer::normal(1.0), true), Error);
  EXPECT_THROW(set.materialize(context_, DType::float32, 1), Error);
}

TEST_F(ParameterTest, ReferencesStayValid) {
  ParameterSet set;
  Parameter& first = set.add("0", {1}, Initializer::constant(7.0), true);
  for (int i = 1; i < 200; ++i) set.add(std::to_string(i), {1}, Initializer::constant(0.0), true);
  set.materialize(context_, DType::float32, 1);
  EXPECT_EQ(read(first.value), (Values{7}));
}

TEST_F(ParameterTest, GradientsArriveInTheFlatBufferAndAccumulateUntilZeroGrad) {
  ParameterSet set;
  Parameter& a = set.add("a", {2}, Initializer::given({2, 3}), true);
  Parameter& b = set.add("b", {2}, Initializer::given({5, 7}), false);
  set.materialize(context_, DType::float64, 1);
  const auto step = [&] {
    Tape tape(context_);
    const Variable product = multiply(tape, ParameterSet::on(tape, a), ParameterSet::on(tape, b));
    tape.backward(product, make_tensor(context_, {2}, {1, 1}));
  };
  for (int times = 1; times <= 2; ++times) {
    step();
    EXPECT_EQ(read(a.gradient.tensor), (Values{5.0 * times, 7.0 * times}));
  }
  set.zero_grad();
  step();
  const Values flat = read(set.gradient());
  Values expected(256, 0.0);
  expected[0] = 5;
  expected[1] = 7;
  expected[128] = 2;
  expected[129] = 3;
  EXPECT_EQ(flat, expected) << "gaps stay zero";
}

// zero_grad() touches no memory, so the numbers of the step before are still there.
TEST_F(ParameterTest, GradientsThatNothingHasWrittenSinceZeroGradCanBeSetToZero) {
  ParameterSet set;
  Parameter& a = set.add("a", {2}, Initializer::given({2, 3}), true);
  Parameter& b = set.add("b", {2}, Initializer::given({5, 7}), true);
  set.materialize(context_, DType::float64, 1);
  const auto step = [&](Parameter& parameter) {
    Tape tape(context_);
    tape.backward(scale(tape, ParameterSet::on(tape, parameter), 3.0), make_tensor(context_, {2}, {1, 1}));
  };
  set.zero_grad();
  step(a);
  step(b);
  set.zero_grad();
  step(a);
  EXPECT_EQ(read(b.gradient.tensor), (Values{3, 3}));
  set.zero_unwritten_gradients(context_);
  EXPECT_EQ(read(a.gradient.tensor), (Values{3, 3}));
  EXPECT_EQ(read(b.gradient.tensor), (Values{0, 0}));
  step(a);
  EXPECT_EQ(read(a.gradient.tensor), (Values{6, 6})) << "what was written is still added to";
  // What a caller writes counts until the next zero_grad() where he says that it is written.
  write_values(context_, b.gradient.tensor, {8, 8});
  b.gradient.written = true;
  set.zero_unwritten_gradients(context_);
  EXPECT_EQ(read(b.gradient.tensor), (Values{8, 8}));
  set.zero_grad();
  set.zero_unwritten_gradients(context_);
  EXPECT_EQ(read(set.gradient()), Values(256, 0.0));
}

TEST_F(ParameterTest, ImpossibleOnesAreRefused) {
  ParameterSet set;
  EXPECT_EQ(testing::error_of([&] { set.add("a", {-2, 3}, {}, true); }), "a has shape (-2, 3): an extent is negative");
  EXPECT_EQ(testing::error_of([&] {
              set.add_buffer("b", {-1, -2}, {1, 2});
            }),
            "b has shape (-1, -2): an extent is negative");
  EXPECT_EQ(testing::error_of([&] {
              set.add("a", {3}, Initializer::given({1, 2}), true);
            }),
            "parameter a of shape (3) is given 2 values, expected 3");
  EXPECT_EQ(set.count(), 0);
  set.add("a", {2}, Initializer::constant(1.0), true);
  EXPECT_EQ(testing::error_of([&] { set.materialize(context_, DType::int32, 1); }),
            "parameters cannot be int32: they are real numbers");
  for (const int parts : {0, -1}) {
    EXPECT_EQ(testing::error_of([&] { set.materialize(context_, DType::float32, 1, parts); }),
              fmt::format("the parameters are to have {} parts, expected at least 1", parts));
  }
  set.materialize(context_, DType::float32, 1);
}

TEST_F(ParameterTest, MemoryIsCountedByCategoryAndTheSameOnMeta) {
  Context meta(Device{DeviceType::meta});
  for (Context* context : {&context_, &meta}) {
    ParameterSet set;
    set.add("weight", {1000}, Initializer::normal(1.0), true);
    set.materialize(*context, DType::bfloat16, 1);
    const MemoryStats stats = context->allocator().stats();
    EXPECT_EQ(stats.by_category[static_cast<int>(MemoryCategory::parameter)].current, 1024u * (4 + 2));
    EXPECT_EQ(stats.by_category[static_cast<int>(MemoryCategory::gradient)].current, 1024u * 4);
  }
}

TEST_F(ParameterTest, BuffersHaveTheirValuesInTheAccumulateType) {
  for (const DType dtype : {DType::bfloat16, DType::float16, DType::float32, DType::float64}) {
    ParameterSet set;
    Buffer& decay = set.add_buffer("log_decay", {2}, {-0.5, -0.1});
    set.add("weight", {3}, Initializer::constant(1.0), true);
    const Buffer& angles = set.add_buffer("angles", {2, 2}, {1, 2, 3, 4});
    set.materialize(context_, dtype, 1);
    EXPECT_EQ(decay.value.dtype(), accumulate_type(dtype));
    EXPECT_EQ(read(decay.value), read(make_tensor(context_, {2}, {-0.5, -0.1}, accumulate_type(dtype))));
    EXPECT_EQ(angles.value.shape(), (Shape{2, 2}));
    EXPECT_EQ(read(angles.value), (Values{1, 2, 3, 4}));
    EXPECT_FALSE(angles.value.shares_storage_with(set.master()));
    EXPECT_EQ(set.count(), 3);
    EXPECT_EQ(set.all().size(), 1u);
    EXPECT_EQ(set.master().numel(), 128) << "no part of a flat buffer";
    ASSERT_EQ(set.buffers().size(), 2u);
    EXPECT_EQ(&set.buffers()[0], &decay) << "in the order of adding";
  }
}

TEST_F(ParameterTest, BuffersAloneAreASetToo) {
  ParameterSet set;
  const Buffer& buffer = set.add_buffer("angles", {}, {3});
  set.materialize(context_, DType::float32, 1);
  EXPECT_EQ(read(buffer.value), (Values{3}));
  EXPECT_THROW(set.add_buffer("late", {1}, {1}), Error);
}

TEST_F(ParameterTest, BuffersDoNotChangeHowParametersStart) {
  const auto start = [&](bool with_buffer) {
    ParameterSet set;
    if (with_buffer) set.add_buffer("angles", {2}, {1, 2});
    set.add("weight", {4, 4}, Initializer::normal(0.5), true);
    set.materialize(context_, DType::float32, 1);
    return read(set.master());
  };
  EXPECT_EQ(start(true), start(false));
}

TEST_F(ParameterTest, BuffersWithATakenNameOrTheWrongNumberOfValuesAreErrors) {
  ParameterSet set;
  set.add("weight", {2, 3}, Initializer::normal(1.0), true);
  set.add_buffer("angles", {2}, {1, 2});
  EXPECT_EQ(testing::error_of([&] { set.add_buffer("weight", {1}, {1}); }),
            "two parameters are called weight: of shapes (2, 3) and (1)");
  EXPECT_EQ(testing::error_of([&] { set.add_buffer("angles", {1}, {1}); }),
            "angles is the name of a buffer of shape (2) already, and now of another value of shape (1)");
  EXPECT_EQ(testing::error_of([&] { set.add("angles", {4}, Initializer::normal(1.0), true); }),
            "angles is the name of a buffer of shape (2) already, and now of another value of shape (4)");
  EXPECT_EQ(testing::error_of([&] {
              set.add_buffer("decay", {2, 2}, {1, 2, 3});
            }),
            "buffer decay of shape (2, 2) has 3 values, expected 4");
  EXPECT_EQ(set.buffers().size(), 1u) << "a refused buffer is not added";
}

TEST_F(ParameterTest, BuffersCountAsParametersAndHaveTheSameBytesOnMeta) {
  Context meta(Device{DeviceType::meta});
  for (Context* context : {&context_, &meta}) {
    ParameterSet set;
    const Buffer& buffer = set.add_buffer("angles", {200}, Values(200, 1.0));
    set.materialize(*context, DType::bfloat16, 1);
    EXPECT_EQ(buffer.value.dtype(), DType::float32);
    const MemoryStats stats = context->allocator().stats();
    EXPECT_EQ(stats.by_category[static_cast<int>(MemoryCategory::parameter)].current, 1024u);
    EXPECT_EQ(stats.allocated.current, 1024u);
  }
}

}  // namespace
}  // namespace heddle
