// Reading a text on a GPU token by token: the replays of a graph compute what is computed without one.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/config/config_load.h"
#include "core/tensor/transfer.h"
#include "layers/registry.h"
#include "tests/trainers/test_config.h"
#include "trainers/model/generate.h"
#include "trainers/model/text_reader.h"

namespace heddle::text_reader_gpu_test {
namespace {

class TextReaderGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (resolve_device("auto").type != DeviceType::cuda) GTEST_SKIP() << "no GPU";
  }
};

std::vector<int32_t> text(int64_t length) {
  std::vector<int32_t> tokens(static_cast<size_t>(length));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>((5 * i * i + 3 * i) % 8);
  return tokens;
}

struct Logits {
  std::vector<std::vector<double>> after;  // each part
  bool is_captured = false;
};

// The parts are a prompt, single tokens, some tokens at once, and single tokens again.
Logits read(Context& context, const LanguageModel& model, bool use_graph) {
  const std::vector<int32_t> tokens = text(64);
  TextReader reader(context, model, use_graph);
  Logits logits;
  size_t begin = 0;
  for (const size_t count : {9, 1, 1, 1, 1, 1, 1, 1, 1, 17, 1, 1, 1, 1}) {
    logits.after.push_back(reader.read({tokens.data() + begin, count}));
    begin += count;
  }
  logits.is_captured = reader.is_captured();
  return logits;
}

TEST_F(TextReaderGpu, ReplaysComputeWhatIsComputedWithoutThem) {
  const std::vector<std::pair<std::string, bool>> mixers = {
      {"{type: lightning, heads: 2, lrpe: {type: lrpe_rotate, base: 100}, gate: {act: silu, position: post}}", true},
      {"{type: lightning, heads: 2, lrpe: {type: lrpe_cosine, base: 100, act: relu, extra_tokens: 12}}", true},
      {"{type: linear_attention, heads: 4, kv_heads: 2, act: elu1, normalizer: true, lrpe: {type: lrpe_rotate}}", true},
      {"{type: retention, heads: 2}", true},
      {"{type: simple_gla, heads: 2}", true},
      {"{type: softmax_attention, heads: 2}", false},
      {"{pattern: [a, b], kinds: {a: {type: lightning, heads: 2}, b: {type: softmax_attention, heads: 2}}}", false},
  };
  for (const auto& [mixer, is_captured] : mixers) {
    for (const auto& [dtype, tolerance] :
         {std::pair{DType::float64, 1e-12}, {DType::float32, 2e-5}, {DType::bfloat16, 3e-2}}) {
      Context context({DeviceType::cuda});
      LanguageModel model(testing::tiny_train_config({"model.mixer=" + mixer}).model);
      model.parameters().materialize(context, dtype, 5);
      const Logits found = read(context, model, true), expected = read(context, model, false);
      EXPECT_EQ(found.is_captured, is_captured) << mixer;
      EXPECT_FALSE(expected.is_captured);
      ASSERT_EQ(found.after.size(), expected.after.size());
      for (size_t part = 0; part < found.after.size(); ++part) {
        for (size_t i = 0; i < found.after[part].size(); ++i) {
          EXPECT_NEAR(found.after[part][i], expected.after[part][i], tolerance)
              << mixer << " " << name(dtype) << ", part " << part << ", token " << i;
        }
      }
      const Logits again = read(context, model, true);
      EXPECT_EQ(again.after, found.after) << mixer << ": another run has other bits";
    }
  }
}

// Two readers of one model do not meet, and memory is given back.
TEST_F(TextReaderGpu, ReadersStandBesideEachOther) {
  Context context({DeviceType::cuda});
  LanguageModel model(testing::tiny_train_config().model);
  model.parameters().materialize(context, DType::float32, 5);
  const Logits alone = read(context, model, true);
  const size_t before = context.allocator().stats().allocated.current;
  const std::vector<int32_t> tokens = text(64);
  {
    TextReader one(context, model), other(context, model);
    size_t begin = 0, part = 0;
    for (const size_t count : {9, 1, 1, 1, 1, 1, 1, 1, 1}) {
      EXPECT_EQ(one.read({tokens.data() + begin, count}), alone.after[part]) << part;
      EXPECT_EQ(other.read({tokens.data() + begin, count}), alone.after[part++]) << part;
      begin += count;
    }
    EXPECT_TRUE(one.is_captured() && other.is_captured());
  }
  EXPECT_EQ(context.allocator().stats().allocated.current, before);
}

// A recurrent state of a user's own, which waits for the device while it is moved on.
struct SumState : MixerState {
  Tensor sum;

  std::map<std::string, Tensor> save(Context&) const override { return {{"sum", sum}}; }
  std::unique_ptr<MixerState> in_place(Context& context, const Tensor&) const override {
    auto copied = std::make_unique<SumState>();
    copied->sum = clone(context, sum);
    return copied;
  }
};

class WaitingMixer : public Mixer {
 public:
  Variable forward(Tape& tape, const Variable& x, MixerState* state, const Tensor&) const override {
    tape.context().synchronize();
    if (state != nullptr) {
      auto& own = dynamic_cast<SumState&>(*state);
      own.sum = clone(tape.context(), x.value);
    }
    return x;
  }
  std::unique_ptr<MixerState> make_state() const override { return std::make_unique<SumState>(); }
  std::unique_ptr<MixerState> load_state(Context&, const std::map<std::string, Tensor>&) const override {
    return make_state();
  }
};

struct WaitingOptions : MixerOptions {
  void describe(ConfigFields&, const ModelSize&) override {}
  std::unique_ptr<Mixer> make(const ModuleBuilder&, const BlockPlace&) const override {
    return std::make_unique<WaitingMixer>();
  }
};

// What cannot be captured is computed each time.
TEST_F(TextReaderGpu, AMixerThatWaitsForTheDeviceIsNotCaptured) {
  Registry registry = built_in_registry();
  registry.add_mixer("waiting", [] { return std::make_unique<WaitingOptions>(); });
  const std::vector<std::string> overrides = {"model.mixer={type: waiting}"};
  const TrainConfig config = read_train_config(parse_config(testing::tiny_config(), "tiny.yaml", overrides), registry);
  Context context({DeviceType::cuda});
  LanguageModel model(config.model);
  model.parameters().materialize(context, DType::float32, 5);
  const Logits found = read(context, model, true), expected = read(context, model, false);
  EXPECT_FALSE(found.is_captured);
  EXPECT_EQ(found.after, expected.after);
}

TEST_F(TextReaderGpu, GeneratesTheSameTextWithAndWithoutGraphs) {
  Context context({DeviceType::cuda});
  LanguageModel model(testing::tiny_train_config().model);
  model.parameters().materialize(context, DType::float32, 5);
  const auto generated = [&](bool cuda_graph) {
    std::vector<int32_t> tokens;
    generate_tokens(context, model, text(5), {.tokens = 60, .seed = 3, .cuda_graph = cuda_graph}, 8,
                    [&](int32_t token) {
                      tokens.push_back(token);
                      return true;
                    });
    return tokens;
  };
  EXPECT_EQ(generated(true), generated(false));
}

}  // namespace
}  // namespace heddle::text_reader_gpu_test
