// What holds for every mixer: gradients, states, memory, names, errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "core/runtime/allocator.h"
#include "core/runtime/error.h"
#include "core/runtime/work_listener.h"
#include "core/tensor/transfer.h"
#include "layers/modules/mixers/lightning.h"
#include "layers/modules/mixers/linear_attention.h"
#include "layers/modules/mixers/retention.h"
#include "layers/modules/mixers/softmax_attention.h"
#include "tests/error_of.h"
#include "tests/layers/mixer_of.h"

namespace heddle::mixers_test {
namespace {

using test::make_mixer;
using test::MixerModel;
using test::normal;
using ::testing::DoubleNear;
using ::testing::HasSubstr;
using ::testing::Pointwise;
using ::testing::ThrowsMessage;

class Mixers : public ::testing::TestWithParam<const char*> {};

TEST_P(Mixers, GradientsAreThoseOfFiniteDifferences) {
  Context context;
  MixerModel model(context, GetParam(), {8, 0, 2}, DType::float64);
  std::vector<GradcheckInput> inputs = {{"x", normal(context, {2, 5, 8}, DType::float64)}};
  for (const Parameter& parameter : model.parameters.all()) inputs.push_back({parameter.name, parameter.value});
  const GradcheckFunction function = [&](Tape& tape, const std::vector<Variable>& variables) {
    size_t index = 1;
    for (const Parameter& parameter : model.parameters.all()) {
      tape.replace_leaf(parameter.gradient, variables[index++]);
    }
    return std::vector<Variable>{model.mixer->forward(tape, variables[0], nullptr, {})};
  };
  GradcheckOptions options;
  options.projections = 10;
  const GradcheckReport report = gradcheck(context, function, inputs, options);
  EXPECT_TRUE(report.passed()) << report.to_string();
}

// A prompt in one pass and then single tokens give what the whole text gives.
TEST_P(Mixers, StepsWithTheStateAreTheWhole) {
  for (const auto& [dtype, tolerance] : {std::pair{DType::float32, 1e-5}, std::pair{DType::float64, 1e-12}}) {
    Context context;
    MixerModel model(context, GetParam(), {8, 0, 2}, dtype);
    Tape tape(context, Tape::Mode::inference);
    const Variable x = tape.constant(normal(context, {2, 90, 8}, dtype));
    const Tensor whole = model.mixer->forward(tape, x, nullptr, {}).value;
    std::unique_ptr<MixerState> state = model.mixer->make_state();
    for (int64_t begin = 0, end = 70; begin < 90; begin = end++) {
      const Tensor part = Tensor::empty(context, {2, end - begin, 8}, dtype);
      write_values(context, part, read_values(context, x.value.slice(1, begin, end)));
      const Variable y = model.mixer->forward(tape, tape.constant(part), state.get(), {});
      EXPECT_THAT(read_values(context, y.value),
                  Pointwise(DoubleNear(tolerance), read_values(context, whole.slice(1, begin, end))))
          << "from token " << begin << " in " << name(dtype);
      // What is saved goes on as if nothing had happened.
      state = model.mixer->load_state(context, state->save(context));
    }
  }
}

// Of all blocks that somebody holds.
std::set<uintptr_t> addresses_in_use(Context& context) {
  std::set<uintptr_t> addresses;
  for (const MemorySegment& segment : context.allocator().segments()) {
    uintptr_t address = segment.address;
    for (const MemoryBlock& block : segment.blocks) {
      if (block.state == BlockState::in_use) addresses.insert(address);
      address += block.bytes;
    }
  }
  return addresses;
}

// What a graph repeats computes the same: each state takes the place of the last, and the position is one on the
// device.
TEST_P(Mixers, AStateInPlaceGoesOnWhereItLies) {
  Context context;
  const MixerModel model(context, GetParam(), {8, 0, 2}, DType::float32);
  Tape tape(context, Tape::Mode::inference);
  const auto tokens = [&](int64_t count) { return tape.constant(normal(context, {2, count, 8}, DType::float32)); };
  const Tensor before = Tensor::zeros(context, {1}, DType::int32);
  const std::unique_ptr<MixerState> state = model.mixer->make_state();
  EXPECT_EQ(state->in_place(context, before), nullptr) << "nothing was read yet";
  model.mixer->forward(tape, tokens(30), state.get(), {});
  const std::unique_ptr<MixerState> in_place = state->in_place(context, before);
  if (std::string_view(GetParam()).find("softmax_attention") != std::string_view::npos) {
    EXPECT_EQ(in_place, nullptr) << "the cache grows";
    return;
  }
  ASSERT_NE(in_place, nullptr);
  const std::map<std::string, Tensor> saved = in_place->save(context);
  std::map<std::string, std::vector<double>> saved_values;
  for (const auto& [name, tensor] : saved) saved_values[name] = read_values(context, tensor);
  for (int64_t read = 30, count = 1; read < 40; read += count, count = count % 3 + 1) {
    write_values(context, before, {static_cast<double>(read)});
    const Variable x = tokens(count);
    const Variable found = model.mixer->forward(tape, x, in_place.get(), {});
    const Variable expected = model.mixer->forward(tape, x, state.get(), {});
    EXPECT_EQ(read_values(context, found.value), read_values(context, expected.value)) << "behind " << read;
  }
  const std::map<std::string, Tensor> expected = state->save(context);
  ASSERT_EQ(expected.size(), saved.size());
  for (const auto& [name, tensor] : in_place->save(context)) {
    EXPECT_EQ(read_values(context, tensor), read_values(context, name == "position" ? before : expected.at(name)))
        << name;
    EXPECT_EQ(read_values(context, saved.at(name)), saved_values.at(name)) << name << " was saved, and then changed";
  }
  const std::set<uintptr_t> memory = addresses_in_use(context);
  model.mixer->forward(tape, tokens(2), in_place.get(), {});
  EXPECT_EQ(addresses_in_use(context), memory) << "the state moved";
}

// Without sequences or without tokens there is nothing, and gradients of parameters are 0 and not what was there.
TEST_P(Mixers, NoSequencesAndNoTokensGiveNothing) {
  for (const Shape& shape : {Shape{0, 4, 8}, Shape{2, 0, 8}, Shape{0, 0, 8}}) {
    SCOPED_TRACE(to_string(shape));
    Context context;
    MixerModel model(context, GetParam(), {8, 0, 2}, DType::float32);
    for (const Parameter& parameter : model.parameters.all()) poison(context, parameter.gradient.tensor);
    const Tensor nothing = Tensor::empty(context, shape, DType::float32);
    model.parameters.zero_grad();
    Gradient d_x;
    Tape tape(context);
    const Variable y = model.mixer->forward(tape, tape.leaf(nothing, d_x, "x"), nullptr, {});
    EXPECT_EQ(y.shape(), shape);
    tape.backward(y, nothing);
    EXPECT_EQ(d_x.tensor.shape(), shape);
    for (const Parameter& parameter : model.parameters.all()) {
      EXPECT_THAT(read_values(context, parameter.gradient.tensor), ::testing::Each(0.0)) << parameter.name;
    }
  }
}

// A part without tokens leaves the state where it was.
TEST_P(Mixers, NoTokensMoveAStateByNothing) {
  Context context;
  MixerModel model(context, GetParam(), {8, 0, 2}, DType::float64);
  Tape tape(context, Tape::Mode::inference);
  const Tensor x = normal(context, {2, 6, 8}, DType::float64);
  const Tensor whole = model.mixer->forward(tape, tape.constant(x), nullptr, {}).value;
  const std::unique_ptr<MixerState> state = model.mixer->make_state();
  for (const auto& [begin, end] : {std::pair{0, 0}, std::pair{0, 4}, std::pair{4, 4}, std::pair{4, 6}}) {
    const Variable part = tape.constant(clone(context, x.slice(1, begin, end)));
    const Variable y = model.mixer->forward(tape, part, state.get(), {});
    EXPECT_THAT(read_values(context, y.value),
                Pointwise(DoubleNear(1e-12), read_values(context, whole.slice(1, begin, end))));
  }
}

// Throws at the call of a kernel.
struct Failure : WorkListener {
  explicit Failure(int at) : at(at) {}
  void mark(std::string_view) override {}
  void begin_kernel(const char* name, const KernelWork&) override { check(at-- > 0, "{} is made to fail", name); }
  void end_kernel() override {}
  int at;  // calls before that one
};

// Whatever fails, early or after the new state is there: what is saved is the same, and the text goes on.
TEST_P(Mixers, AFailedPassLeavesTheState) {
  Context context;
  MixerModel model(context, GetParam(), {8, 0, 2}, DType::float64);
  Tape tape(context, Tape::Mode::inference);
  const Tensor x = normal(context, {2, 300, 8}, DType::float64);
  const Tensor whole = model.mixer->forward(tape, tape.constant(x), nullptr, {}).value;
  const auto part = [&](int64_t begin, int64_t end) { return tape.constant(clone(context, x.slice(1, begin, end))); };
  const std::unique_ptr<MixerState> state = model.mixer->make_state();
  model.mixer->forward(tape, part(0, 5), state.get(), {});
  const auto saved = [&] {
    std::map<std::string, std::vector<double>> values;
    for (const auto& [name, tensor] : state->save(context)) values[name] = read_values(context, tensor);
    return values;
  };
  const auto before = saved();
  EXPECT_THROW(model.mixer->forward(tape, tape.constant(normal(context, {1, 3, 8}, DType::float64)), state.get(), {}),
               Error);
  EXPECT_EQ(saved(), before) << "after a batch that is not that of the state";
  const Variable rest = part(5, 300);  // more than the cache of keys and values has room for
  for (int at = 0;; ++at) {
    ASSERT_LT(at, 100);
    Failure failure(at);
    context.set_listener(&failure);
    std::string error;
    try {
      const Variable y = model.mixer->forward(tape, rest, state.get(), {});
      EXPECT_THAT(read_values(context, y.value),
                  Pointwise(DoubleNear(1e-12), read_values(context, whole.slice(1, 5, 300))));
    } catch (const Error& caught) {
      error = caught.what();
    }
    context.set_listener(nullptr);
    if (error.empty()) break;
    EXPECT_EQ(saved(), before) << error;
  }
}

TEST_P(Mixers, AStateIsRefusedWhereGradientsAreRecorded) {
  Context context;
  MixerModel model(context, GetParam(), {8, 0, 2}, DType::float32);
  Tape tape(context);
  const Variable x = tape.constant(normal(context, {1, 3, 8}, DType::float32));
  const std::unique_ptr<MixerState> state = model.mixer->make_state();
  EXPECT_THAT([&] { model.mixer->forward(tape, x, state.get(), {}); },
              ThrowsMessage<Error>(HasSubstr("found a state on a tape that records")));
}

// Forward and backward allocate the same bytes, at their peak and in between, where there is no data.
TEST_P(Mixers, MetaCountsTheBytesOfTheCpu) {
  for (DType dtype : {DType::float32, DType::bfloat16}) {
    const auto bytes = [&](Device device) {
      Context context(device);
      MixerModel model(context, GetParam(), {8, 0, 2}, dtype);
      Gradient d_x;
      const Tensor x = normal(context, {2, 70, 8}, dtype), d_y = normal(context, {2, 70, 8}, dtype);
      Tape tape(context);
      const Variable y = model.mixer->forward(tape, tape.leaf(x, d_x, "x"), nullptr, {});
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
    All, Mixers,
    ::testing::Values(
        "{type: lightning, heads: 2, act: silu, lrpe: {type: lrpe_rotate, theta_init: rope, base: 10000, "
        "layers: [0]}, gate: {act: sigmoid, position: post, rank: 3}}",
        "{type: lightning, heads: 1, gate: {act: silu, position: pre}}",
        "{type: lightning, heads: 4, act: none, lrpe: {type: lrpe_rotate, layers: [0, 1]}}",
        "{type: lightning, heads: 2, act: none, lrpe: {type: lrpe_cosine, base: 100, act: silu}}",
        "{type: lightning, heads: 8, lrpe: {type: lrpe_cosine, learnable: true, per_head: true, "
        "extra_tokens: 2}}",
        "{type: linear_attention, heads: 2}", "{type: linear_attention, heads: 1, act: relu, decay: true}",
        "{type: linear_attention, heads: 4, kv_heads: 2, act: none, lrpe: {type: lrpe_rotate, act: softmax}}",
        "{type: linear_attention, heads: 2, act: softmax}",
        "{type: linear_attention, heads: 2, normalizer: true, decay: true}",
        "{type: linear_attention, heads: 4, kv_heads: 2, act: softmax, normalizer: true, lrpe: {type: lrpe_rotate}}",
        "{type: retention, heads: 2}", "{type: retention, heads: 4, expand_k: 2.0, expand_v: 0.5}",
        "{type: simple_gla, heads: 2}", "{type: simple_gla, heads: 1, expand_k: 0.5, divisor: 2.0}",
        "{type: softmax_attention, heads: 2}", "{type: softmax_attention, heads: 4, kv_heads: 2, window: 9}",
        "{type: softmax_attention, heads: 4, kv_heads: 1}"));

// What is wrong is refused at its place.
TEST(MixerOptions, BadOnesNameTheirPlace) {
  const auto build = [](const std::string& options) {
    return [=] {
      ParameterSet parameters;
      make_mixer(options, ModuleBuilder(parameters), {8, 0, 2});
    };
  };
  const auto message = [](const char* text) { return ThrowsMessage<ConfigError>(HasSubstr(text)); };
  EXPECT_THAT(build("{type: retention, heads: 2, expand_v: 1.1}"), message("expand_v: found 1.1"));
  EXPECT_THAT(build("{type: retention, heads: 8}"), message("heads of q have 1 features, expected an even number"));
  EXPECT_THAT(build("{type: retention, heads: 2, divisor: 3.0}"), message("unknown key 'divisor'"));
  EXPECT_THAT(build("{type: simple_gla, heads: 2, divisor: 0}"), message("divisor"));
  EXPECT_THAT(build("{type: softmax_attention, heads: 4, kv_heads: 3}"),
              message("kv_heads: found 3, expected a divisor of heads, which is 4"));
  EXPECT_THAT(build("{type: softmax_attention, heads: 2, window: -1}"), message("window"));
  EXPECT_THAT(build("{type: softmax_atention, heads: 2}"), message("did you mean 'softmax_attention'?"));
  EXPECT_THAT(build("{type: linear_attention, heads: 2, decay: 3}"), message("decay"));
  EXPECT_THAT(build("{type: linear_attention, heads: 2, normalizer: 3}"), message("normalizer"));
  EXPECT_THAT(build("{type: linear_attention, heads: 2, act: softmax, act_dim: sequence}"),
              message("act_dim: found 'sequence'"));
  EXPECT_THAT(build("{type: linear_attention, heads: 2, kv_heads: 1, lrpe: {type: lrpe_rotate, per_head: true}}"),
              message("lrpe: found per_head: true"));
}

// Without a config, too, what no mixer can have is refused before it is built.
TEST(MixerOptions, BadOnesAreRefusedInCppToo) {
  const auto refusal = []<class M>(const typename M::Options& options) {
    ParameterSet parameters;
    const std::string error = testing::error_of([&] { M(options, ModuleBuilder(parameters), BlockPlace{8, 0, 1}); });
    EXPECT_TRUE(parameters.all().empty()) << error;
    return error;
  };
  const auto softmax = [&](const SoftmaxAttentionMixer::Options& options) {
    return refusal.operator()<SoftmaxAttentionMixer>(options);
  };
  EXPECT_EQ(softmax({.heads = 0}), "[softmax_attention] heads is 0, expected a divisor of dim 8");
  EXPECT_EQ(softmax({.heads = 3}), "[softmax_attention] heads is 3, expected a divisor of dim 8");
  EXPECT_EQ(softmax({.heads = 2, .kv_heads = 3}),
            "[softmax_attention] kv_heads is 3, expected a divisor of the 2 heads, or 0: as many");
  EXPECT_EQ(softmax({.heads = 2, .kv_heads = -1}),
            "[softmax_attention] kv_heads is -1, expected a divisor of the 2 heads, or 0: as many");
  EXPECT_EQ(softmax({.heads = 2, .window = -1}), "[softmax_attention] window is -1, expected 0, for none, or more");
  EXPECT_EQ(softmax({.heads = 2, .base = 0.0}), "[lrpe] base is 0, expected a number above 0");
  EXPECT_EQ(softmax({.heads = 8}), "[lrpe_rotate] heads have 1 features, expected an even number");

  const auto linear = [&](const LinearAttentionMixer::Options& options) {
    return refusal.operator()<LinearAttentionMixer>(options);
  };
  EXPECT_EQ(linear({.heads = 0}), "[linear_attention] heads is 0, expected a divisor of dim 8");
  EXPECT_EQ(linear({.heads = 2, .kv_heads = 3}),
            "[linear_attention] kv_heads is 3, expected a divisor of the 2 heads, or 0: as many");
  EXPECT_EQ(linear({.heads = 2, .kv_heads = 1, .lrpe = Lrpe::Options{.per_head = true}}),
            "[linear_attention] lrpe.per_head is true, expected false: q has 2 heads and k 1");

  const auto retention = [&](const Retention::Options& options) { return refusal.operator()<Retention>(options); };
  EXPECT_EQ(retention({.heads = 2, .expand_k = 0.3}),
            "[retention] expand_k is 0.3, expected a number above 0 that makes dim 8 a multiple of the 2 heads");
  EXPECT_EQ(retention({.heads = 2, .expand_k = -1.0}),
            "[retention] expand_k is -1, expected a number above 0 that makes dim 8 a multiple of the 2 heads");
  EXPECT_EQ(retention({.heads = 2, .expand_v = 0.0}),
            "[retention] expand_v is 0, expected a number above 0 that makes dim 8 a multiple of the 2 heads");
  EXPECT_EQ(retention({.heads = 2, .eps = 0.0}), "[retention] eps is 0, expected a number above 0");
  EXPECT_EQ(retention({.kind = Retention::Kind::simple_gla, .heads = 2, .divisor = -1.0}),
            "[simple_gla] divisor is -1, expected a number above 0");
  EXPECT_EQ(refusal.operator()<Lightning>({.heads = 2, .gate = LightningGate{.rank = -1}}),
            "[lightning] gate.rank is -1, expected 0, for a full one, or more");
}

// Names and shapes are those of flash-linear-attention's modules.
TEST(MixerOptions, ParametersHaveTheNamesThatWeightsAreExchangedBy) {
  const auto names = [](const char* options) {
    ParameterSet parameters;
    const auto mixer = make_mixer(options, ModuleBuilder(parameters, "attn"), {8, 0, 2});
    std::vector<std::string> result;
    for (const Parameter& parameter : parameters.all()) {
      result.push_back(parameter.name + " " + to_string(parameter.shape));
    }
    return result;
  };
  EXPECT_THAT(names("{type: retention, heads: 2}"),
              ::testing::UnorderedElementsAre("attn.q_proj.weight (8, 8)", "attn.k_proj.weight (8, 8)",
                                              "attn.v_proj.weight (16, 8)", "attn.g_proj.weight (16, 8)",
                                              "attn.g_norm_swish_gate.weight (8)", "attn.o_proj.weight (8, 16)"));
  EXPECT_THAT(names("{type: simple_gla, heads: 2}"),
              ::testing::IsSupersetOf(
                  {"attn.gk_proj.weight (2, 8)", "attn.gk_proj.bias (2)", "attn.g_norm_swish_gate.weight (4)"}));
}

TEST(MixerStates, AStateKnowsItsMixerAndItsTensors) {
  Context context;
  MixerModel model(context, "{type: lightning, heads: 2}", {8, 0, 2}, DType::float32);
  Tape tape(context, Tape::Mode::inference);
  const Variable x = tape.constant(normal(context, {1, 3, 8}, DType::float32));
  struct Another : MixerState {
    std::map<std::string, Tensor> save(Context&) const override { return {}; }
  } another;
  EXPECT_THAT([&] { model.mixer->forward(tape, x, &another, {}); },
              ThrowsMessage<Error>(HasSubstr("[lightning] the state is that of another mixer")));
  EXPECT_THAT([&] { model.mixer->load_state(context, {}); }, ThrowsMessage<Error>(HasSubstr("needs its position")));
  EXPECT_THAT(
      [&] {
        model.mixer->load_state(context, {{"keys", x.value}});
      },
      ThrowsMessage<Error>(HasSubstr("a state has no tensor keys")));
}

TEST(MixerStates, APositionIsANumberOfTokens) {
  Context context;
  for (const char* type : {"lightning", "softmax_attention"}) {
    const MixerModel model(context, fmt::format("{{type: {}, heads: 2}}", type), {8, 0, 2}, DType::float32);
    const auto error_with = [&](const Tensor& position) {
      return testing::error_of([&] { model.mixer->load_state(context, {{"position", position}}); });
    };
    const auto number = [&](double value, DType dtype) {
      const Tensor tensor = Tensor::empty(context, {1}, dtype);
      write_values(context, tensor, {value});
      return tensor;
    };
    EXPECT_EQ(error_with(number(7, DType::int32)), "no error");
    EXPECT_EQ(error_with(number(-1, DType::int32)),
              fmt::format("[{}] the position of a state is -1, expected at least 0", type));
    EXPECT_EQ(error_with(number(1.5, DType::float32)),
              fmt::format("[{}] the position of a state is float32 (1), expected one int32", type));
    EXPECT_EQ(error_with({}), fmt::format("[{}] the position of a state is float32 (), expected one int32", type));
  }
}

// docs/model.md#parameters: the running number of a parameter picks the random numbers that it starts with.
TEST(MixerParameters, ALearnedThetaComesFirst) {
  for (const char* type : {"lightning", "linear_attention"}) {
    ParameterSet parameters;
    make_mixer(fmt::format("{{type: {}, heads: 2, lrpe: {{type: lrpe_rotate, learnable: true}}}}", type),
               ModuleBuilder(parameters), {8, 0, 2});
    std::vector<std::string> names;
    for (const Parameter& parameter : parameters.all()) names.push_back(parameter.name);
    EXPECT_EQ(names, (std::vector<std::string>{"lrpe.theta", "qkv.weight", "out.weight"})) << type;
  }
}

// The sums of k belong to the state of a mixer with a normalizer, and to no other.
TEST(MixerStates, SumsOfKeysAreSavedWhereTheyAreKept) {
  Context context;
  const auto saved = [&](const MixerModel& model) {
    const std::unique_ptr<MixerState> state = model.mixer->make_state();
    Tape tape(context, Tape::Mode::inference);
    model.mixer->forward(tape, tape.constant(normal(context, {1, 3, 8}, DType::float32)), state.get(), {});
    return state->save(context);
  };
  const MixerModel with(context, "{type: linear_attention, heads: 2, normalizer: true}", {8, 0, 2}, DType::float32);
  const MixerModel without(context, "{type: linear_attention, heads: 2}", {8, 0, 2}, DType::float32);
  EXPECT_EQ(saved(with).at("key_sums").shape(), (Shape{1, 2, 4, 1}));
  EXPECT_FALSE(saved(without).contains("key_sums"));
  EXPECT_THAT([&] { without.mixer->load_state(context, saved(with)); },
              ThrowsMessage<Error>(HasSubstr("a state has no tensor key_sums")));
  EXPECT_THAT([&] { with.mixer->load_state(context, saved(without)); },
              ThrowsMessage<Error>(HasSubstr("needs both of its tensors state and key_sums")));
}

// The cache holds what a token to come may see, and no more than its steps of 256 tokens.
TEST(MixerStates, ACacheGrowsInStepsAndKeepsAWindow) {
  for (const int64_t window : {0, 100}) {
    Context context;
    MixerModel model(context, fmt::format("{{type: softmax_attention, heads: 2, window: {}}}", window), {8, 0, 2},
                     DType::float32);
    std::unique_ptr<MixerState> state = model.mixer->make_state();
    const auto cache = [&] {
      return context.allocator().stats().by_category[static_cast<size_t>(MemoryCategory::cache)].current;
    };
    constexpr size_t kBytesAStep = 2 * 256 * 8 * sizeof(float);
    for (int64_t tokens = 1; tokens <= 1200; ++tokens) {
      Tape tape(context, Tape::Mode::inference);
      model.mixer->forward(tape, tape.constant(normal(context, {1, 1, 8}, DType::float32)), state.get(), {});
      const size_t steps = tokens <= 256 ? 1 : window > 0 ? 1 : tokens <= 512 ? 2 : tokens <= 1024 ? 4 : 8;
      ASSERT_EQ(cache(), steps * kBytesAStep) << tokens;
    }
  }
}

// Whenever the cache was last trimmed.
TEST(MixerStates, ASavedCacheHoldsWhatATokenToComeSees) {
  for (const int64_t window : {0, 1, 8}) {
    Context context;
    const std::string options = fmt::format("{{type: softmax_attention, heads: 2, window: {}}}", window);
    MixerModel model(context, options, {8, 0, 2}, DType::float32);
    std::unique_ptr<MixerState> state = model.mixer->make_state();
    for (int64_t tokens = 1; tokens <= 300; ++tokens) {
      Tape tape(context, Tape::Mode::inference);
      model.mixer->forward(tape, tape.constant(normal(context, {1, 1, 8}, DType::float32)), state.get(), {});
      const std::map<std::string, Tensor> saved = state->save(context);
      const int64_t seen = window > 0 ? std::min(tokens, window - 1) : tokens;
      ASSERT_EQ(saved.contains("keys") ? saved.at("keys").size(1) : 0, seen) << tokens;
      ASSERT_EQ(saved.contains("values") ? saved.at("values").size(1) : 0, seen) << tokens;
    }
  }
}

// Also where the cache has let go of tokens, and was saved and loaded after that.
TEST(MixerStates, AWindowOfACacheIsTheWhole) {
  Context context;
  MixerModel model(context, "{type: softmax_attention, heads: 4, kv_heads: 2, window: 100}", {8, 0, 2}, DType::float64);
  Tape tape(context, Tape::Mode::inference);
  const Variable x = tape.constant(normal(context, {1, 700, 8}, DType::float64));
  const Tensor whole = model.mixer->forward(tape, x, nullptr, {}).value;
  std::unique_ptr<MixerState> state = model.mixer->make_state();
  int piece = 0;
  for (int64_t begin = 0; begin < 700; ++piece) {
    const int64_t end = std::min<int64_t>(700, begin + (piece % 5 == 4 ? 40 : 1 + piece % 3));
    const Tensor part = Tensor::empty(context, {1, end - begin, 8}, DType::float64);
    write_values(context, part, read_values(context, x.value.slice(1, begin, end)));
    const Variable y = model.mixer->forward(tape, tape.constant(part), state.get(), {});
    ASSERT_THAT(read_values(context, y.value),
                Pointwise(DoubleNear(1e-12), read_values(context, whole.slice(1, begin, end))))
        << "from token " << begin;
    if (piece == 40) state = model.mixer->load_state(context, state->save(context));
    begin = end;
  }
}

}  // namespace
}  // namespace heddle::mixers_test
