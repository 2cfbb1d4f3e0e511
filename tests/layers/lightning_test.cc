#include "layers/modules/mixers/lightning.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "core/config/config_load.h"
#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/registry.h"

namespace heddle {
namespace {

using testing::DoubleNear;
using testing::HasSubstr;
using testing::Pointwise;
using testing::ThrowsMessage;
using testing::UnorderedElementsAre;

constexpr const char* kFull =
    "{type: lightning, heads: 2, act: silu, lrpe: {type: lrpe_rotate, theta_init: rope, base: 10000, layers: [0]}, "
    "gate: {act: sigmoid, position: post, rank: 3}}";

std::unique_ptr<Mixer> make_mixer(const std::string& text, const ModuleBuilder& builder, const BlockPlace& place) {
  const ConfigNode section = parse_config(text, "model.yaml");
  ConfigFields fields(section);
  MixerSection mixer;
  built_in_registry().describe_mixer(fields, {.dim = place.dim, .layers = place.layers}, mixer);
  section.finish();
  return mixer.options->make(builder, place);
}

// A mixer with its parameters in memory.
struct Model {
  Model(Context& context, const std::string& options, const BlockPlace& place, DType dtype) {
    mixer = make_mixer(options, ModuleBuilder(parameters), place);
    parameters.materialize(context, dtype, 1);
  }

