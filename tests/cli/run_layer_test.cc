// `heddle run-layer` and `heddle gradcheck` as programs: arguments, files, messages, exit codes. What they compute is
// tested in tests/trainers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "core/io/safetensors.h"
#include "core/runtime/context.h"
#include "tests/cli/process.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

using testing::Finished;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::run_heddle;

class RunLayerProgramTest : public ::testing::Test {
 protected:
  RunLayerProgramTest() {
    write("spec.yaml", "layer: rms_norm\noptions: {eps: 1.0e-3}\n");
    write_tensors("in", {"x", "weight", "d_y"});
  }

  std::string path(const std::string& name) const { return folder_ / name; }
  void write(const std::string& name, const std::string& text) const { std::ofstream(path(name)) << text; }
  void write_tensors(const std::string& file, const std::vector<std::string>& names) {
    std::vector<NamedTensor> tensors;
    for (const std::string& name : names) tensors.push_back({name, Tensor::zeros(context_, {8}, DType::float32)});
    write_safetensors(context_, path(file), tensors);
  }
  Finished run(const std::string& spec, const std::string& inputs, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = {"run-layer", path(spec),  "--inputs", path(inputs),
                                          "--outputs", path("out"), "--device", "cpu"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_heddle(arguments);
  }

  testing::TempFolder folder_;
  Context context_;
};

TEST_F(RunLayerProgramTest, WritesOutputsAndGradients) {
  const Finished plain = run("spec.yaml", "in");
  ASSERT_EQ(plain.code, 0) << plain.err;
  SafetensorsReader reader(path("out"));
  for (const std::string name : {"y", "d_x", "d_weight"}) EXPECT_EQ(reader.at(name).dtype, DType::float32) << name;
  EXPECT_EQ(reader.entries().size(), 3u);

  const Finished half = run("spec.yaml", "in", {"--dtype", "float16"});
  ASSERT_EQ(half.code, 0) << half.err;
  reader = SafetensorsReader(path("out"));
  for (const SafetensorsEntry& entry : reader.entries()) {
    EXPECT_EQ(entry.dtype, DType::float16) << entry.name;
  }
}

TEST_F(RunLayerProgramTest, ABadSpecOrUsageIsTwo) {
  write("bad.yaml", "layer: rms_nrom\n");
  Finished finished = run("bad.yaml", "in");
  EXPECT_EQ(finished.code, 2);
  EXPECT_THAT(finished.err, HasSubstr("error: " + path("bad.yaml") + ":1:8: "));
  EXPECT_THAT(finished.err, HasSubstr("did you mean 'rms_norm'?"));
  write("bad.yaml", "layer: rms_norm\noptions: {epz: 1}\n");
  finished = run("bad.yaml", "in");
  EXPECT_EQ(finished.code, 2);
  EXPECT_THAT(finished.err, HasSubstr("error: " + path("bad.yaml") + ":2:11: "));
  write("bad.yaml", "layer: rms_norm\noptions: {dim: 5}\n");
  finished = run("bad.yaml", "in");
  EXPECT_EQ(finished.code, 2);
  EXPECT_THAT(finished.err, ::testing::StartsWith("error: " + path("bad.yaml") + ":2:16: options.dim: found 5"));
  EXPECT_EQ(run("none.yaml", "in").code, 2);
  EXPECT_EQ(run("spec.yaml", "in", {"--dtype", "int32"}).code, 2);
  EXPECT_EQ(run_heddle({"run-layer", path("spec.yaml")}).code, 2);
}

TEST_F(RunLayerProgramTest, TensorsThatDoNotFitAreOne) {
  write_tensors("unknown", {"x", "wieght"});
  const Finished finished = run("spec.yaml", "unknown");
  EXPECT_EQ(finished.code, 1);
  EXPECT_THAT(finished.err,
              HasSubstr("error: " + path("unknown") + ": unknown tensor 'wieght'; did you mean 'weight'?"));
  EXPECT_EQ(run("spec.yaml", "missing").code, 1);
  EXPECT_FALSE(std::filesystem::exists(path("out")));
}

// A case that fails is reported, and those after it run all the same.
TEST_F(RunLayerProgramTest, RunsSeveralCasesInOneProcess) {
  write("bad.yaml", "layer: rms_nrom\n");
  write_tensors("unknown", {"x", "wieght"});
  const auto run_list = [&](const std::vector<std::string>& specs, const std::vector<std::string>& inputs) {
    std::vector<std::string> arguments{"run-layer"};
    for (const std::string& spec : specs) arguments.push_back(path(spec));
    arguments.emplace_back("--inputs");
    for (const std::string& file : inputs) arguments.push_back(path(file));
    arguments.emplace_back("--outputs");
    for (size_t i = 0; i < specs.size(); ++i) arguments.push_back(path("out" + std::to_string(i)));
    return run_heddle(arguments);
  };
  const Finished finished =
      run_list({"spec.yaml", "bad.yaml", "spec.yaml", "spec.yaml"}, {"in", "in", "unknown", "in"});
  EXPECT_EQ(finished.code, 2);
  EXPECT_THAT(finished.err, HasSubstr("error: " + path("bad.yaml") + ":1:8: "));
  EXPECT_THAT(finished.err, HasSubstr("error: " + path("unknown") + ": unknown tensor 'wieght'"));
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(std::filesystem::exists(path("out" + std::to_string(i))), i == 0 || i == 3) << i;
  }
  EXPECT_EQ(run_list({"spec.yaml", "spec.yaml"}, {"in", "unknown"}).code, 1);
  const Finished uneven = run_list({"spec.yaml", "spec.yaml"}, {"in"});
  EXPECT_EQ(uneven.code, 2);
  EXPECT_THAT(uneven.err, HasSubstr("--inputs: found 1 file for 2 specs, expected one each"));
}

