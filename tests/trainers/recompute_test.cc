// model.recompute changes neither a loss nor a gradient nor a parameter, bit for bit, and takes less memory.
#include "layers/ops/recompute.h"

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/activation.h"
#include "layers/ops/dropout.h"
#include "layers/ops/glu.h"
#include "layers/ops/linear.h"
#include "layers/ops/norm.h"
#include "layers/ops/softmax_attention.h"
#include "tests/layers/on_devices.h"
#include "tests/trainers/reference_model.h"
#include "tests/trainers/test_config.h"
#include "trainers/dry_run.h"
#include "trainers/train_step.h"

namespace heddle::recompute_test {
namespace {

using Strings = std::vector<std::string>;

const std::vector<std::string> kChoices = {"none", "block", "mixer", "channel"};

TrainConfig config_with(const std::string& recompute, Strings overrides) {
  overrides.push_back("model.recompute=" + recompute);
  overrides.push_back("model.layers=3");
  return testing::tiny_train_config(overrides);
}

struct Trained {
  std::vector<double> losses, norms, parameters;
  bool operator==(const Trained&) const = default;
};

Trained train(Context& context, const TrainConfig& config) {
  TrainStep train_step(context, config);
  const auto data = make_dataset(dataset_options(config));
  Trained trained;
  for (int64_t step = 1; step <= 4; ++step) {
    const auto result = train_step.step(testing::batches_of_step(*data, config, step), step, config.optimizer.lr);
    trained.losses.push_back(result.loss);
    trained.norms.push_back(result.gradient_norm);
  }
  trained.parameters = read_values(context, train_step.model().parameters().master());
  return trained;
}

class RecomputedModels : public test::OnDevices {};

TEST_P(RecomputedModels, AreTrainedToTheSameBits) {
  const std::vector<Strings> models = {
      {},
      {"model.tie_embeddings=true", "trainer.accumulate=2"},
      {"model.norm={type: layer_norm}",
       "model.mixer={type: lightning, heads: 2, act: relu, lrpe: {type: lrpe_cosine, learnable: true, act: softmax}}",
       "model.channel={type: ffn, hidden: 24, act: elu1}"},
      {"model.mixer={type: linear_attention, heads: 2, act: softmax, normalizer: true, lrpe: {type: lrpe_rotate}}"},
  };
  for (const char* dtype : {"float64", "float32", "bfloat16", "float16"}) {
    for (Strings overrides : models) {
      overrides.push_back(std::string("trainer.dtype=") + dtype);
      const Trained expected = train(context(), config_with("none", overrides));
      for (const std::string& choice : kChoices) {
        EXPECT_TRUE(train(context(), config_with(choice, overrides)) == expected) << dtype << " " << choice;
      }
    }
  }
}

TEST_P(RecomputedModels, DropTheSameAgain) {
  const Strings overrides = {"model.dropout=0.3", "trainer.accumulate=2"};
  const Trained expected = train(context(), config_with("none", overrides));
  EXPECT_FALSE(train(context(), config_with("none", {"trainer.accumulate=2"})) == expected);
  for (const std::string& choice : kChoices) {
    EXPECT_TRUE(train(context(), config_with(choice, overrides)) == expected) << choice;
  }
}
HEDDLE_ON_DEVICES(RecomputedModels);

TEST(RecomputeTest, TakesLessMemory) {
  std::map<std::string, size_t> peaks;
  for (const std::string& choice : kChoices) {
    peaks[choice] = dry_run(config_with(choice, {"trainer.batch_size=64", "trainer.sequence_length=64"})).peak_bytes;
  }
  EXPECT_LT(peaks["block"], peaks["mixer"]);
  EXPECT_LT(peaks["block"], peaks["channel"]);
  EXPECT_LT(peaks["mixer"], peaks["none"]);
  EXPECT_LT(peaks["channel"], peaks["none"]);
}

// With more layers only two tensors a block are added: its inputs.
TEST(RecomputeTest, ABlockKeepsItsInputsAlone) {
  const auto activations_of = [](int64_t layers) {
    TrainConfig config = config_with("block", {"trainer.batch_size=64", "trainer.sequence_length=64"});
    config.model.layers = layers;
    const DryRun run = dry_run(config);
    return run.category_peaks[static_cast<size_t>(MemoryCategory::activation)];
  };
  const size_t tensor = size_t{64} * 64 * 16 * sizeof(float);
  EXPECT_EQ(activations_of(9) - activations_of(8), 2 * tensor);
}

TEST(RecomputeTest, ObserversSeeEachPartOnce) {
  Context context(Device{}, {.threads = 1});
  for (const std::string& choice : kChoices) {
    const TrainConfig config = config_with(choice, {});
    LanguageModel model(config.model);
    model.parameters().materialize(context, DType::float32, 1);
    Tape tape(context);
    std::map<std::string, int> seen;
    const Tensor tokens = Tensor::zeros(context, {1, 5}, DType::int32);
    const Variable logits = model.forward(tape, tokens, nullptr,
                                          [&](std::string_view part, const Variable&) { ++seen[std::string(part)]; });
    tape.backward(logits, Tensor::zeros(context, logits.shape(), logits.dtype()));
    EXPECT_EQ(seen.size(), 15u) << choice;
    for (const auto& [part, times] : seen) EXPECT_EQ(times, 1) << choice << " " << part;
  }
}

// Several inputs, one of them undefined and one that others use, too; several outputs, one of them unused.
TEST(RecomputeTest, FunctionsOfSeveralValues) {
  Context context(Device{}, {.threads = 1});
  Random random(1, RandomStream::test);
  std::vector<GradcheckInput> inputs;
  for (const Shape& shape : {Shape{3, 4}, Shape{3, 4}, Shape{4, 4}}) {
    inputs.push_back({to_string(shape), Tensor::empty(context, shape, DType::float64)});
    fill_normal(context, inputs.back().value, random, 0.0, 1.0);
  }
  const GradcheckFunction function = [](Tape& tape, const std::vector<Variable>& in) {
    const std::vector<Variable> outputs =
        recompute(tape, {in[0], Variable{}, in[2], in[1]}, {}, [](Tape& inner, const std::vector<Variable>& x) {
          EXPECT_FALSE(x[1].defined());
          const Variable y = glu(inner, linear(inner, x[0], x[2]), x[3], kernels::Activation::silu);
          const Normed normed = norm(inner, y, {.residual = x[0], .gate = {}, .weight = {}, .bias = {}}, {});
          return std::vector<Variable>{normed.y, normed.r, y};
        });
    return std::vector<Variable>{outputs[0], linear(tape, outputs[1], in[2])};
  };
  EXPECT_GRADIENTS_MATCH(context, function, inputs);
}

// In use nothing is recorded and nothing dropped, as without recomputation.
TEST(RecomputeTest, InInferenceTheFunctionIsCalledAsItIs) {
  Context context(Device{}, {.threads = 1});
  Tape tape(context, Tape::Mode::inference);
  const Tensor x = Tensor::empty(context, {8}, DType::float64);
  write_values(context, x, std::vector<double>(8, 1.0));
  const size_t before = context.allocator().stats().allocated.current;
  {
    const std::vector<Variable> y = recompute(tape, {tape.constant(x)}, {}, [](Tape& inner, const auto& in) {
      return std::vector<Variable>{
          activation(inner, dropout(inner, in[0], {.p = 0.5, .seed = 1}), kernels::Activation::relu)};
    });
    EXPECT_EQ(read_values(context, y[0].value), std::vector<double>(8, 1.0));
    EXPECT_FALSE(y[0].requires_grad());
  }
  EXPECT_EQ(context.allocator().stats().allocated.current, before) << "nothing was kept";
}

TEST(RecomputeTest, WithConstantsAloneThereIsNothingToDifferentiate) {
  Context context(Device{}, {.threads = 1});
  Tape tape(context);
  Gradient gradient;
  const Tensor x = Tensor::empty(context, {2}, DType::float64);
  write_values(context, x, {1, 2});
  const std::vector<Variable> y = recompute(tape, {tape.constant(x)}, {}, [](Tape& inner, const auto& in) {
    return std::vector<Variable>{activation(inner, in[0], kernels::Activation::relu)};
  });
  EXPECT_FALSE(y[0].requires_grad());
  tape.backward(glu(tape, y[0], tape.leaf(x, gradient, "x"), kernels::Activation::none), x);
  EXPECT_EQ(read_values(context, gradient.tensor), (std::vector<double>{1, 4}));
}

// An output that is not used, the input and the parameter that only it depends on, an input that the function does not
// use, and an output that depends on no input.
TEST(RecomputeTest, WhatIsNotUsedHasNoGradient) {
  Context context(Device{}, {.threads = 1});
  const auto tensor = [&](const Shape& shape, const std::vector<double>& values) {
    Tensor result = Tensor::empty(context, shape, DType::float64);
    write_values(context, result, values);
    return result;
  };
  const auto gradients = [&](bool is_recomputed) {
    ParameterSet parameters;
    Parameter& weight = parameters.add("weight", {2, 2}, Initializer::constant(1.0), true);
    parameters.materialize(context, DType::float64, 1);
    std::array<Gradient, 3> leaves;
    Tape tape(context);
    std::vector<Variable> inputs;
    for (size_t i = 0; i < leaves.size(); ++i) {
      inputs.push_back(tape.leaf(tensor({1, 2}, {1.0 + static_cast<double>(i), 2.0}), leaves[i], "leaf"));
    }
    const RecomputedFunction function = [&](Tape& inner, const std::vector<Variable>& in) {
      const Variable used = activation(inner, in[0], kernels::Activation::silu);
      const Variable unused = linear(inner, in[1], ParameterSet::on(inner, weight));
      return std::vector<Variable>{used, unused, inner.constant(tensor({1, 2}, {5, 6}))};
    };
    const std::vector<Variable> outputs =
        is_recomputed ? recompute(tape, inputs, {&weight}, function) : function(tape, inputs);
    Variable y =
        glu(tape, glu(tape, outputs[0], outputs[2], kernels::Activation::none), inputs[2], kernels::Activation::none);
    tape.allow_unused_leaves();
    tape.backward(y, tensor({1, 2}, {1, 1}));
    EXPECT_FALSE(weight.gradient.written);
    EXPECT_FALSE(leaves[1].written);
    return std::array{read_values(context, leaves[0].tensor), read_values(context, leaves[2].tensor)};
  };
  EXPECT_EQ(gradients(true), gradients(false));
}

// Heads of (2, 3, 5, 4) seen as (2, 5, 3, 4): their gradients lie in memory as they do.
TEST(RecomputeTest, ALeafMayLieTransposedInMemory) {
  Context context(Device{}, {.threads = 1});
  Random random(1, RandomStream::test);
  const auto draw = [&](const Shape& shape) {
    const Tensor tensor = Tensor::empty(context, shape, DType::float64);
    fill_normal(context, tensor, random, 0.0, 1.0);
    return tensor;
  };
  const Tensor value = draw({2, 3, 5, 4}).transpose(1, 2), upstream = draw({2, 5, 3, 4});
  const RecomputedFunction attention = [](Tape& tape, const std::vector<Variable>& in) {
    return std::vector<Variable>{softmax_attention(tape, in[0], in[0], in[0], {}, {.causal = true})};
  };
  const auto gradient_of = [&](bool is_recomputed) {
    Gradient gradient;
    Tape tape(context);
    const Variable x = tape.leaf(value, gradient, "x");
    const Variable y = is_recomputed ? recompute(tape, {x}, {}, attention)[0] : attention(tape, {x})[0];
    tape.backward(y, upstream);
    return read_values(context, gradient.tensor);
  };
  EXPECT_EQ(gradient_of(true), gradient_of(false));
}

TEST(RecomputeTest, WhatAFunctionThrowsInBackwardReachesTheCaller) {
  Context context(Device{}, {.threads = 1});
  Gradient gradient;
  Tape tape(context);
  const Variable x = tape.leaf(Tensor::zeros(context, {2}, DType::float32), gradient, "x");
  const std::vector<Variable> y = recompute(tape, {x}, {}, [calls = 0](Tape&, const std::vector<Variable>& in) mutable {
    if (calls++ > 0) throw Error("no second time");
    return std::vector<Variable>{in[0]};
  });
  EXPECT_THROW(tape.backward(y[0], Tensor::zeros(context, {2}, DType::float32)), Error);
  EXPECT_FALSE(gradient.written);
}

}  // namespace
}  // namespace heddle::recompute_test
