#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "core/config/config_load.h"
#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/modules/position.h"
#include "layers/registry.h"
#include "tests/error_of.h"

namespace heddle::lrpe_test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

Tensor normal(Context& context, const Shape& shape, DType dtype = DType::float32) {
  Random random(7, RandomStream::test);
  Tensor tensor = Tensor::empty(context, shape, dtype);
  fill_normal(context, tensor, random, 0.0, 1.0);
  return tensor;
}

std::unique_ptr<Lrpe> make(const std::string& yaml, ParameterSet& parameters, int64_t layer = 0) {
  const ConfigNode section = parse_config(yaml);
  ConfigFields fields(section);
  Lrpe::Options options;
  describe_lrpe(fields, {.dim = 32, .layers = 2}, 8, options);
  section.finish();
  if (!options.is_on(layer)) return nullptr;
  return std::make_unique<Lrpe>(options, ModuleBuilder(parameters).child("lrpe"), 2, 8);
}

TEST(Theta, KeepsTheHalfThatIsAskedFor) {
  EXPECT_THAT(theta_values(ThetaInit::rope, 16.0, 4, 8), ElementsAre(1.0, 0.5, 0.25, 0.125));
  EXPECT_THAT(theta_values(ThetaInit::low_half, 16.0, 4, 8), ElementsAre(0.0, 0.0, 0.25, 0.125));
  EXPECT_THAT(theta_values(ThetaInit::high_half, 16.0, 4, 8), ElementsAre(1.0, 0.5, 0.0, 0.0));
}

TEST(Lrpe, IsThereOnItsLayersOnly) {
  const auto is_there = [](const std::string& yaml, int64_t layer) {
    ParameterSet parameters;
    return make(yaml, parameters, layer) != nullptr;
  };
  EXPECT_TRUE(is_there("{type: lrpe_rotate, layers: [0]}", 0));
  EXPECT_FALSE(is_there("{type: lrpe_rotate, layers: [0]}", 1));
  EXPECT_TRUE(is_there("{type: lrpe_rotate}", 1));
}

TEST(Lrpe, RefusesWhatMakesNoSense) {
  const auto refusal = [](const std::string& yaml) -> std::string {
    ParameterSet parameters;
    try {
      make(yaml, parameters);
    } catch (const ConfigError& error) {
      return error.message();
    }
    return "no error";
  };
  const std::map<std::string, std::string> reasons = {
      {"{type: lrpe_rotat}", "did you mean 'lrpe_rotate'?"},
      {"{type: lrpe_rotate, layers: [2]}", "layers.0: found '2', expected an integer in [0, 1]"},
      {"{type: lrpe_rotate, layers: []}", "layers: found an empty list, expected a layer"},
      {"{type: lrpe_rotate, layers: [1, 0, 1]}", "layers: found layer 1 twice, expected each at most once"},
      {"{type: lrpe_rotate, act: softmax, act_dim: sequence}", "a mixer must not look ahead"},
      {"{type: lrpe_rotate, act: silu, act_dim: feature}",
       "act_dim: found 'feature', expected no such key: it belongs to act softmax"},
      {"{type: lrpe_rotate, bas: 10}", "did you mean 'base'?"},
      {"{type: lrpe_rotate, shape: [6]}", "shape: found a list, expected no such key: it belongs to type lrpe_cosine"},
      {"{type: lrpe_rotate, extra_tokens: 0}", "extra_tokens: found '0', expected no such key"},
      {"{type: lrpe_cosine, pairing: half}",
       "pairing: found 'half', expected no such key: it belongs to type lrpe_rotate"},
      {"{type: lrpe_cosine, act: softmax, act_dim: sequence}", "a mixer must not look ahead"},
      {"{type: lrpe_cosine, shape: []}", "found 0 extents, expected 1 to 6"},
      {"{type: lrpe_cosine, shape: [1, 1, 1, 1, 1, 1, 1]}", "found 7 extents, expected 1 to 6"},
      {"{type: lrpe_cosine, shape: [4611686018427387904, 4]}", "found more places than an int64 counts"},
      {"{type: lrpe_cosine, extra_tokens: -1}", "found '-1', expected an integer >= 0"}};
  for (const auto& [yaml, reason] : reasons) EXPECT_THAT(refusal(yaml), HasSubstr(reason)) << yaml;
  EXPECT_EQ(refusal("{type: lrpe_rotate, shape: null, layers: [1, 0]}"), "no error");
}

