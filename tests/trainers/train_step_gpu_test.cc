// Training on a GPU: the same as on the CPU but for rounding, with or without the graph, in the memory that meta says.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/trainers/test_config.h"
#include "trainers/train_step.h"

namespace heddle::train_step_gpu_test {
namespace {

class TrainStepGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (resolve_device("auto").type != DeviceType::cuda) GTEST_SKIP() << "no GPU";
  }
};

struct Trained {
  std::vector<double> losses, weights, average;
  MemoryStats memory;
};

// The learning rate of a warm-up. At its full height from the first step on, AdamW would make whole steps of either
// sign of gradients that are nothing but rounding.
double learning_rate(int64_t step) { return 3e-5 * static_cast<double>(step); }

Trained train(Device device, const TrainConfig& config, int64_t steps) {
  Context context(device);
  TrainStep train_step(context, config);
  const auto data = make_dataset(dataset_options(config));
  Trained result;
  for (int64_t step = 1; step <= steps; ++step) {
    result.losses.push_back(
        train_step.step(testing::batches_of_step(*data, config, step), step, learning_rate(step)).loss);
  }
  if (!context.is_meta()) result.weights = read_values(context, train_step.model().parameters().master());
  if (!context.is_meta() && train_step.average() != nullptr) {
    result.average = read_values(context, train_step.average()->flat());
  }
  result.memory = context.allocator().stats();
  return result;
}

TEST_F(TrainStepGpu, LossesAreThoseOfTheCpu) {
  // With dropout each step has masks of its own, also where it is the replay of a graph.
  for (const char* set : {"model.dropout=0", "model.dropout=0.3", "model.channel={type: ffn, hidden: 24, act: gelu}"}) {
    const TrainConfig config = testing::tiny_train_config({set, "trainer.accumulate=2"});
    const Trained cpu = train({DeviceType::cpu}, config, 10), gpu = train({DeviceType::cuda}, config, 10);
    for (size_t i = 0; i < cpu.losses.size(); ++i) {
      EXPECT_NEAR(gpu.losses[i], cpu.losses[i], 1e-4 * cpu.losses[i]) << set << ", step " << i;
    }
  }
}

// In a graph and without one, the profile has the kernels of the step, and the step computes the same.
TEST_F(TrainStepGpu, AProfileChangesNoBit) {
  for (const char* graph : {"auto", "off"}) {
    const TrainConfig config = testing::tiny_train_config({std::string("trainer.cuda_graph=") + graph});
    const Trained plain = train({DeviceType::cuda}, config, 6);
    Context context({DeviceType::cuda});
    TrainStep train_step(context, config);
    StepProfiler profiler(context);
    const auto data = make_dataset(dataset_options(config));
    for (int64_t step = 1; step <= 6; ++step) {
      if (step == 3) train_step.set_profiler(&profiler);
      if (step == 5) train_step.set_profiler(nullptr);
      train_step.step(testing::batches_of_step(*data, config, step), step, learning_rate(step));
      if (step != 3 && step != 4) continue;
      EXPECT_EQ(train_step.is_captured(), graph == std::string("auto"));
      const ProfiledStep result = profiler.result(step);
      ASSERT_GT(result.kernels.size(), 50u);
      double before = 0.0;
      for (const ProfiledKernel& kernel : result.kernels) {
        EXPECT_GE(kernel.begin, before);
        EXPECT_GT(kernel.end, kernel.begin);
        before = kernel.end;
      }
      EXPECT_GE(result.milliseconds, before);
    }
    EXPECT_EQ(read_values(context, train_step.model().parameters().master()), plain.weights);
  }
}

TEST_F(TrainStepGpu, TheGraphChangesNoBit) {
  for (const std::string more : {"model.dropout=0", "model.dropout=0.3", "model.recompute=block"}) {
    for (const char* dtype : {"float32", "bfloat16", "float16"}) {
      const auto set = [&](const char* graph) {
        return testing::tiny_train_config({std::string("trainer.dtype=") + dtype, more, "trainer.accumulate=2",
                                           std::string("trainer.cuda_graph=") + graph});
      };
      const Trained a = train({DeviceType::cuda}, set("auto"), 8), b = train({DeviceType::cuda}, set("off"), 8);
      EXPECT_EQ(a.losses, b.losses) << dtype << " " << more;
      EXPECT_EQ(a.weights, b.weights) << dtype << " " << more;
    }
  }
}

TEST_F(TrainStepGpu, AModelWithDropoutIsCaptured) {
  const TrainConfig config = testing::tiny_train_config({"model.dropout=0.3", "model.recompute=block"});
  Context context({DeviceType::cuda});
  TrainStep train_step(context, config);
  const auto data = make_dataset(dataset_options(config));
  for (int64_t step = 1; step <= 3; ++step) {
    train_step.step(testing::batches_of_step(*data, config, step), step, learning_rate(step));
  }
  EXPECT_TRUE(train_step.is_captured());
}

TEST_F(TrainStepGpu, TheGraphChangesNoBitOfAnyOptimizer) {
  for (const char* optimizer : {"{type: lion}", "{type: sgd, nesterov: true}",
                                "{type: muon, groups: [{pattern: "
                                "'*.mixer.*', lr_scale: 0.5}]}"}) {
    for (const char* dtype : {"float32", "bfloat16"}) {
      const auto set = [&](const char* graph) {
        return testing::tiny_train_config({std::string("optimizer=") + optimizer, std::string("trainer.dtype=") + dtype,
                                           "trainer.ema=0.9", std::string("trainer.cuda_graph=") + graph});
      };
      const Trained a = train({DeviceType::cuda}, set("auto"), 8), b = train({DeviceType::cuda}, set("off"), 8);
      EXPECT_EQ(a.losses, b.losses) << optimizer << ", " << dtype;
      EXPECT_EQ(a.weights, b.weights) << optimizer << ", " << dtype;
      EXPECT_EQ(a.average, b.average) << optimizer << ", " << dtype;
    }
  }
}

TEST_F(TrainStepGpu, PeakBytesAreThoseOfMeta) {
  for (const char* graph : {"auto", "off"}) {
    const TrainConfig config =
        testing::tiny_train_config({"trainer.dtype=bfloat16", std::string("trainer.cuda_graph=") + graph});
    const MemoryStats meta = train({DeviceType::meta}, config, 3).memory;
    const MemoryStats gpu = train({DeviceType::cuda}, config, 3).memory;
    EXPECT_EQ(gpu.allocated.peak, meta.allocated.peak) << graph;
    EXPECT_EQ(gpu.allocated.current, meta.allocated.current) << graph;
    for (int i = 0; i < kMemoryCategories; ++i) EXPECT_EQ(gpu.by_category[i].peak, meta.by_category[i].peak) << graph;
  }
}

}  // namespace
}  // namespace heddle::train_step_gpu_test