  ParameterSet parameters;
  std::unique_ptr<Mixer> mixer;
};

Tensor normal(Context& context, const Shape& shape, DType dtype) {
  Random random(3, RandomStream::test);
  Tensor tensor = Tensor::empty(context, shape, dtype);
  fill_normal(context, tensor, random, 0.0, 1.0);
  return tensor;
}

TEST(LightningTest, DecayIsThatOfThePaper) {
  const std::vector<double> first = lightning_log_decay(4, 0, 3), last = lightning_log_decay(4, 2, 3);
  EXPECT_THAT(first, Pointwise(DoubleNear(1e-15), {-1.00001 / 4, -1.00001 / 16, -1.00001 / 64, -1.00001 / 256}));
  EXPECT_THAT(last, Pointwise(DoubleNear(1e-15), {-1e-5 / 4, -1e-5 / 16, -1e-5 / 64, -1e-5 / 256}));
  EXPECT_EQ(lightning_log_decay(1, 0, 1).at(0), -std::exp2(-8.0) * (1.0 + 1e-5));
}

TEST(LightningTest, ParametersByName) {
  const auto names = [](const char* options) {
    ParameterSet parameters;
    const auto mixer = make_mixer(options, ModuleBuilder(parameters, "mixer"), {8, 0, 2});
    std::vector<std::string> result;
    for (const Parameter& parameter : parameters.all()) {
      result.push_back(parameter.name + " " + to_string(parameter.shape));
    }
    return result;
  };
  EXPECT_THAT(names(kFull), UnorderedElementsAre("mixer.qkv.weight (24, 8)", "mixer.gate.down.weight (3, 8)",
                                                 "mixer.gate.up.weight (8, 3)", "mixer.out.weight (8, 8)"));
  EXPECT_THAT(names("{type: lightning, heads: 2, gate: {act: silu}}"),
              UnorderedElementsAre("mixer.qkv.weight (24, 8)", "mixer.gate.weight (8, 8)", "mixer.out.weight (8, 8)"));
  EXPECT_THAT(names("{type: lightning, heads: 2}"),
              UnorderedElementsAre("mixer.qkv.weight (24, 8)", "mixer.out.weight (8, 8)"));
}

class LightningOptionsTest : public testing::TestWithParam<const char*> {};

TEST_P(LightningOptionsTest, GradientsAreThoseOfFiniteDifferences) {
  Context context;
  Model model(context, GetParam(), {8, 0, 2}, DType::float64);
  std::vector<GradcheckInput> inputs = {{"x", normal(context, {2, 5, 8}, DType::float64)}};
  for (const Parameter& parameter : model.parameters.all()) inputs.push_back({parameter.name, parameter.value});
  const GradcheckFunction function = [&](Tape& tape, const std::vector<Variable>& variables) {
    size_t index = 1;
    for (const Parameter& parameter : model.parameters.all()) {
      tape.replace_leaf(parameter.gradient, variables[index++]);
    }
    return std::vector<Variable>{model.mixer->forward(tape, variables[0], nullptr)};
  };
  GradcheckOptions options;
  options.projections = 10;
  const GradcheckReport report = gradcheck(context, function, inputs, options);
  EXPECT_TRUE(report.passed()) << report.to_string();
}

// A prompt in one pass and then single tokens give what the whole text gives.
TEST_P(LightningOptionsTest, StepsWithTheStateAreTheWhole) {
  for (const auto& [dtype, tolerance] : {std::pair{DType::float32, 1e-5}, std::pair{DType::float64, 1e-12}}) {
    Context context;
    Model model(context, GetParam(), {8, 0, 2}, dtype);
    Tape tape(context, Tape::Mode::inference);
    const Variable x = tape.constant(normal(context, {2, 90, 8}, dtype));
    const Tensor whole = model.mixer->forward(tape, x, nullptr).value;
    std::unique_ptr<MixerState> state = model.mixer->make_state();
    for (int64_t begin = 0, end = 70; begin < 90; begin = end++) {
      const Tensor part = Tensor::empty(context, {2, end - begin, 8}, dtype);
      write_values(context, part, read_values(context, x.value.slice(1, begin, end)));
      const Variable y = model.mixer->forward(tape, tape.constant(part), state.get());
      EXPECT_THAT(read_values(context, y.value),
                  Pointwise(DoubleNear(tolerance), read_values(context, whole.slice(1, begin, end))))
          << "from token " << begin << " in " << name(dtype);
      // What is saved goes on as if nothing had happened.
      state = model.mixer->load_state(context, state->save(context));
    }
  }
}

TEST(LightningTest, AStateKnowsItsMixerAndItsTensors) {
  Context context;
  Model model(context, kFull, {8, 0, 2}, DType::float32);
  Tape tape(context, Tape::Mode::inference);
  const Variable x = tape.constant(normal(context, {1, 3, 8}, DType::float32));
  struct Another : MixerState {
    std::map<std::string, Tensor> save(Context&) const override { return {}; }
  } another;
  EXPECT_THAT([&] { model.mixer->forward(tape, x, &another); },
              ThrowsMessage<Error>(HasSubstr("[lightning] the state is that of another mixer")));
  EXPECT_THAT([&] { model.mixer->load_state(context, {}); }, ThrowsMessage<Error>(HasSubstr("needs its position")));
  EXPECT_THAT(
      [&] {
        model.mixer->load_state(context, {{"keys", x.value}});
      },
      ThrowsMessage<Error>(HasSubstr("a state has no tensor keys")));
}

// Forward and backward allocate the same bytes, at their peak and in between, where there is no data.
TEST_P(LightningOptionsTest, MetaCountsTheBytesOfTheCpu) {
  for (DType dtype : {DType::float32, DType::bfloat16}) {
    const auto bytes = [&](Device device) {
      Context context(device);
      Model model(context, GetParam(), {8, 0, 2}, dtype);
      Gradient d_x;
      const Tensor x = normal(context, {2, 70, 8}, dtype), d_y = normal(context, {2, 70, 8}, dtype);
      Tape tape(context);
      const Variable y = model.mixer->forward(tape, tape.leaf(x, d_x, "x"), nullptr);
      const MemoryStats after_forward = context.allocator().stats();
      tape.backward({{y, d_y}});
      const MemoryStats after_backward = context.allocator().stats();
      return std::vector<size_t>{after_forward.allocated.current, after_forward.allocated.peak,
                                 after_backward.allocated.current, after_backward.allocated.peak};
    };
    EXPECT_EQ(bytes({DeviceType::meta}), bytes({DeviceType::cpu})) << name(dtype);
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, LightningOptionsTest,
    testing::Values(kFull, "{type: lightning, heads: 1, gate: {act: silu, position: pre}}",
                    "{type: lightning, heads: 4, act: none, lrpe: {type: lrpe_rotate, layers: [0, 1]}}",
                    "{type: lightning, heads: 2, act: none, lrpe: {type: lrpe_cosine, base: 100, act: silu}}",
                    "{type: lightning, heads: 8, lrpe: {type: lrpe_cosine, learnable: true, per_head: true, "
                    "extra_tokens: 2}}"));

TEST(LightningTest, BadOptionsNameTheirPlace) {
  const auto build = [](const std::string& options, const BlockPlace& place = {8, 0, 2}) {
    return [=] {
      ParameterSet parameters;
      make_mixer(options, ModuleBuilder(parameters), place);
    };
  };
  const auto message = [](const char* text) { return ThrowsMessage<ConfigError>(HasSubstr(text)); };
  EXPECT_THAT(build("{type: lightning}"), message("heads"));
  EXPECT_THAT(build("{type: lightning, heads: 3}"),
              message("model.yaml:1:26: heads: found 3, expected a divisor of dim, which is 8"));
  EXPECT_THAT(build("{type: lightning, heads: 2, lrpe: {type: lrpe_rotate, layers: [2]}}"), message("layers"));
  EXPECT_THAT(build("{type: lightning, heads: 8, lrpe: {type: lrpe_rotate}}"),
              message("lrpe: heads have 1 features, expected an even number"));
  EXPECT_THAT(build("{type: lightning, heads: 2, lrpe: {type: lrpe_rotate, bse: 1, layers: [1]}}"),
              message("did you mean 'base'"));
  EXPECT_THAT(build("{type: lightning, heads: 2, gate: {rank: -1}}"), message("gate.rank"));
  EXPECT_THAT(build("{type: lightning, heads: 2, gate: {position: after}}"), message("gate.position"));
  EXPECT_THAT(build("{type: lightning, heads: 2, gat: {}}"), message("did you mean 'gate'"));
}

}  // namespace
}  // namespace heddle