TEST(Lrpe, HasAnAngleForEachPairOrEachFeatureOfAnAxis) {
  const auto theta = [](const std::string& yaml) {
    ParameterSet parameters;
    make(yaml, parameters);
    return to_string(parameters.all().front().shape);
  };
  EXPECT_EQ(theta("{type: lrpe_rotate, learnable: true}"), "(1, 4)");
  EXPECT_EQ(theta("{type: lrpe_cosine, learnable: true}"), "(1, 8)");
  EXPECT_EQ(theta("{type: lrpe_cosine, learnable: true, per_head: true, shape: [2, 2, 2]}"), "(2, 3)");
}

TEST(LrpeRotate, NamesWhatDoesNotFit) {
  Context context;
  Tape tape(context);
  const auto message = [&](const Shape& x, const Shape& theta, DType x_dtype = DType::float32,
                           DType theta_dtype = DType::float32) {
    return testing::error_of([&] {
      lrpe_rotate(tape, tape.constant(normal(context, x, x_dtype)), tape.constant(normal(context, theta, theta_dtype)));
    });
  };
  EXPECT_EQ(message({3, 8}, {1, 4}),
            "[lrpe_rotate] x is float32 (3, 8), expected real numbers (B, N, H, D) or (B, N, D)");
  EXPECT_EQ(message({1, 3, 7}, {1, 3}), "[lrpe_rotate] x has shape (1, 3, 7), expected an even last dimension");
  EXPECT_EQ(message({1, 3, 8}, {4}), "[lrpe_rotate] theta has shape (4), expected (H, E) or (1, E)");
  EXPECT_EQ(message({1, 3, 2, 8}, {2, 5}),
            "[lrpe_rotate] theta has shape (2, 5), expected (1 or 2, at most 4): the heads and half the features of x "
            "(1, 3, 2, 8)");
  EXPECT_EQ(message({1, 3, 8}, {1, 4}, DType::float32, DType::bfloat16),
            "[lrpe_rotate] theta is bfloat16, expected float32: x is float32");
  EXPECT_EQ(message({1, 3, 8}, {1, 4}, DType::float64, DType::float32),
            "[lrpe_rotate] theta is float32, expected float64: x is float64");
  EXPECT_EQ(message({1, 3, 8}, {1, 4}, DType::bfloat16, DType::float16),
            "[lrpe_rotate] theta is float16, expected bfloat16 or float32: x is bfloat16");
  EXPECT_EQ(message({1, 3, 8}, {1, 4}, DType::bfloat16, DType::bfloat16), "no error");
  EXPECT_EQ(message({1, 3, 8}, {1, 4}, DType::bfloat16, DType::float32), "no error");
}

TEST(LrpeCosine, NamesWhatDoesNotFit) {
  Context context;
  Tape tape(context);
  const auto message = [&](const Shape& x, const Shape& theta, const LrpeCosineOptions& options = {}) {
    return testing::error_of(
        [&] { lrpe_cosine(tape, tape.constant(normal(context, x)), tape.constant(normal(context, theta)), options); });
  };
  EXPECT_EQ(message({3, 8}, {1, 8}, {.layout = Layout::bhnd}),
            "[lrpe_cosine] x is float32 (3, 8), expected real numbers (B, H, N, D) or (B, N, D)");
  EXPECT_EQ(message({1, 3, 2, 8}, {3, 8}),
            "[lrpe_cosine] theta has shape (3, 8), expected (1 or 2, at least 8): the heads and the features of x "
            "(1, 3, 2, 8) on 1 axis");
  EXPECT_EQ(message({1, 4, 2, 7}, {2, 3}, {.shape = {2, 2}}),
            "[lrpe_cosine] theta has shape (2, 3), expected (1 or 2, at least 4): the heads and the features of x "
            "(1, 4, 2, 7) on 2 axes");
  EXPECT_EQ(message({1, 15, 8}, {1, 4}, {.shape = {3, 4}, .extra_tokens = 2}),
            "[lrpe_cosine] shape (3, 4) and 2 extra tokens do not make 15 tokens, those of x (1, 15, 8)");
  // A product beyond 2^64, which is 4 modulo 2^64.
  EXPECT_EQ(
      message({1, 4, 8}, {1, 4}, {.shape = {(int64_t{1} << 62) + 1, 4}}),
      "[lrpe_cosine] shape (4611686018427387905, 4) and 0 extra tokens do not make 4 tokens, those of x (1, 4, 8)");
  EXPECT_EQ(message({1, 4, 8}, {1, 8}, {.extra_tokens = 5}),
            "[lrpe_cosine] extra_tokens is 5, expected 0 to 4: the tokens of x (1, 4, 8)");
  EXPECT_EQ(message({1, 4, 8}, {1, 4}, {.shape = {2, 2}, .offset = 3}),
            "[lrpe_cosine] offset is 3, expected 0: shape (2, 2) has 2 axes");
  EXPECT_EQ(message({1, 1, 8}, {1, 4}, {.shape = {1, 1, 1, 1, 1, 1, 1}}),
            "[lrpe_cosine] shape is (1, 1, 1, 1, 1, 1, 1), expected 1 to 6 extents of at least 0");
  EXPECT_EQ(message({1, 4, 8}, {1, 9}, {.shape = {4}, .offset = 3}), "no error");
  EXPECT_EQ(
      message({1, 4, 8}, {1, 9}, {.offset = INT64_MAX}),
      "[lrpe_cosine] offset is 9223372036854775807, expected -9007199254740992 to 9007199254740989: the positions "
      "of 4 tokens are integers of at most 2^53");
}

