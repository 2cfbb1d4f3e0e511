#include "layers/modules/norm.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "core/tensor/transfer.h"
#include "layers/registry.h"
#include "tests/error_of.h"

namespace heddle::norm_test {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

Variable values(Tape& tape, const Shape& shape, const std::vector<double>& numbers, DType dtype = DType::float32) {
  const Tensor tensor = Tensor::empty(tape.context(), shape, dtype);
  write_values(tape.context(), tensor, numbers);
  return tape.constant(tensor);
}

std::string message_of(const std::string& op, const std::string& options, const std::vector<std::string>& names) {
  Context context;
  Tape tape(context);
  NamedVariables inputs;
  for (const std::string& name : names) {
    const Shape shape = name == "weight" || name == "bias" ? Shape{4} : Shape{2, 4};
    inputs[name] = values(tape, shape, std::vector<double>(static_cast<size_t>(numel(shape)), 1.0));
  }
  try {
    bind_operator(built_in_registry().find(op), parse_config(options, "test.yaml"))(tape, inputs);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

TEST(NormOptions, MustAgreeWithTheInputs) {
  EXPECT_EQ(message_of("rms_norm", "{weight: true}", {"x", "weight"}), "no error");
  EXPECT_THAT(message_of("rms_norm", "{weight: true}", {"x"}), HasSubstr("weight: found true, but no such input"));
  EXPECT_THAT(message_of("rms_norm", "{bias: false}", {"x", "bias"}), HasSubstr("test.yaml:1:8: bias: found false"));
  EXPECT_THAT(message_of("rms_norm", "{residual: true}", {"x"}), HasSubstr("residual: found true"));
  EXPECT_THAT(message_of("rms_norm", "{gate: {act: silu}}", {"x"}), HasSubstr("gate: no input gate was given"));
  EXPECT_THAT(message_of("rms_norm", "{gate: {act: gelu}}", {"x", "gate"}),
              HasSubstr("act: found 'gelu', expected one of none, relu, sigmoid, silu, elu1"));
  EXPECT_THAT(message_of("rms_norm", "{dim: 8}", {"x"}), HasSubstr("dim: found 8, expected 4"));
  EXPECT_EQ(message_of("rms_norm", "{groups: 1}", {"x"}), "no error");
  EXPECT_THAT(message_of("rms_norm", "{groups: 2}", {"x"}),
              HasSubstr("groups: found '2', expected no such key: rms_norm has one group, group_rms_norm has several"));
  EXPECT_THAT(message_of("layer_norm", "{groups: 2}", {"x"}), HasSubstr("group_norm has several"));
  EXPECT_THAT(message_of("group_rms_norm", "{groups: 3}", {"x"}), HasSubstr("expected a divisor of 4"));
  EXPECT_THAT(message_of("group_rms_norm", "{}", {"x"}), HasSubstr("missing key 'groups'"));
  EXPECT_THAT(message_of("rms_norm", "{epz: 1.0}", {"x"}), HasSubstr("unknown key 'epz'; did you mean 'eps'?"));
  EXPECT_THAT(message_of("rms_norm", "{}", {"x", "wieght"}),
              HasSubstr("unknown input 'wieght'; did you mean 'weight'?"));
  EXPECT_THAT(message_of("rms_norm", "{}", {"weight"}), HasSubstr("[rms_norm] input x is missing"));
}

TEST(NormOptions, NameTheShapesThatDoNotFit) {
  Context context;
  Tape tape(context);
  const Variable x = values(tape, {1, 2, 3}, {1, 2, 3, 4, 5, 6});
  try {
    norm(tape, x, {.residual = {}, .gate = {}, .weight = values(tape, {2}, {1, 1}), .bias = {}}, {}, "rms_norm");
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[rms_norm] weight has shape (2), expected (3): the last dimension of x (1, 2, 3)");
  }
}

TEST(NormOptions, NameTheArgumentAndWhatIsWrongWithIt) {
  Context context;
  Tape tape(context);
  const Variable x = values(tape, {1, 2, 3}, {1, 2, 3, 4, 5, 6});
  const auto every_second = [](Variable of) {
    of.value = of.value.reshape({-1, 2}).slice(1, 0, 1).reshape({-1});
    return of;
  };
  const auto message = [&](const Variable& x, const NormInputs& inputs, const NormOptions& options = {}) {
    return testing::error_of([&] { norm(tape, x, inputs, options, "rms_norm"); });
  };
  const Variable sparse = every_second(values(tape, {6}, {1, 1, 1, 1, 1, 1}));
  EXPECT_EQ(message(x, {.residual = {}, .gate = {}, .weight = sparse, .bias = {}}),
            "[rms_norm] weight is not contiguous: (3) has strides (2), expected (1)");
  EXPECT_EQ(message(x, {.residual = {}, .gate = {}, .weight = {}, .bias = sparse}),
            "[rms_norm] bias is not contiguous: (3) has strides (2), expected (1)");
  Variable columns = values(tape, {1, 3, 2}, {1, 2, 3, 4, 5, 6});
  columns.value = columns.value.transpose(1, 2);
  const std::string strided =
      ": rows: the last dimension of a tensor of shape (1, 2, 3) and strides (6, 1, 2) is not contiguous";
  EXPECT_EQ(message(columns, {}), "[rms_norm] x" + strided);
  EXPECT_EQ(message(x, {.residual = columns, .gate = {}, .weight = {}, .bias = {}}), "[rms_norm] residual" + strided);
  EXPECT_EQ(message(x, {.residual = {}, .gate = columns, .weight = {}, .bias = {}}), "[rms_norm] gate" + strided);
  NormOptions gelu;
  gelu.gate_act = Activation::gelu;
  EXPECT_EQ(message(x, {.residual = {}, .gate = x, .weight = {}, .bias = {}}, gelu),
            "[rms_norm] gate_act is gelu, expected one of none, relu, sigmoid, silu, elu1");
  EXPECT_EQ(message({}, {}), "[rms_norm] x is missing");
  EXPECT_EQ(message(values(tape, {2, 0}, {}), {}), "[rms_norm] x has shape (2, 0), expected at least one feature");
}

TEST(NormModule, ReadsItsSection) {
  Context context;
  ParameterSet parameters;
  const ModuleBuilder builder(parameters);
  const auto make_norm = [](const std::string& text, const ModuleBuilder& place) {
    const ConfigNode section = parse_config(text);
    ConfigFields fields(section);
    Norm::Options options;
    describe_norm(fields, {.dim = 8}, options);
    section.finish();
    Norm(options, place, 8);
  };
  make_norm("{type: layer_norm}", builder.child("a"));
  make_norm("{type: rms_norm, bias: true}", builder.child("b"));
  make_norm("{type: srms_norm, eps: 1.0e-6}", builder.child("c"));
  std::vector<std::string> names;
  for (const Parameter& parameter : parameters.all()) names.push_back(parameter.name);
  EXPECT_THAT(names, ::testing::ElementsAre("a.weight", "a.bias", "b.weight", "b.bias"));
  EXPECT_THROW(make_norm("{type: rms_nrom}", builder), ConfigError);
  EXPECT_THROW(make_norm("{type: rms_norm, residual: true}", builder), ConfigError);
  // Inside a model the updated residual is always used: an option that would take it away means nothing there.
  EXPECT_THROW(make_norm("{type: rms_norm, return_residual: false}", builder), ConfigError);
}

// Also without a weight, whose shape would tell.
TEST(NormModule, HasOneLastDimension) {
  Context context;
  ParameterSet parameters;
  const Norm norm(Norm::Options::of(NormType::srms_norm), ModuleBuilder(parameters), 8);
  Tape tape(context);
  const auto refusal = [&](const Shape& shape) {
    const Variable x = tape.constant(Tensor::zeros(context, shape, DType::float32));
    return testing::error_of([&] { norm.forward(tape, x); });
  };
  EXPECT_EQ(refusal({2, 8}), "no error");
  EXPECT_EQ(refusal({2, 4}), "[srms_norm] x has shape (2, 4), expected a last dimension of 8");
  EXPECT_EQ(testing::error_of([&] { norm.forward(tape, {}); }), "[srms_norm] x is missing");
}

// Squares of numbers near the largest of float16 do not fit into float16.
TEST(NormNumbers, LargeOnesOfFloat16KeepTheirDigits) {
  Context context;
  Tape tape(context);
  const Variable x = values(tape, {1, 4}, {65504, -65504, 32752, 0}, DType::float16);
  for (const bool center : {false, true}) {
    NormOptions options;
    options.center = center;
    const std::vector<double> y = read_values(context, norm(tape, x, {}, options).y.value);
    const double mean = center ? 8188.0 : 0.0;
    double square = 0.0;
    for (const double value : {65504.0, -65504.0, 32752.0, 0.0}) square += (value - mean) * (value - mean) / 4.0;
    EXPECT_NEAR(y[0], (65504.0 - mean) / std::sqrt(square), 1e-3);
    EXPECT_NEAR(y[3], -mean / std::sqrt(square), 1e-3);
  }
}

TEST(NormOptions, AreCheckedWithoutAConfigToo) {
  Context context;
  Tape tape(context);
  const Variable x = values(tape, {1, 4}, {1, 2, 3, 4});
  const auto with = [&](double eps, int64_t groups) {
    NormOptions options;
    options.eps = eps;
    options.groups = groups;
    return [&tape, x, options] { norm(tape, x, {}, options); };
  };
  EXPECT_NO_THROW(with(0.0, 2)());
  for (const double eps : {-1e-6, -1.0, std::nan("")}) {
    EXPECT_THAT(with(eps, 1), ThrowsMessage<Error>(HasSubstr("eps")));
  }
  for (const int64_t groups : {-1, 0, 3, 8}) {
    EXPECT_THAT(with(1e-6, groups), ThrowsMessage<Error>(HasSubstr("groups")));
  }
}

TEST(NormMemory, AMeanIsKeptWhereItIsTaken) {
  const auto kept = [](bool center) {
    Context context;
    Tape tape(context);
    Gradient d_x;
    NormOptions options;
    options.center = center;
    const Variable x = tape.leaf(Tensor::zeros(context, {1024, 4}, DType::float32), d_x, "x");
    const size_t before = context.allocator().stats().allocated.current;
    const Normed normed = norm(tape, x, {}, options);
    return context.allocator().stats().allocated.current - before;
  };
  EXPECT_EQ(kept(false), size_t{1024} * 4 * 4 + 1024 * 4);  // y and the reciprocal deviations
  EXPECT_EQ(kept(true) - kept(false), size_t{1024} * 4);
}

TEST(NormNumbers, SmallEpsIsNotRaised) {
  Context context;
  Tape tape(context);
  NormOptions options;
  options.eps = 0.0;
  const Variable x = values(tape, {1, 2}, {1e-4, -1e-4}, DType::float16);
  for (const double value : read_values(context, norm(tape, x, {}, options).y.value)) {
    EXPECT_NEAR(std::abs(value), 1.0, 1e-3);
  }
}

}  // namespace
}  // namespace heddle::norm_test
