// Several processes, here threads, train as one does: the same curve for any number of them, the same bits in every
// repeat, and nothing is taken that one of them could not take.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/distributed/unconnected.h"
#include "core/tensor/transfer.h"
#include "tests/distributed/threads.h"
#include "tests/trainers/test_config.h"
#include "trainers/evaluate.h"
#include "trainers/schedule.h"
#include "trainers/step_memory.h"
#include "trainers/train_step.h"

namespace heddle::parallel_test {
namespace {

using ::testing::HasSubstr;
using testing::run_together;
using testing::tiny_train_config;

// What a training gave. `weights` are what the layers compute with.
struct Trained {
  std::vector<double> losses, norms, weights;
  double validation = 0.0;
};

std::vector<Batch> parts_of_step(const Dataset& data, const TrainConfig& config, int64_t step, int rank,
                                 int processes) {
  std::vector<Batch> parts;
  for (int64_t i = 0; i < config.trainer.accumulate; ++i) {
    const int64_t batch = (step - 1) * config.trainer.accumulate + i;
    parts.push_back(data.training_part(batch * config.trainer.batch_size, rank, processes));
  }
  return parts;
}

// By parameter: how long the buffers are depends on the number of processes.
std::vector<double> weights(Context& context, TrainStep& train_step) {
  std::vector<double> all;
  for (const Parameter& parameter : train_step.model().parameters().all()) {
    const std::vector<double> values = read_values(context, parameter.value);
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

Trained train_one(const TrainConfig& config, int64_t steps, Communicator* communicator) {
  Context context(Device{}, {.threads = 1});
  Processes processes(communicator);
  TrainStep train_step(context, config, &processes);
  const auto data = make_dataset(dataset_options(config));
  Trained trained;
  for (int64_t step = 1; step <= steps; ++step) {
    const StepResult result = train_step.step(parts_of_step(*data, config, step, processes.rank(), processes.count()),
                                              step, learning_rate(config, step));
    trained.losses.push_back(result.loss);
    trained.norms.push_back(result.gradient_norm);
  }
  trained.validation = with_averaged_weights(train_step.average(), [&] {
    const double loss = evaluate(context, train_step.model(), *data, processes).loss;
    trained.weights = weights(context, train_step);
    return loss;
  });
  return trained;
}

// All processes must have come to the same.
Trained train_together(const TrainConfig& config, int64_t steps, int count) {
  std::vector<Trained> all(static_cast<size_t>(count));
  const std::vector<std::string> errors = run_together(count, [&](Communicator& communicator) {
    all[static_cast<size_t>(communicator.rank())] = train_one(config, steps, &communicator);
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
  for (const Trained& one : all) {
    EXPECT_EQ(one.losses, all[0].losses);
    EXPECT_EQ(one.norms, all[0].norms);
    EXPECT_EQ(one.weights, all[0].weights);
    EXPECT_EQ(one.validation, all[0].validation);
  }
  return all[0];
}

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double largest = 0.0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    largest = std::max(largest, std::abs(a[i] - b[i]) / std::max(1.0, std::abs(b[i])));
  }
  return largest;
}

struct Case {
  std::string name;
  std::vector<std::string> settings;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> cases = {
      {"AsItIs", {}},
      {"NotSharded", {"trainer.parallel={shard_optimizer: false}"}},
      {"Accumulate", {"trainer.accumulate=3"}},
      {"Average", {"trainer.ema=0.9"}},
      {"AverageNotSharded", {"trainer.ema=0.9", "trainer.parallel={shard_optimizer: false}"}},
      {"Dropout", {"model.dropout=0.3"}},
      {"DropoutRecomputed", {"model.dropout=0.3", "model.recompute=block", "trainer.sequence_length=15"}},
      {"TiedAndNorms", {"model.tie_embeddings=true", "model.norm={type: layer_norm}"}},
      {"Lion", {"optimizer={type: lion, lr: 1.0e-3}"}},
      {"Sgd", {"optimizer={type: sgd, lr: 1.0e-3, momentum: 0.9}"}},
      {"Muon", {"optimizer={type: muon, lr: 3.0e-3}"}},
      {"MuonAverage", {"optimizer={type: muon, lr: 3.0e-3}", "trainer.ema=0.9"}},
      {"Recall", {"data={type: mqar, num_pairs: 2, num_queries: 2}", "model.vocab_size=16"}},
      {"LossChunk", {"model.loss_chunk=5"}},
  };
  return cases;
}

class ParallelThreaded : public ::testing::TestWithParam<Case> {
 protected:
  TrainConfig config(const std::string& dtype) const {
    std::vector<std::string> settings = {"trainer.batch_size=12", "trainer.dtype=" + dtype};
    settings.insert(settings.end(), GetParam().settings.begin(), GetParam().settings.end());
    return tiny_train_config(settings);
  }
};

// In float64, where rounding is too small to grow into something else in so few steps.
TEST_P(ParallelThreaded, TheCurveDoesNotDependOnTheNumberOfProcesses) {
  const TrainConfig config = this->config("float64");
  const Trained alone = train_one(config, 12, nullptr);
  for (const int count : {2, 3}) {
    const Trained together = train_together(config, 12, count);
    EXPECT_LE(difference(together.losses, alone.losses), 1e-9) << count;
    EXPECT_LE(difference(together.norms, alone.norms), 1e-8) << count;
    EXPECT_LE(difference({together.validation}, {alone.validation}), 1e-9) << count;
    EXPECT_LE(difference(together.weights, alone.weights), 1e-8) << count;
  }
}

TEST_P(ParallelThreaded, ARepeatHasTheSameBits) {
  const TrainConfig config = this->config("float32");
  const Trained first = train_together(config, 4, 3), second = train_together(config, 4, 3);
  EXPECT_EQ(first.losses, second.losses);
  EXPECT_EQ(first.weights, second.weights);
}

// In 16 bits the masters of other processes are out of date, and the compute copies are not.
TEST_P(ParallelThreaded, LowPrecision) {
  const TrainConfig config = this->config("bfloat16");
  const Trained alone = train_one(config, 6, nullptr), together = train_together(config, 6, 2);
  EXPECT_LE(difference(together.losses, alone.losses), 0.02);
}

INSTANTIATE_TEST_SUITE_P(Cases, ParallelThreaded, ::testing::ValuesIn(cases()),
                         [](const ::testing::TestParamInfo<Case>& info) { return info.param.name; });

// A model of this kind is well-conditioned: rounding does not grow from step to step.
const std::vector<std::string>& well_conditioned() {
  static const std::vector<std::string> settings = {"model.norm={type: rms_norm}",
                                                    "model.mixer={type: softmax_attention, heads: 2}",
                                                    "trainer.steps=100", "trainer.batch_size=6"};
  return settings;
}

TEST(ParallelStepThreaded, AHundredSteps) {
  const TrainConfig config = tiny_train_config(well_conditioned());
  const Trained alone = train_one(config, 100, nullptr);
  for (const int count : {2, 3}) EXPECT_LE(difference(train_together(config, 100, count).losses, alone.losses), 1e-5);
}

TEST(ParallelStepThreaded, MoreProcessesThanTheModelHasParts) {
  for (const char* type : {"adamw", "muon"}) {
    const TrainConfig config = tiny_train_config({"model.layers=1", "trainer.batch_size=8", "trainer.dtype=float64",
                                                  std::string("optimizer={type: ") + type + "}"});
    const Trained alone = train_one(config, 5, nullptr), together = train_together(config, 5, 8);
    EXPECT_LE(difference(together.losses, alone.losses), 1e-11) << type;
    EXPECT_LE(difference(together.weights, alone.weights), 1e-10) << type;
  }
}

// The mean is over the targets that count in all parts, whichever part they are in; a part may have none.
TEST(ParallelStepThreaded, TargetsThatDoNotCount) {
  const TrainConfig config = tiny_train_config({"trainer.dtype=float64", "trainer.batch_size=4"});
  const auto data = make_dataset(dataset_options(config));
  const auto batch_of = [&](int64_t step) {
    Batch batch = data->training_batch(4 * step);
    for (int64_t i = 0; i < batch.length; ++i) {
      const bool counts = step == 0 ? i % 3 == 0 : i == 8;
      for (int64_t row = 0; row < 4; ++row) {
        const auto place = static_cast<size_t>(row * batch.length + i);
        if (!counts || (row == 1 && i > 4) || row >= 2 + step) batch.targets[place] = kIgnoredTarget;
        if (counts && row == 0) batch.targets[place] = 1;
      }
    }
    return batch;
  };
  const auto part_of = [&](const Batch& whole, int rank, int count) {
    Batch part = whole;
    part.size = whole.size / count;
    part.first_row = rank * part.size;
    part.counted_by_all = counted_targets(whole);
    const auto cut = [&](std::vector<int32_t>& numbers) {
      const auto begin = numbers.begin() + part.first_row * whole.length;
      numbers = std::vector<int32_t>(begin, begin + part.size * whole.length);
    };
    cut(part.tokens);
    cut(part.targets);
    return part;
  };
  const auto train = [&](Communicator* communicator) {
    Context context(Device{}, {.threads = 1});
    Processes processes(communicator);
    TrainStep train_step(context, config, &processes);
    std::vector<double> found;
    for (int64_t step = 0; step < 2; ++step) {
      std::vector<Batch> parts = {part_of(batch_of(step), processes.rank(), processes.count())};
      found.push_back(train_step.step(std::move(parts), step + 1, 1e-2).loss);
    }
    const std::vector<double> after = weights(context, train_step);
    found.insert(found.end(), after.begin(), after.end());
    return found;
  };
  const std::vector<double> alone = train(nullptr);
  for (const int count : {2, 4}) {
    std::vector<double> together;
    const auto errors = run_together(count, [&](Communicator& communicator) {
      const std::vector<double> found = train(&communicator);
      if (communicator.rank() == 0) together = found;
    });
    EXPECT_THAT(errors, ::testing::Each(""));
    EXPECT_LE(difference(together, alone), 1e-12) << count;
  }
}

// A number that is not finite on one process leaves the step out on all of them.
TEST(ParallelStepThreaded, NotFiniteOnOneProcess) {
  for (const int64_t skip : {0, 1}) {
    const TrainConfig config = tiny_train_config({"trainer.skip_nonfinite=" + std::to_string(skip)});
    const auto errors = run_together(2, [&](Communicator& communicator) {
      Context context(Device{}, {.threads = 1});
      Processes processes(&communicator);
      TrainStep train_step(context, config, &processes);
      const auto data = make_dataset(dataset_options(config));
      ParameterSet& parameters = train_step.model().parameters();
      const auto take = [&](int64_t step) {
        return train_step.step(parts_of_step(*data, config, step, communicator.rank(), 2), step, 1e-3);
      };
      take(1);
      const std::vector<double> before = read_values(context, parameters.master());
      // A value of the model that no process gives to the others.
      const auto angles = std::find_if(parameters.buffers().begin(), parameters.buffers().end(),
                                       [](const Buffer& buffer) { return buffer.name.ends_with("theta"); });
      check(angles != parameters.buffers().end(), "no angles");
      const Tensor theta = angles->value;
      const std::vector<double> kept = read_values(context, theta);
      if (communicator.rank() == 1) {
        write_values(context, theta, std::vector<double>(kept.size(), std::numeric_limits<double>::quiet_NaN()));
      }
      std::string reason;
      try {
        const StepResult result = take(2);
        check(result.left_out, "step 2 was taken");
        reason = result.reason;
      } catch (const NonFinite& error) {
        check(processes.failed_together(), "not all know of it");
        reason = error.what();
      }
      check(reason.find("at step 2: on process 1, blocks.0.mixer") != std::string::npos, "{}", reason);
      if (skip == 0) return;
      if (communicator.rank() == 1) write_values(context, theta, kept);
      check(read_values(context, parameters.master()) == before, "the step that was left out changed a weight");
      check(!take(3).left_out, "step 3 was left out");
    });
    EXPECT_THAT(errors, ::testing::Each("")) << skip;
  }
}

TEST(ParallelStepThreaded, AnEvaluationIsThatOfOneProcess) {
  for (const char* batch_size : {"12", "5"}) {
    const TrainConfig config = tiny_train_config({std::string("trainer.batch_size=") + batch_size});
    const auto evaluate_one = [&](Communicator* communicator) {
      Context context(Device{}, {.threads = 1});
      LanguageModel model(config.model);
      model.parameters().materialize(context, DType::float32, 1);
      return evaluate(context, model, *make_dataset(dataset_options(config)), Processes(communicator));
    };
    const Evaluation alone = evaluate_one(nullptr);
    const auto errors = run_together(3, [&](Communicator& communicator) {
      const Evaluation found = evaluate_one(&communicator);
      check(std::abs(found.loss - alone.loss) <= 1e-12 * alone.loss, "loss {}, expected {}", found.loss, alone.loss);
      check(found.accuracy == alone.accuracy && found.targets == alone.targets && found.bytes == alone.bytes,
            "other counts");
    });
    EXPECT_THAT(errors, ::testing::Each(""));
  }
}

// What is counted on meta for one of several processes is what such a process takes.
TEST(ParallelStepThreaded, TheMemoryOfAProcess) {
  for (const Case& one : cases()) {
    SCOPED_TRACE(one.name);
    std::vector<std::string> settings = {"trainer.batch_size=12"};
    settings.insert(settings.end(), one.settings.begin(), one.settings.end());
    for (const char* dtype : {"float32", "bfloat16"}) {
      settings.push_back(std::string("trainer.dtype=") + dtype);
      const TrainConfig config = tiny_train_config(settings);
      const StepPeak counted = step_peak(config, 0, 3).value();
      std::vector<size_t> peaks(3);
      const auto errors = run_together(3, [&](Communicator& communicator) {
        Context context(Device{}, {.threads = 1});
        Processes processes(&communicator);
        TrainStep train_step(context, config, &processes);
        take_two_steps(train_step, config);
        peaks[static_cast<size_t>(communicator.rank())] = context.allocator().stats().allocated.peak;
      });
      EXPECT_THAT(errors, ::testing::Each(""));
      EXPECT_EQ(peaks[0], counted.allocated);
    }
  }
}

// One process neither takes nor does more than before there could be others.
TEST(ParallelStepThreaded, OneProcessIsAlone) {
  const TrainConfig config = tiny_train_config({"trainer.ema=0.9"});
  const std::unique_ptr<Communicator> communicator = make_pretended_communicator(0, 1);
  Context plain_context(Device{}, {.threads = 1}), context(Device{}, {.threads = 1});
  TrainStep plain(plain_context, config);
  Processes processes(communicator.get());
  TrainStep alone(context, config, &processes);
  EXPECT_EQ(alone.parallel(), nullptr);
  take_two_steps(plain, config);
  take_two_steps(alone, config);
  EXPECT_EQ(context.allocator().stats().allocations, plain_context.allocator().stats().allocations);
  EXPECT_EQ(context.allocator().stats().allocated.peak, plain_context.allocator().stats().allocated.peak);
}

TEST(ParallelStepThreaded, AProcessKeepsItsShareOfTheOptimizer) {
  const auto bytes = [](const std::vector<std::string>& settings, int processes) {
    Context context(Device{DeviceType::meta});
    const auto communicator = make_pretended_communicator(0, processes);
    Processes others(communicator.get());
    TrainStep train_step(context, tiny_train_config(settings), &others);
    return static_cast<double>(context.allocator().stats().by_category[int(MemoryCategory::optimizer)].current);
  };
  const std::vector<std::string> large = {"model.dim=64", "model.layers=6", "trainer.ema=0.9", "trainer.batch_size=8"};
  EXPECT_NEAR(bytes(large, 4) / bytes(large, 1), 0.25, 0.02);
  std::vector<std::string> whole = large;
  whole.push_back("trainer.parallel={shard_optimizer: false}");
  EXPECT_NEAR(bytes(whole, 4) / bytes(large, 1), 1.0, 0.01);
}

}  // namespace
}  // namespace heddle::parallel_test
