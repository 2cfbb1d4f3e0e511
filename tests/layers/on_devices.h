// A suite whose tests run on the CPU and, where there is one, on a GPU, from one test body:
//   class SoftmaxDigits : public OnDevices {};
//   TEST_P(SoftmaxDigits, KeepsItsDigits) { ... context() ... }
//   HEDDLE_ON_DEVICES(SoftmaxDigits);
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "core/runtime/context.h"
#include "core/runtime/error.h"
#include "layers/registry.h"

namespace heddle::test {

class OnDevices : public ::testing::TestWithParam<DeviceType> {
 protected:
  void SetUp() override {
    try {
      context_.emplace(Device{GetParam()});
    } catch (const Error& error) {
      GTEST_SKIP() << error.what();
    }
  }
  Context& context() { return *context_; }
  bool on_gpu() const { return GetParam() == DeviceType::cuda; }

 private:
  std::optional<Context> context_;
};

}  // namespace heddle::test

// Names as Cpu/SUITE.TEST/0 and Gpu/SUITE.TEST/0: ctest gives the latter the label `gpu`.
#define HEDDLE_ON_DEVICES(suite)                                                      \
  INSTANTIATE_TEST_SUITE_P(Cpu, suite, ::testing::Values(::heddle::DeviceType::cpu)); \
  INSTANTIATE_TEST_SUITE_P(Gpu, suite, ::testing::Values(::heddle::DeviceType::cuda))

// A suite with a test for each operator: All/SUITE.TEST/OPERATOR.
#define HEDDLE_FOR_OPERATORS(suite)                                                                         \
  INSTANTIATE_TEST_SUITE_P(All, suite, ::testing::ValuesIn(::heddle::built_in_registry().operator_names()), \
                           [](const ::testing::TestParamInfo<std::string>& info) { return info.param; })
