#include "layers/lrpe.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/config/config_load.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

using ::testing::ElementsAre;

Tensor normal(Context& context, const Shape& shape, DType dtype = DType::float32) {
  Random random(7, RandomStream::test);
  Tensor tensor = Tensor::empty(context, shape, dtype);
  fill_normal(context, tensor, random, 0.0, 1.0);
  return tensor;
}

std::unique_ptr<Lrpe> make(const std::string& yaml, ParameterSet& parameters, int64_t layer = 0) {
  return make_lrpe(parse_config(yaml), ModuleBuilder(parameters).child("lrpe"), {32, layer, 2}, 2, 8);
}

TEST(Theta, KeepsTheHalfThatIsAskedFor) {
  EXPECT_THAT(theta_values(ThetaInit::rope, 16.0, 4, 8), ElementsAre(1.0, 0.5, 0.25, 0.125));
  EXPECT_THAT(theta_values(ThetaInit::low_half, 16.0, 4, 8), ElementsAre(0.0, 0.0, 0.25, 0.125));
  EXPECT_THAT(theta_values(ThetaInit::high_half, 16.0, 4, 8), ElementsAre(1.0, 0.5, 0.0, 0.0));
}

TEST(Lrpe, IsThereOnItsLayersOnly) {
  ParameterSet parameters;
  EXPECT_NE(make("{type: lrpe_rotate, layers: [0]}", parameters, 0), nullptr);
  EXPECT_EQ(make("{type: lrpe_rotate, layers: [0]}", parameters, 1), nullptr);
  EXPECT_NE(make("{type: lrpe_rotate}", parameters, 1), nullptr);
}

TEST(Lrpe, RefusesWhatMakesNoSense) {
  ParameterSet parameters;
  EXPECT_THROW(make("{type: lrpe_rotat}", parameters), ConfigError);
  EXPECT_THROW(make("{type: lrpe_rotate, layers: [2]}", parameters), ConfigError);
  EXPECT_THROW(make("{type: lrpe_rotate, act: softmax, act_dim: sequence}", parameters), ConfigError);
  EXPECT_THROW(make("{type: lrpe_rotate, act: silu, act_dim: feature}", parameters), ConfigError);
  EXPECT_THROW(make("{type: lrpe_rotate, bas: 10}", parameters), ConfigError);
}

TEST(Lrpe, NamesTheShapesThatDoNotFit) {
  Context context;
  Tape tape(context);
  const Variable x = tape.constant(normal(context, {1, 3, 2, 8}));
  try {
    lrpe_rotate(tape, x, tape.constant(normal(context, {2, 5})));
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "[lrpe_rotate] theta has shape (2, 5), expected (1 or 2, at most 4): the heads and half the features "
                 "of x (1, 3, 2, 8)");
  }
}

// A text read in two stretches gives what it gives in one.
TEST(Lrpe, ContinuesAtAnOffset) {
  Context context;
  ParameterSet parameters;
  const auto lrpe = make("{type: lrpe_rotate, act: silu}", parameters);
  Tape tape(context, Tape::Mode::inference);
  const Variable x = tape.constant(normal(context, {2, 6, 2, 8}));
  const std::vector<double> whole = read_values(context, lrpe->forward(tape, x).value.slice(1, 4, 6));
  const std::vector<double> second =
      read_values(context, lrpe->forward(tape, tape.constant(x.value.slice(1, 4, 6)), 4).value);
  EXPECT_EQ(second, whole);
}

TEST(Lrpe, LearnsThetaInFloat32) {
  Context context;
  ParameterSet parameters;
  const auto lrpe = make("{type: lrpe_rotate, learnable: true, per_head: true}", parameters);
  parameters.materialize(context, DType::bfloat16, 1);
  ASSERT_EQ(parameters.all().size(), 1u);
  EXPECT_EQ(parameters.all().front().name, "lrpe.theta");
  Tape tape(context);
  const Variable y = lrpe->forward(tape, tape.constant(normal(context, {1, 5, 2, 8}, DType::bfloat16)));
  tape.backward(y, normal(context, {1, 5, 2, 8}, DType::bfloat16));
  const Tensor& gradient = parameters.all().front().gradient.tensor;
  EXPECT_EQ(gradient.dtype(), DType::float32);
  EXPECT_EQ(to_string(gradient.shape()), "(2, 4)");
  for (const double value : read_values(context, gradient)) EXPECT_NE(value, 0.0);
}

TEST(Lrpe, KeepsNothingWithoutActivation) {
  Context context;
  ParameterSet parameters;
  const auto lrpe = make("{type: lrpe_rotate}", parameters);
  Gradient gradient;
  Tape tape(context);
  Variable x = tape.leaf(normal(context, {1, 64, 2, 8}), gradient, "x");
  const size_t before = context.allocator().stats().allocated.current;
  const Variable y = lrpe->forward(tape, x);
  x.value = {};
  // y in the place of x, and theta.
  EXPECT_EQ(context.allocator().stats().allocated.current, before + CachingAllocator::kGranularity);
}

}  // namespace
}  // namespace heddle
