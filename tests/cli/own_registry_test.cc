// The command line with operators of a user's own. What a whole program outside gets is tested in tests/architecture.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "cli/command_line.h"

namespace heddle {
namespace {

using ::testing::HasSubstr;

OperatorFunction make_identity(const ConfigNode&) {
  return [](Tape&, const NamedVariables& inputs) { return NamedVariables{{"y", inputs.at("x")}}; };
}

std::vector<OperatorCase> no_cases() { return {}; }

std::vector<OperatorCase> large_cases() {
  OperatorCase only;
  only.name = only.op = "identity";
  only.options = "{}";
  only.inputs = {{.name = "x", .shape = {2}}};
  only.large = true;
  return {only};
}

Operator identity(std::vector<OperatorCase> (*cases)()) {
  return {.name = "identity", .inputs = {{.name = "x"}}, .outputs = {"y"}, .make = make_identity, .cases = cases};
}

TEST(OwnRegistry, GradcheckOfAnOperatorWithoutSmallCasesFails) {
  for (auto* cases : {no_cases, large_cases}) {
    Registry registry;
    registry.add(identity(cases));
    for (const std::vector<const char*>& arguments : std::vector<std::vector<const char*>>{
             {"heddle", "gradcheck", "identity", "--device", "cpu"}, {"heddle", "gradcheck", "--device", "cpu"}}) {
      ::testing::internal::CaptureStderr();
      const int code =
          cli::run_command_line(static_cast<int>(arguments.size()), const_cast<char**>(arguments.data()), registry);
      EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("operator identity has no small case"));
      EXPECT_EQ(code, 1);
    }
  }
}

}  // namespace
}  // namespace heddle