TEST_F(RunLayerProgramTest, GradcheckOfAnOperator) {
  for (const std::string dtype : {"float64", "bfloat16"}) {
    const Finished finished = run_heddle({"gradcheck", "rms_norm", "--device", "cpu", "--dtype", dtype});
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_THAT(finished.out, HasSubstr("rms_norm {"));
    EXPECT_THAT(finished.out, HasSubstr(" 0 wrong"));
    EXPECT_THAT(finished.out, Not(HasSubstr("layer_norm")));
  }
  const Finished unknown = run_heddle({"gradcheck", "rms_nrom"});
  EXPECT_EQ(unknown.code, 2);
  EXPECT_THAT(unknown.err, HasSubstr("did you mean 'rms_norm'?"));
  EXPECT_THAT(run_heddle({"gradcheck", "lightning"}).err,
              HasSubstr("mixers and channel layers are checked by the config"));
}

TEST_F(RunLayerProgramTest, GradcheckListsTheCasesOfAnOperatorOrOfAll) {
  const Finished one = run_heddle({"gradcheck", "embedding", "--list"});
  EXPECT_EQ(one.code, 0) << one.err;
  EXPECT_THAT(one.out, HasSubstr("\"operator\": \"embedding\""));
  EXPECT_THAT(one.out, Not(HasSubstr("rms_norm")));
  EXPECT_THAT(run_heddle({"gradcheck", "--list"}).out, HasSubstr("\"operator\": \"rms_norm\""));
  write("tiny.yaml", testing::tiny_config());
  EXPECT_THAT(run_heddle({"gradcheck", path("tiny.yaml"), "--list"}).err, HasSubstr("tiny.yaml' is no operator"));
  for (const std::string option : {"--options", "--shape", "--set", "--dtype", "--device", "--threads"}) {
    const std::string given = option == "--shape"    ? "x=1"
                              : option == "--dtype"  ? "float32"
                              : option == "--device" ? "cpu"
                                                     : "1";
    const Finished refused = run_heddle({"gradcheck", "embedding", "--list", option, given});
    EXPECT_EQ(refused.code, 2) << option;
    EXPECT_THAT(refused.err, HasSubstr(option + " excludes --list"));
  }
}

