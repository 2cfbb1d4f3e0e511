// Language models of all kinds of layers, on both devices, against the loops of reference_model.h: the output of every
// part, the gradient of every parameter, a text read in pieces, and how parameters start.
//
// Widths that could be taken for one another differ: 3 heads of 8 features, 20 hidden features, a vocabulary of 11.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tests/layers/on_devices.h"
#include "tests/trainers/reference_model.h"
#include "tests/trainers/test_config.h"
#include "trainers/evaluate.h"
#include "trainers/model/language_model.h"

namespace heddle::model_reference_test {
namespace {

using Values = std::vector<double>;
using Strings = std::vector<std::string>;

constexpr int64_t kLength = 14, kVocabulary = 11;

struct ModelCase {
  std::string name;
  Strings overrides;
  bool is_one_grid = false;  // and so read in one pass
  bool is_for_cpu = false;
};

std::vector<ModelCase> all_model_cases() {
  return {
      {"rotated",
       {"model.norm={type: srms_norm, eps: 0.01, scale: 1.3}",
        "model.mixer={type: lightning, heads: 3, act: silu, lrpe: {type: lrpe_rotate, layers: [0, 2], base: 100}, "
        "gate: {act: sigmoid, position: post, rank: 5}}",
        "model.channel={type: glu, hidden: 20, act: silu}"}},
      {"interleaved",
       {"model.norm={type: rms_norm}",
        "model.mixer={type: lightning, heads: 3, act: none, lrpe: {type: lrpe_rotate, pairing: interleaved, base: 30, "
        "learnable: true, per_head: true, act: elu1}, gate: {act: silu, position: pre}}",
        "model.channel={type: ffn, hidden: 20, act: elu1}", "model.tie_embeddings=true"}},
      {"cosine",
       {"model.norm={type: layer_norm}",
        "model.mixer={type: lightning, heads: 3, act: elu1, lrpe: {type: lrpe_cosine, base: 50, learnable: true, "
        "act: softmax, extra_tokens: 2}}",
        "model.channel={type: glu, hidden: 20, act: sigmoid}"}},
      {"grid",
       {"model.norm={type: group_rms_norm, groups: 4}",
        "model.mixer={type: lightning, heads: 3, act: sigmoid, lrpe: {type: lrpe_cosine, shape: [3, 4], "
        "extra_tokens: 2, theta_init: low_half, learnable: true, per_head: true}, "
        "gate: {act: sigmoid, position: pre, rank: 7}}",
        "model.channel={type: glu, hidden: 20, act: none}", "trainer.sequence_length=14", "trainer.sample=null"},
       true},
      {"high_half",
       {"model.norm={type: group_norm, groups: 2, weight: false}",
        "model.mixer={type: lightning, heads: 3, lrpe: {type: lrpe_rotate, theta_init: high_half, act: sigmoid}, "
        "gate: {act: none, position: post}}",
        "model.channel={type: ffn, hidden: 20, act: silu}"}},
      {"plain",
       {"model.norm={type: group_srms_norm, groups: 6}", "model.layers=1",
        "model.mixer={type: lightning, heads: 3, act: relu, gate: {act: elu1, position: pre, rank: 2}}",
        "model.channel={type: ffn, hidden: 20}"}},
      {"linear_attention", {"model.norm={type: rms_norm}", "model.mixer={type: linear_attention, heads: 3}"}},
      {"linear_attention_of_fewer_heads",
       {"model.norm={type: srms_norm}",
        "model.mixer={type: linear_attention, heads: 4, kv_heads: 2, act: silu, decay: true, "
        "lrpe: {type: lrpe_rotate, learnable: true, base: 40, layers: [1, 2]}}"},
       false,
       true},
      {"linear_attention_with_a_normalizer",
       {"model.norm={type: rms_norm}",
        "model.mixer={type: linear_attention, heads: 3, act: softmax, normalizer: true, decay: true, "
        "lrpe: {type: lrpe_rotate, base: 40, layers: [1]}}"}},
      {"retention",
       {"model.norm={type: rms_norm}",
        "model.mixer={type: retention, heads: 3, expand_k: 0.5, expand_v: 1.5, eps: 0.01, base: 60}"}},
      {"simple_gla",
       {"model.norm={type: rms_norm}",
        "model.mixer={type: simple_gla, heads: 3, expand_k: 1.5, expand_v: 0.5, eps: 0.01, divisor: 2.5}"},
       false,
       true},
      {"softmax_attention",
       {"model.norm={type: rms_norm}", "model.mixer={type: softmax_attention, heads: 3, base: 70}"}},
      {"softmax_attention_of_fewer_heads_in_a_window",
       {"model.norm={type: rms_norm}", "model.mixer={type: softmax_attention, heads: 4, kv_heads: 2, window: 5}"}},
      {"pattern",
       {"model.norm={type: rms_norm}", "model.layers=5",
        "model.mixer={pattern: [a, b, c], kinds: {c: {type: retention, heads: 2}, b: {type: softmax_attention, "
        "heads: 3}, a: {type: lightning, heads: 6, lrpe: {type: lrpe_rotate, layers: [3]}}}}"}},
  };
}

// Those that the device has kernels for.
std::vector<ModelCase> model_cases(const Context& context) {
  std::vector<ModelCase> cases = all_model_cases();
  if (context.device().type == DeviceType::cuda) {
    std::erase_if(cases, [](const ModelCase& of) { return of.is_for_cpu; });
  }
  return cases;
}

// The model of a case, its parameters moved away from their start: no weight is 1 and no bias 0.
struct Built {
  Built(Context& context, const ModelCase& of, DType dtype = DType::float64)
      : config(config_of(of)), model(config), reference(start(context, dtype)) {}