// Of every token, not of the first alone.
TEST(LrpeOperators, PositionsAreIntegersThatDoubleHolds) {
  Context context;
  Tape tape(context);
  constexpr int64_t kLargest = int64_t{1} << 53;
  const auto message = [&](int64_t tokens, int64_t offset, int64_t extra) {
    const Variable x = tape.constant(normal(context, {1, tokens, 4}));
    LrpeRotateOptions rotation;
    rotation.offset = offset;
    const auto rotate = [&] { lrpe_rotate(tape, x, tape.constant(normal(context, {1, 2})), rotation); };
    const auto encode = [&] {
      lrpe_cosine(tape, x, tape.constant(normal(context, {1, 4})), {.extra_tokens = extra, .offset = offset});
    };
    return extra == 0 ? testing::error_of(rotate) : testing::error_of(encode);
  };
  const std::string expected =
      "offset is 9007199254740992, expected -9007199254740992 to 9007199254740991: the positions of 2 tokens are "
      "integers of at most 2^53";
  EXPECT_EQ(message(2, kLargest, 0), "[lrpe_rotate] " + expected);
  EXPECT_EQ(message(5, kLargest, 3), "[lrpe_cosine] " + expected);
  for (const int64_t extra : {0, 3}) {
    EXPECT_EQ(message(1 + extra, kLargest, extra), "no error");
    EXPECT_EQ(message(2 + extra, kLargest - 1, extra), "no error");
    EXPECT_EQ(message(2 + extra, -kLargest, extra), "no error");
  }
}

TEST(LrpeOperators, NameTheArgument) {
  Context context;
  Tape tape(context);
  const Variable x = tape.constant(normal(context, {1, 3, 8})), theta = tape.constant(normal(context, {1, 4}));
  const auto transposed = [&](const Shape& wide) { return tape.constant(normal(context, wide).transpose(-2, -1)); };
  const auto rotate = [&](const Variable& x, const Variable& theta, Activation act = Activation::none) {
    LrpeRotateOptions options;
    options.act = act;
    return testing::error_of([&] { lrpe_rotate(tape, x, theta, options); });
  };
  const auto cosine = [&](const Variable& x, const Variable& theta, Activation act = Activation::none) {
    return testing::error_of([&] { lrpe_cosine(tape, x, theta, {.act = act}); });
  };
  EXPECT_EQ(rotate({}, theta), "[lrpe_rotate] x is missing");
  EXPECT_EQ(cosine({}, theta), "[lrpe_cosine] x is missing");
  EXPECT_EQ(rotate(x, {}), "[lrpe_rotate] theta is missing");
  EXPECT_EQ(rotate(transposed({1, 8, 3}), theta),
            "[lrpe_rotate] x: heads: the last dimension of a tensor of shape (1, 3, 8) and strides (24, 1, 3) is not "
            "contiguous");
  EXPECT_EQ(rotate(x, transposed({4, 1}), Activation::silu), "no error");
  EXPECT_EQ(cosine(tape.constant(normal(context, {1, 3, 2, 4})), transposed({4, 2})),
            "[lrpe_cosine] theta: rows: the last dimension of a tensor of shape (2, 4) and strides (1, 2) is not "
            "contiguous");
  EXPECT_EQ(rotate(x, theta, Activation::gelu),
            "[lrpe_rotate] act is gelu, expected one of none, relu, sigmoid, silu, elu1");
  EXPECT_EQ(cosine(x, theta, static_cast<Activation>(99)),
            "[lrpe_cosine] act is 99, expected one of none, relu, sigmoid, silu, elu1");
}