// One, unless more are asked for; 0 means all, as everywhere.
TEST_F(RunLayerProgramTest, GradcheckTakesOneThread) {
  EXPECT_THAT(run_heddle({"gradcheck", "--help"}).out, HasSubstr("--threads N [1]"));
  EXPECT_THAT(run_heddle({"eval", "--help"}).out, HasSubstr("--threads N [0]"));
}

TEST_F(RunLayerProgramTest, GradcheckOfACaseOfOnesOwn) {
  const auto run = [](std::vector<std::string> more) {
    std::vector<std::string> arguments = {"gradcheck"};
    for (std::string& argument : more) arguments.push_back(std::move(argument));
    return run_heddle(arguments);
  };
  for (const char* padding : {"{padding_idx: 0}", "{padding_idx: 4}"}) {
    const Finished finished =
        run({"embedding", "--options", padding, "--shape", "tokens=2x3", "--shape", "weight=5x4", "--device", "cpu"});
    EXPECT_EQ(finished.code, 0) << finished.out << finished.err;
  }
  const Finished targets = run({"linear_cross_entropy", "--options", "{ignore_index: 0}", "--shape", "x=7x4", "--shape",
                                "weight=5x4", "--shape", "targets=7", "--device", "cpu"});
  EXPECT_EQ(targets.code, 0) << targets.out << targets.err;
  const Finished empty = run({"linear", "--shape", "x=0x8", "--shape", "weight=4x8", "--device", "cpu"});
  EXPECT_EQ(empty.code, 0) << empty.err;
  EXPECT_THAT(empty.out, HasSubstr("no elements"));
}

TEST_F(RunLayerProgramTest, GradcheckRefusesWhatTheOperatorDoes) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> refused = {
      {{"rms_norm", "--shape", "x=2x8", "--shape", "weight=7"}, "weight has shape (7), expected (8)"},
      {{"softmax_attention", "--shape", "q=1x4x4x8", "--shape", "k=1x4x3x8", "--shape", "v=1x4x3x8"}, "k has 3 heads"},
      {{"softmax_attention", "--options", "{causal: false, window: 2}", "--shape", "q=1x4x4x8", "--shape", "k=1x4x4x8",
        "--shape", "v=1x4x4x8"},
       "window is 2, expected 0: causal is false"},
      {{"rms_norm", "--shape", "x=2x8", "--shape", "x=3x8"}, "found two shapes for input x, (2, 8) and (3, 8)"},
      {{"rms_norm", "--shape", "x=0x8"}, "nothing to check"},
      {{"embedding", "--options", "{padding_idx: 0}", "--shape", "tokens=2x3", "--shape", "weight=1x4"},
       "none to draw"},
  };
  for (const auto& [arguments, message] : refused) {
    std::vector<std::string> all = {"gradcheck"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    const Finished finished = run_heddle(all);
    EXPECT_EQ(finished.code, 2) << message;
    EXPECT_THAT(finished.err, HasSubstr(message));
    EXPECT_EQ(finished.out, "");
  }
}

TEST_F(RunLayerProgramTest, GradcheckOfAConfig) {
  write("tiny.yaml", testing::tiny_config());
  const Finished finished = run_heddle({"gradcheck", path("tiny.yaml"), "--device", "cpu"});
  EXPECT_EQ(finished.code, 0) << finished.out << finished.err;
  EXPECT_THAT(finished.out, HasSubstr("blocks.0.mixer.qkv.weight"));
  EXPECT_THAT(finished.out, Not(HasSubstr("WRONG")));
  write("config.yaml", testing::tiny_config());  // as in a run folder
  EXPECT_THAT(run_heddle({"gradcheck", path(""), "--device", "cpu"}).out, HasSubstr("config.yaml  cpu"));
  write("bad.yaml", "model: {vocab: 3}\n");
  EXPECT_EQ(run_heddle({"gradcheck", path("bad.yaml")}).code, 2);
}

}  // namespace
}  // namespace heddle