  static ModelConfig config_of(const ModelCase& of) {
    Strings overrides = {"model.dim=24", "model.layers=3", "model.vocab_size=" + std::to_string(kVocabulary)};
    overrides.insert(overrides.end(), of.overrides.begin(), of.overrides.end());
    return testing::tiny_train_config(overrides).model;
  }
  testing::ReferenceModel start(Context& context, DType dtype) {
    ParameterSet& parameters = model.parameters();
    parameters.materialize(context, dtype, 3);
    Random random(8, RandomStream::test);
    for (const Parameter& parameter : parameters.all()) {
      Values values = read_values(context, parameter.master);
      const double size = parameter.name.ends_with("theta") ? 0.02 : 0.2;
      for (double& value : values) value += size * random.next_normal();
      write_values(context, parameter.master, values);
    }
    return testing::ReferenceModel(context, config, parameters);
  }

  ModelConfig config;
  LanguageModel model;
  testing::ReferenceModel reference;
};

// Two sequences, some of whose targets do not count.
Batch some_batch() {
  Batch batch{.size = 2, .length = kLength, .tokens = {}, .targets = {}};
  Random random(9, RandomStream::test);
  for (int64_t i = 0; i < 2 * kLength; ++i) {
    batch.tokens.push_back(static_cast<int32_t>(random.next_below(kVocabulary)));
    batch.targets.push_back(i % 5 == 3 ? kIgnoredTarget : static_cast<int32_t>(random.next_below(kVocabulary)));
  }
  return batch;
}

std::vector<int32_t> row_of(const Batch& batch, int64_t row) {
  const auto begin = batch.tokens.begin() + row * batch.length;
  return {begin, begin + batch.length};
}

double largest_difference(const Values& found, const testing::ReferenceModel::Rows& expected, size_t first_row = 0) {
  double apart = 0.0, largest = 0.0;
  const size_t width = expected[0].size();
  for (size_t i = 0; i < found.size(); ++i) {
    const double value = expected[first_row + i / width][i % width];
    if (std::isnan(found[i])) return INFINITY;
    apart = std::max(apart, std::abs(found[i] - value));
    largest = std::max(largest, std::abs(value));
  }
  return apart / largest;
}

class ModelReference : public test::OnDevices {};

TEST_P(ModelReference, EveryPartGivesWhatItsFormulaSays) {
  const Batch batch = some_batch();
  const DeviceBatch on_device = to_device(context(), batch);
  for (const ModelCase& of : model_cases(context())) {
    Built built(context(), of);
    std::map<std::string, Tensor> parts;
    Tape tape(context(), Tape::Mode::inference);
    built.model.forward(tape, on_device.tokens, nullptr, [&](std::string_view part, const Variable& output) {
      parts[std::string(part)] = clone(context(), output.value);
    });
    for (int64_t row = 0; row < batch.size; ++row) {
      const auto expected = built.reference.parts(row_of(batch, row));
      ASSERT_EQ(parts.size(), expected.size());
      for (const auto& [part, rows] : expected) {
        EXPECT_LE(largest_difference(read_values(context(), parts.at(part).select(0, row)), rows), 1e-11)
            << part << " of " << of.name;
      }
    }
  }
}

// The derivative of the loss along a random direction of each parameter, by differences of fourth order.
TEST_P(ModelReference, EveryGradientIsThatOfDifferences) {
  const Batch batch = some_batch();
  const DeviceBatch on_device = to_device(context(), batch);
  for (const ModelCase& of : model_cases(context())) {
    Built built(context(), of);
    Tape tape(context());
    const Variable loss = language_model_loss(tape, built.model.forward(tape, on_device.tokens), on_device.targets);
    EXPECT_NEAR(read_values(context(), loss.value)[0], built.reference.loss(batch).mean(), 1e-12);
    const Tensor one = Tensor::empty(context(), {}, DType::float64);
    write_values(context(), one, {1.0});
    built.model.parameters().zero_grad();
    tape.backward(loss, one);

    Random random(10, RandomStream::test);
    for (const Parameter& parameter : built.model.parameters().all()) {
      const Values gradient = read_values(context(), parameter.gradient.tensor);
      Values& weight = built.reference.weights.at(parameter.name);
      const Values start = weight;
      Values direction(weight.size());
      double expected = 0.0, gradient_squares = 0.0, squares = 0.0;
      for (double& along : direction) along = random.next_normal(), squares += along * along;
      for (size_t i = 0; i < weight.size(); ++i) {
        direction[i] /= std::sqrt(squares);
        expected += gradient[i] * direction[i];
        gradient_squares += gradient[i] * gradient[i];
      }
      const auto loss_at = [&](double step) {
        for (size_t i = 0; i < weight.size(); ++i) weight[i] = start[i] + step * direction[i];
        return built.reference.loss(batch).mean();
      };
      constexpr double h = 2e-4;
      const double slope = (8.0 * (loss_at(h) - loss_at(-h)) - (loss_at(2.0 * h) - loss_at(-2.0 * h))) / (12.0 * h);
      weight = start;
      EXPECT_NEAR(slope, expected, 1e-6 * std::sqrt(gradient_squares / static_cast<double>(weight.size())) + 1e-11)
          << parameter.name << " of " << of.name;
      EXPECT_GT(gradient_squares, 0.0) << parameter.name << " of " << of.name;
    }
  }
}

// Pieces of one and of several tokens, with a state that is also saved and loaded on the way.
TEST_P(ModelReference, ATextReadInPiecesIsTheWhole) {
  const Batch batch = some_batch();
  for (const ModelCase& of : model_cases(context())) {
    if (of.is_one_grid) continue;
    Built built(context(), of);
    for (const bool is_saved : {false, true}) {
      ModelState state = built.model.initial_state();
      const auto expected = built.reference.logits(row_of(batch, 0));
      int64_t begin = 0;
      for (const int64_t end : {1, 4, 5, 7, 8, 9, 14}) {
        const std::vector<int32_t> tokens(batch.tokens.begin() + begin, batch.tokens.begin() + end);
        const Tensor on_device = Tensor::empty(context(), {1, end - begin}, DType::int32);
        copy_from_host(context(), on_device, tokens.data());
        context().synchronize();
        Tape tape(context(), Tape::Mode::inference);
        const Values found = read_values(context(), built.model.forward(tape, on_device, &state).value);
        EXPECT_LE(largest_difference(found, expected, static_cast<size_t>(begin)), 1e-11)
            << "tokens " << begin << " to " << end << " of " << of.name;
        begin = end;
        if (!is_saved) continue;
        ParameterSet unused;
        for (int64_t layer = 0; layer < built.config.layers; ++layer) {
          std::unique_ptr<MixerState>& kept = state[static_cast<size_t>(layer)];
          const auto mixer = built.config.mixer.of_layer(layer).options->make(
              ModuleBuilder(unused, std::to_string(layer)), {built.config.dim, layer, built.config.layers});
          kept = mixer->load_state(context(), kept->save(context()));
        }
      }
    }
  }
}

// In 16 bits a learned theta would turn far tokens anywhere: its float32 master is what counts.
TEST_P(ModelReference, ALearnedThetaKeepsTheDigitsOfItsMaster) {
  const ModelCase of = all_model_cases()[1];
  constexpr int64_t kFar = 700;
  const auto logits = [&](double factor) {
    Built built(context(), of, DType::bfloat16);
    for (const Parameter& parameter : built.model.parameters().all()) {
      if (!parameter.name.ends_with("theta")) continue;
      Values angles(static_cast<size_t>(numel(parameter.shape)), 0.5 * factor);
      write_values(context(), parameter.master, angles);
      write_values(context(), parameter.value, angles);
      EXPECT_EQ(read_values(context(), parameter.value), Values(angles.size(), 0.5));
    }
    const DeviceBatch batch = to_device(
        context(),
        {.size = 1, .length = kFar, .tokens = std::vector<int32_t>(kFar, 3), .targets = std::vector<int32_t>(kFar, 0)});
    Tape tape(context(), Tape::Mode::inference);
    return read_values(context(), built.model.forward(tape, batch.tokens).value);
  };
  EXPECT_NE(logits(1.0), logits(1.0 + 0x1p-11));
}

HEDDLE_ON_DEVICES(ModelReference);

// Parameter i is its deviation times the normal numbers of substream i; docs/model.md#start lists the deviations.
TEST(ModelStart, IsThatOfTheDocs) {
  Context context(Device{}, {.threads = 1});
  for (const ModelCase& of : all_model_cases()) {
    const ModelConfig config = Built::config_of(of);
    LanguageModel model(config);
    model.parameters().materialize(context, DType::float64, 21);
    const auto deviation = [&](const Parameter& parameter) {
      const std::string& name = parameter.name;
      const double in = static_cast<double>(parameter.shape[-1]);
      if (name == "embedding.weight") return 0.02;
      if (name.ends_with(".mixer.out.weight") || name.ends_with(".mixer.o_proj.weight")) {
        return 1.0 / std::sqrt(2.0 * static_cast<double>(config.layers) * in);
      }
      return 1.0 / std::sqrt(in);
    };
    uint32_t index = 0;
    for (const Parameter& parameter : model.parameters().all()) {
      const Values values = read_values(context, parameter.master);
      Random random(21, RandomStream::parameters, index++);
      if (parameter.name.ends_with("theta")) continue;  // as the fixed ones, which the reference checks
      for (const double value : values) {
        const bool is_vector = parameter.shape.rank() == 1;
        const double expected =
            is_vector ? (parameter.name.ends_with(".weight") ? 1.0 : 0.0) : deviation(parameter) * random.next_normal();
        EXPECT_NEAR(value, expected, 1e-15) << parameter.name << " of " << of.name;
      }
      EXPECT_EQ(parameter.weight_decay, parameter.shape.rank() > 1) << parameter.name;
    }
  }
}

}  // namespace
}  // namespace heddle::model_reference_test
