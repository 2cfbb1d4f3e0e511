// The command line with operators of a user's own. What a whole program outside gets is tested in tests/architecture.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "core/io/atomic_file.h"
#include "layers/ops/glu.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

using ::testing::ContainsRegex;
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

// x x, of whose gradient one half is lost.
Variable half_square(Tape& tape, const Variable& x) { return glu(tape, x, tape.constant(x.value), Activation::none); }

OperatorFunction make_half_square(const ConfigNode&) {
  return [](Tape& tape, const NamedVariables& inputs) {
    return NamedVariables{{"y", half_square(tape, inputs.at("x"))}};
  };
}

std::vector<OperatorCase> small_cases() {
  OperatorCase only = large_cases()[0];
  only.large = false;
  return {only};
}

struct HalfSquare : Channel {
  Variable forward(Tape& tape, const Variable& x) const override { return half_square(tape, x); }
};
struct HalfSquareOptions : ChannelOptions {
  void describe(ConfigFields&, const ModelSize&) override {}
  std::unique_ptr<Channel> make(const ModuleBuilder&, const BlockPlace&) const override {
    return std::make_unique<HalfSquare>();
  }
};

struct Said {
  int code = 0;
  std::string out, err;
};
Said run(const std::vector<std::string>& words, const Registry& registry) {
  std::vector<const char*> arguments = {"heddle"};
  for (const std::string& word : words) arguments.push_back(word.c_str());
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Said said;
  said.code = cli::run_command_line(static_cast<int>(arguments.size()), const_cast<char**>(arguments.data()), registry);
  std::fflush(stdout);
  said.out = ::testing::internal::GetCapturedStdout();
  said.err = ::testing::internal::GetCapturedStderr();
  return said;
}

TEST(OwnRegistry, GradcheckOfAWrongGradientSaysSoAndExitsWithOne) {
  Registry registry = built_in_registry();
  registry.add({.name = "identity",
                .inputs = {{.name = "x"}},
                .outputs = {"y"},
                .make = make_half_square,
                .cases = small_cases});
  registry.add_channel("half_square", [] { return std::make_unique<HalfSquareOptions>(); });
  const Said of_operator = run({"gradcheck", "identity", "--device", "cpu"}, registry);
  EXPECT_EQ(of_operator.code, 1);
  EXPECT_THAT(of_operator.out, ContainsRegex("WRONG +x "));
  EXPECT_THAT(of_operator.out, HasSubstr("1 case, 1 wrong"));
  EXPECT_EQ(run({"gradcheck", "glu", "--device", "cpu"}, registry).code, 0);

  const testing::TempFolder folder;
  const std::string path = (folder / "tiny.yaml").string();
  for (const std::string type : {"half_square", "glu"}) {
    std::string config = testing::tiny_config();
    const std::string channel = "channel: {type: glu, hidden: 16, act: silu}";
    if (type == "half_square") config.replace(config.find(channel), channel.size(), "channel: {type: half_square}");
    write_file(path, config);
    const Said of_model = run({"gradcheck", path, "--device", "cpu"}, registry);
    EXPECT_EQ(of_model.code, type == "glu" ? 0 : 1) << type << of_model.err;
    EXPECT_EQ(of_model.out.find("WRONG") == std::string::npos, type == "glu") << type;
  }
}

TEST(OwnRegistry, GradcheckOfAnOperatorWithoutSmallCasesFails) {
  for (auto* cases : {no_cases, large_cases}) {
    Registry registry;
    registry.add(identity(cases));
    for (const std::vector<std::string>& words : std::vector<std::vector<std::string>>{
             {"gradcheck", "identity", "--device", "cpu"}, {"gradcheck", "--device", "cpu"}}) {
      const Said said = run(words, registry);
      EXPECT_THAT(said.err, HasSubstr("operator identity has no small case"));
      EXPECT_EQ(said.code, 1);
    }
  }
}

}  // namespace
}  // namespace heddle
