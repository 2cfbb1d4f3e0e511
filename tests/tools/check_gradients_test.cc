#include "tools/check_gradients.h"

#include <gtest/gtest.h>

#include <set>

#include "core/config/config_load.h"
#include "layers/registry.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

TEST(OperatorCasesTest, EveryOperatorHasOne) {
  std::set<std::string> with_cases;
  for (const OperatorCase& operator_case : operator_cases()) with_cases.insert(operator_case.layer);
  for (const OperatorEntry& entry : operators()) EXPECT_TRUE(with_cases.contains(entry.name)) << entry.name;
}

TEST(CheckGradientsTest, AllOperatorsInAllDtypes) {
  Context context(Device{}, {.threads = 1});  // small work: threads would wait for each other
  for (const OperatorCase& operator_case : operator_cases()) {
    for (DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
      const GradcheckReport report = check_operator_gradients(context, operator_case, dtype);
      EXPECT_TRUE(report.passed) << operator_case.layer << " " << operator_case.options << " " << name(dtype) << "\n"
                                 << report.to_string();
      EXPECT_FALSE(report.inputs.empty()) << operator_case.layer;
    }
  }
}

TEST(CheckGradientsTest, AllParametersOfAModelInAllDtypes) {
  Context context(Device{}, {.threads = 1});  // small work: threads would wait for each other
  const TrainConfig config = read_train_config(parse_config(testing::tiny_config()));
  for (DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    const GradcheckReport report = check_model_gradients(context, config, dtype);
    EXPECT_TRUE(report.passed) << name(dtype) << "\n" << report.to_string();
    EXPECT_GT(report.inputs.size(), 5u);
  }
}

}  // namespace
}  // namespace heddle
