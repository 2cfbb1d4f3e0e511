#include "tools/check_gradients.h"

#include <gtest/gtest.h>

#include "core/config/config_load.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

// Every tenth small case of each operator: tests/layers takes all of them in float64.
TEST(CheckGradientsTest, OperatorsInAllDtypes) {
  Context context(Device{}, {.threads = 1});  // small work: threads would wait for each other
  for (const Operator& op : built_in_registry().operators()) {
    int small = 0;
    for (const OperatorCase& operator_case : op.cases()) {
      if (operator_case.large || small++ % 10 != 0) continue;
      for (DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
        const GradcheckReport report = check_operator_gradients(context, op, operator_case, dtype);
        EXPECT_TRUE(report.passed()) << operator_case.name << " " << name(dtype) << "\n" << report.to_string();
        EXPECT_FALSE(report.inputs.empty()) << operator_case.name;
      }
    }
    EXPECT_GT(small, 0) << op.name;
  }
}

TEST(CheckGradientsTest, AllParametersOfAModelInAllDtypes) {
  Context context(Device{}, {.threads = 1});  // small work: threads would wait for each other
  const TrainConfig config = read_train_config(parse_config(testing::tiny_config()));
  for (DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    const GradcheckReport report = check_model_gradients(context, config, dtype);
    EXPECT_TRUE(report.passed()) << name(dtype) << "\n" << report.to_string();
    EXPECT_GT(report.inputs.size(), 5u);
  }
}

// The guard of the normalizer divides by 1e-6, and the largest number of float16 is 65504.
TEST(CheckGradientsTest, ValuesBeyondTheDtypeMakeNoGradientWrong) {
  Context context(Device{}, {.threads = 1});
  const TrainConfig config = read_train_config(parse_config(R"(
data: {type: copy, length: 3}
model:
  vocab_size: 300
  dim: 8
  layers: 1
  norm: {type: rms_norm}
  mixer: {type: linear_attention, heads: 2, kv_heads: 1, act: relu, normalizer: true, lrpe: {type: lrpe_rotate}}
  channel: {type: ffn, hidden: 8, act: silu}
trainer: {steps: 2, sequence_length: 9}
)"));
  const GradcheckReport report = check_model_gradients(context, config, DType::float16);
  EXPECT_EQ(report.verdict(), Verdict::undecided) << report.to_string();
  EXPECT_TRUE(check_model_gradients(context, config, DType::float64).passed());
}

TEST(CheckGradientsTest, AllParametersOfTheModelsOfAllConfigs) {
  Context context(Device{}, {.threads = 1});
  for (const auto& path : testing::model_configs()) {
    const TrainConfig config = testing::small_model_config(path);
    for (DType dtype : {DType::float64, DType::float32}) {
      const GradcheckReport report = check_model_gradients(context, config, dtype);
      EXPECT_TRUE(report.passed()) << path << " in " << name(dtype) << "\n" << report.to_string();
    }
  }
}

}  // namespace
}  // namespace heddle