TEST(LrpeOperators, TokensBeforeAreOneNumberForInference) {
  Context context;
  const auto message = [&](Tape::Mode mode, const Tensor& before, Softmax softmax, const Shape& shape) {
    Tape tape(context, mode);
    const Variable x = tape.constant(normal(context, {1, 4, 2, 8})), theta = tape.constant(normal(context, {1, 4}));
    LrpeRotateOptions options;
    options.softmax = softmax;
    options.tokens_before = before;
    const std::string of_rotate = testing::error_of([&] { lrpe_rotate(tape, x, theta, options); });
    const std::string of_cosine = testing::error_of([&] {
      lrpe_cosine(tape, x, tape.constant(normal(context, {1, 8})),
                  {.softmax = softmax, .shape = shape, .tokens_before = before});
    });
    return of_rotate + "; " + of_cosine;
  };
  const auto of_both = [](const std::string& text) { return "[lrpe_rotate] " + text + "; [lrpe_cosine] " + text; };
  const Tensor one = Tensor::zeros(context, {1}, DType::int32), two = Tensor::zeros(context, {2}, DType::int32);
  constexpr auto kInference = Tape::Mode::inference;
  EXPECT_EQ(message(kInference, one, Softmax::feature, {}), "no error; no error");
  EXPECT_EQ(message(kInference, two, Softmax::none, {}), of_both("tokens_before is int32 (2), expected one int32"));
  EXPECT_EQ(message(kInference, Tensor::zeros(context, {1}, DType::float32), Softmax::none, {}),
            of_both("tokens_before is float32 (1), expected one int32"));
  EXPECT_EQ(message(Tape::Mode::record, one, Softmax::none, {}),
            of_both("found tokens_before on a tape that records, expected a tape for inference"));
  EXPECT_EQ(message(kInference, one, Softmax::sequence, {}),
            of_both("found tokens_before beside a softmax over the sequence, expected one of them"));
  EXPECT_EQ(message(kInference, one, Softmax::none, {2, 2}),
            "no error; [lrpe_cosine] found tokens_before beside shape (2, 2), expected one of them");
}

TEST(LrpeCosine, RefusesAnOffsetOnAGrid) {
  Context context;
  Tape tape(context);
  const NamedVariables inputs = {{"x", tape.constant(normal(context, {1, 4, 8}))},
                                 {"theta", tape.constant(normal(context, {1, 4}))}};
  const Operator& op = built_in_registry().find("lrpe_cosine");
  EXPECT_THAT([&] { bind_operator(op, parse_config("{shape: [2, 2], offset: 3}", "f.yaml"))(tape, inputs); },
              ThrowsMessage<ConfigError>("f.yaml:1:25: offset: found 3, expected 0: shape has 2 axes"));
}

class LrpeTypes : public ::testing::TestWithParam<const char*> {
 protected:
  static std::unique_ptr<Lrpe> make_with(const std::string& options, ParameterSet& parameters) {
    return make(std::string("{type: ") + GetParam() + options + "}", parameters);
  }
  static bool is_cosine() { return GetParam() == std::string("lrpe_cosine"); }
  static Shape shape_of_y(int64_t batch, int64_t length) { return {batch, length, 2, is_cosine() ? 16 : 8}; }
};

