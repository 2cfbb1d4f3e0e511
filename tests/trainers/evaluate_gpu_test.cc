// An evaluation on a GPU: the same as on the CPU but for rounding, however a step is cut into batches.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/trainers/test_config.h"
#include "trainers/evaluate.h"
#include "trainers/train_step.h"

namespace heddle::evaluate_gpu_test {
namespace {

class EvaluateGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (resolve_device("auto").type != DeviceType::cuda) GTEST_SKIP() << "no GPU";
  }
};

Evaluation evaluate_on(DeviceType device, int batch_size, int accumulate) {
  const TrainConfig config =
      testing::tiny_train_config({"trainer.batch_size=" + std::to_string(batch_size),
                                  "trainer.accumulate=" + std::to_string(accumulate), "trainer.eval_batches=3"});
  Context context(Device{device});
  TrainStep train_step(context, config);
  return evaluate(context, train_step.model(), *make_dataset(dataset_options(config)));
}

TEST_F(EvaluateGpu, TheLossIsThatOfTheCpuHoweverAStepIsCut) {
  const Evaluation cpu = evaluate_on(DeviceType::cpu, 4, 1);
  ASSERT_EQ(cpu.targets, 3 * 4 * 6);
  for (const int batch_size : {1, 2, 4}) {
    const Evaluation gpu = evaluate_on(DeviceType::cuda, batch_size, 4 / batch_size);
    EXPECT_EQ(gpu.targets, cpu.targets);
    EXPECT_NEAR(gpu.loss, cpu.loss, 1e-5 * cpu.loss) << batch_size;
    EXPECT_NEAR(gpu.accuracy, cpu.accuracy, 1.5 / static_cast<double>(cpu.targets)) << batch_size;
  }
}

}  // namespace
}  // namespace heddle::evaluate_gpu_test