// A text read in several parts gives what it gives in one.
TEST_P(LrpeTypes, ContinuesAtAnOffset) {
  Context context;
  for (const std::string options : {", act: silu", ", extra_tokens: 2"}) {
    if (options == ", extra_tokens: 2" && !is_cosine()) continue;
    ParameterSet parameters;
    const auto lrpe = make_with(options, parameters);
    parameters.materialize(context, DType::float32, 1);
    Tape tape(context, Tape::Mode::inference);
    const Variable x = tape.constant(normal(context, {2, 6, 2, 8}));
    const Variable y = lrpe->forward(tape, x);
    for (const auto& [begin, end] : {std::pair{0, 1}, {1, 2}, {1, 4}, {2, 3}, {3, 6}}) {
      const Variable part = lrpe->forward(tape, tape.constant(x.value.slice(1, begin, end)), begin);
      EXPECT_EQ(read_values(context, part.value), read_values(context, y.value.slice(1, begin, end)))
          << options << " " << begin;
    }
  }
}

TEST_P(LrpeTypes, LearnsThetaInFloat32) {
  Context context;
  ParameterSet parameters;
  const auto lrpe = make_with(", learnable: true, per_head: true", parameters);
  parameters.materialize(context, DType::bfloat16, 1);
  ASSERT_EQ(parameters.all().size(), 1u);
  EXPECT_EQ(parameters.all().front().name, "lrpe.theta");
  Tape tape(context);
  const Variable y = lrpe->forward(tape, tape.constant(normal(context, {1, 5, 2, 8}, DType::bfloat16)));
  tape.backward(y, normal(context, shape_of_y(1, 5), DType::bfloat16));
  const Tensor& gradient = parameters.all().front().gradient.tensor;
  EXPECT_EQ(gradient.dtype(), DType::float32);
  EXPECT_EQ(to_string(gradient.shape()), is_cosine() ? "(2, 8)" : "(2, 4)");
  for (const double value : read_values(context, gradient)) EXPECT_NE(value, 0.0);
}

TEST_P(LrpeTypes, KeepsNothingWithoutActivation) {
  Context context;
  ParameterSet parameters;
  const auto lrpe = make_with("", parameters);
  parameters.materialize(context, DType::float32, 1);
  const size_t bytes_of_theta = context.allocator().stats().allocated.current;
  Gradient gradient;
  Tape tape(context);
  Variable x = tape.leaf(normal(context, {1, 64, 2, 8}), gradient, "x");
  const size_t bytes_of_x = context.allocator().stats().allocated.current - bytes_of_theta;
  const Variable y = lrpe->forward(tape, x);
  x.value = {};
  EXPECT_EQ(context.allocator().stats().allocated.current, bytes_of_theta + bytes_of_x * (is_cosine() ? 2 : 1));
}

INSTANTIATE_TEST_SUITE_P(All, LrpeTypes, ::testing::Values("lrpe_rotate", "lrpe_cosine"),
                         [](const auto& info) { return info.param; });

// y, theta, and two vectors of batch * heads * features.
TEST(LrpeCosine, KeepsXAndTwoStatisticsForSoftmaxOverTheSequence) {
  Context context;
  Gradient gradient;
  Tape tape(context);
  Variable x = tape.leaf(normal(context, {2, 64, 2, 128}), gradient, "x");
  const size_t bytes_of_x = context.allocator().stats().allocated.current;
  const Variable theta = tape.constant(normal(context, {1, 128}));
  const Variable y = lrpe_cosine(tape, x, theta, {.softmax = Softmax::sequence});
  x.value = {};
  EXPECT_EQ(context.allocator().stats().allocated.current, 3 * bytes_of_x + 512 + 2 * 4 * 2 * 2 * 128);
}

TEST(LrpeCosine, AGridIsReadInOnePass) {
  Context context;
  ParameterSet parameters;
  const auto lrpe = make("{type: lrpe_cosine, shape: [2, 3], extra_tokens: 1}", parameters);
  parameters.materialize(context, DType::float32, 1);
  Tape tape(context, Tape::Mode::inference);
  EXPECT_EQ(to_string(lrpe->forward(tape, tape.constant(normal(context, {1, 7, 2, 8}))).shape()), "(1, 7, 2, 16)");
  TokensBefore on_device;
  on_device.on_device = Tensor::zeros(context, {1}, DType::int32);
  for (const TokensBefore& before : {TokensBefore(7), on_device}) {
    EXPECT_EQ(testing::error_of([&] {
                lrpe->forward(tape, tape.constant(normal(context, {1, 1, 2, 8})), before);
              }),
              "[lrpe_cosine] a text on the grid (2, 3) is read in one pass, found one that goes on");
  }
}

}  // namespace
}  // namespace heddle::lrpe_test
