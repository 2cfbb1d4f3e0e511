// No command replaces a file that it reads, nor writes two outputs into one file.
#include "cli/output_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/io/safetensors.h"
#include "core/runtime/error.h"
#include "tests/cli/trained_test.h"
#include "trainers/data/sentencepiece.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::Finished;
using ::testing::HasSubstr;
using testing::run_heddle;
using testing::TempFolder;

std::string refusal_of(const cli::NamedFiles& outputs, const cli::NamedFiles& inputs) {
  try {
    cli::check_distinct_files(outputs, inputs);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

TEST(OutputFileTest, FilesAreComparedByWhatTheyAre) {
  const TempFolder folder;
  const auto path = [&](const char* name) { return folder / name; };
  write_file(path("in"), "text");
  fs::create_symlink("in", path("link"));
  fs::create_hard_link(path("in"), path("hard"));
  fs::create_directory_symlink(folder.path(), path("folder"));
  for (const char* name : {"in", "./in", "link", "hard", "folder/in", "folder/hard"}) {
    EXPECT_EQ(refusal_of({{"--out", path(name)}}, {{"the text", path("in")}}),
              "--out: " + path(name).string() + " is the text, which is read; expected another file");
  }
  // What is not there yet.
  fs::create_symlink("new", path("to_new"));
  for (const char* name : {"new", "./new", "folder/new", "to_new"}) {
    EXPECT_THAT(refusal_of({{"--json", path("new")}, {"--csv", path(name)}}, {}),
                HasSubstr(std::string(name) + " is written by --json, too; expected another file"));
  }
  EXPECT_EQ(refusal_of({{"--json", path("new")}, {"--csv", path("other")}, {"--plot", ""}}, {{"the text", ""}}), "");
}

// Many outputs are held against the same files, and may be each other where they are only looked at.
TEST(OutputFileTest, ATableTakesWhatItIsTold) {
  const TempFolder folder;
  write_file(folder / "in", "text");
  cli::FileTable table({{"the text", folder / "in"}});
  EXPECT_THROW(table.check({"--out", folder / "in"}), UsageError);
  for (int i = 0; i < 2; ++i) table.check({"the run folder", folder / "new"});
  table.take({"--json", folder / "new"});
  EXPECT_THROW(table.check({"--csv", folder / "new"}), UsageError);
  EXPECT_THROW(table.take({"--csv", folder / "new"}), UsageError);
  table.take({"--csv", ""});
}

// What is written through replaces nothing, so it may be given twice.
TEST(OutputFileTest, DevicesMayBeGivenTwice) {
  EXPECT_EQ(refusal_of({{"--json", "/dev/null"}, {"--csv", "/dev/null"}}, {{"the text", "/dev/null"}}), "");
  for (const char* name : {"/dev/null", "/dev/stdout", "/dev/fd/1"}) {
    EXPECT_EQ(refusal_of({{"--json", name}}, {{"the text", name}}), "") << name;
  }
}

// Two outputs would be mixed there.
TEST(OutputFileTest, StdoutIsGivenOnce) {
  for (const char* name : {"/dev/stdout", "/dev/fd/1"}) {
    EXPECT_EQ(refusal_of({{"--json", name}, {"--csv", "/dev/null"}, {"--plot", "/dev/stdout"}}, {}),
              "--plot: stdout is written by --json, too; expected a file")
        << name;
  }
  const std::string config = HEDDLE_SOURCE_DIR "/configs/toy_copy.yaml";
  for (const std::vector<std::string>& command :
       {std::vector<std::string>{"bench", "srms_norm", "--n", "8", "--quantity", "memory", "--json", "-", "--csv", "-"},
        {"memory", config, "--trace", "-", "--snapshot", "/dev/stdout"},
        {"compare", config, "--steps", "1", "--json", "-", "--plot", "-"}}) {
    const Finished refused = run_heddle(command);
    EXPECT_EQ(refused.code, 2) << command[0];
    EXPECT_EQ(refused.out, "") << command[0];
    EXPECT_THAT(refused.err, HasSubstr(": stdout is written by ")) << command[0];
  }
}

// Each command with its own inputs as outputs: it ends with code 2, and they stay as they are.
class OwnInputsTest : public testing::TrainedTest {
 protected:
  OwnInputsTest() {
    write_file(config_, "base: base.yaml\ndata: {type: text, path: \"" + text_ + "\"}\nmodel: {vocab_size: 256}\n");
    write_file(path("base.yaml"), testing::tiny_config());
  }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }

  // Expects a refusal of `file`, which is to be as it was before.
  std::string refusal(const std::vector<std::string>& arguments, const std::string& file) const {
    const auto contents = [&] { return fs::exists(file) ? read_file(file) : "nothing is there"; };
    const std::string before = contents();
    const Finished finished = run_heddle(arguments);
    EXPECT_EQ(finished.code, 2) << finished.out << finished.err;
    EXPECT_EQ(finished.out, "");
    EXPECT_EQ(contents(), before) << file;
    EXPECT_THAT(finished.err, HasSubstr(file + " is "));
    return finished.err;
  }

  const std::string config_ = path("config.yaml");
};

TEST_F(OwnInputsTest, OfTokenize) {
  const std::string model = path("text.model");
  fs::copy_file(text_, model);
  EXPECT_THAT(refusal({"tokenize", model, "--out", path("text.bin"), "--train-vocab", "300"}, model),
              HasSubstr("the vocabulary beside --out: "));
  EXPECT_FALSE(fs::exists(path("text.bin")));
  EXPECT_THAT(refusal({"tokenize", text_, "--tokenizer", model, "--out", model}, model),
              HasSubstr("is the file of --tokenizer"));
  fs::create_hard_link(text_, path("hard.txt"));
  EXPECT_THAT(refusal({"tokenize", path("*.txt"), "--out", path("hard.txt")}, path("hard.txt")),
              HasSubstr("is one of the texts"));
}

TEST_F(OwnInputsTest, OfMemoryAndCompare) {
  for (const std::string& file : {config_, path("base.yaml"), text_}) {
    for (const char* option : {"--json", "--snapshot", "--trace", "--plot"}) {
      EXPECT_THAT(refusal({"memory", config_, option, file}, file), HasSubstr(option));
    }
    for (const char* option : {"--json", "--plot"}) {
      EXPECT_THAT(refusal({"compare", path("tiny.yaml"), config_, "--set", "data.path='" + text_ + "'", "--set",
                           "data.type=text", "--set", "model.vocab_size=256", option, file},
                          file),
                  HasSubstr(option));
    }
  }
  EXPECT_THAT(refusal({"memory", run_ + "/config.yaml", "--json", run_ + "/metrics.csv"}, run_ + "/metrics.csv"),
              HasSubstr("is a file of " + run_));
  EXPECT_THAT(refusal({"memory", config_, "--snapshot", path("s"), "--trace", path("s")}, path("s")),
              HasSubstr("is written by --snapshot, too"));
  EXPECT_THAT(refusal({"compare", config_, "--plot", path("s"), "--json", path("s")}, path("s")),
              HasSubstr("is written by --json, too"));
  EXPECT_EQ(run_heddle({"memory", config_, "--json", "/dev/null", "--plot", "/dev/null"}).code, 0);
}

TEST_F(OwnInputsTest, OfBench) {
  const std::string suite = path("b.yaml"), published = path("p.csv"), charts = path("charts");
  write_file(path("suite_base.yaml"), "operator: srms_norm\nn: [8]\n");
  write_file(suite,
             "base: suite_base.yaml\npublished: p.csv\nconfigs: {plain: {inputs: {x: [4, n]}, moved: {fwd: [x, y], "
             "bwd: [x, d_y, d_x]}}}\n");
  write_file(published, "suite,gpu,config,pass,quantity,n,provider,value\n");
  for (const std::string& file : {suite, path("suite_base.yaml"), published}) {
    for (const char* option : {"--json", "--csv"}) {
      EXPECT_THAT(refusal({"bench", suite, option, file}, file), HasSubstr("is a file of suite b"));
    }
  }
  EXPECT_THAT(refusal({"bench", suite, "--json", path("x"), "--csv", path("x")}, path("x")), HasSubstr("--csv: "));
  EXPECT_THAT(refusal({"bench", suite, "--json", charts, "--plot", charts}, charts), HasSubstr("--plot: "));
  fs::create_directory(charts);
  const std::string chart = charts + "/b_fwd_memory.svg";
  EXPECT_THAT(refusal({"bench", suite, "--json", chart, "--plot", charts}, chart), HasSubstr("--plot: "));
  EXPECT_EQ(run_heddle({"bench", suite, "--plot", suite}).code, 2);
  EXPECT_EQ(run_heddle({"bench", suite, "--plot", charts}).code, 0);
  EXPECT_TRUE(fs::exists(chart));
}

TEST_F(OwnInputsTest, OfRunLayer) {
  const std::string spec = path("spec.yaml"), in = path("in"), out = path("out");
  write_file(spec, "layer: rms_norm\n");
  Context context;
  write_safetensors(context, in, std::vector<NamedTensor>{{"x", Tensor::zeros(context, {8}, DType::float32)}});
  EXPECT_THAT(refusal({"run-layer", spec, "--inputs", in, "--outputs", in}, in), HasSubstr("is one of --inputs"));
  EXPECT_THAT(refusal({"run-layer", spec, "--inputs", in, "--outputs", spec}, spec), HasSubstr("is a spec"));
  EXPECT_THAT(refusal({"run-layer", spec, spec, "--inputs", in, in, "--outputs", out, out}, out),
              HasSubstr("is written by --outputs, too"));
  EXPECT_EQ(run_heddle({"run-layer", spec, spec, "--inputs", in, in, "--outputs", out, "/dev/null"}).code, 0);
}

TEST_F(OwnInputsTest, OfPlot) {
  ASSERT_EQ(training_.code, 0) << training_.err;
  std::vector<std::string> files = {"/metrics.csv", "/config.yaml", "/log.jsonl"};
  for (const auto& entry : fs::recursive_directory_iterator(run_ + "/checkpoints")) {
    if (entry.is_regular_file()) files.push_back(entry.path().string().substr(run_.size()));
  }
  ASSERT_GT(files.size(), 5u);
  for (const std::string& file : files) {
    EXPECT_THAT(refusal({"plot", run_, "--out", run_ + file}, run_ + file), HasSubstr("--out: "));
    EXPECT_THAT(refusal({"plot", run_ + "/metrics.csv", "--out", run_ + file}, run_ + file), HasSubstr("--out: "));
  }
  for (int time = 0; time < 2; ++time) EXPECT_EQ(run_heddle({"plot", run_, "--out", run_ + "/loss.svg"}).code, 0);
}

TEST_F(OwnInputsTest, OfTheTraceOfATraining) {
  const auto train_with = [&](const std::string& trace, const std::string& out, const std::string& from = "") {
    std::vector<std::string> arguments = {"train", config_, "--out", out, "--device", "cpu", "--set"};
    arguments.push_back("trainer.profile={steps: [3, 4], trace: '" + trace + "'}");
    if (!from.empty()) arguments.insert(arguments.end(), {"--init-from", from});
    return arguments;
  };
  for (const std::string& file : {config_, path("base.yaml"), text_, run_ + "/config.yaml", run_ + "/metrics.csv",
                                  run_ + "/log.jsonl", run_ + "/checkpoints/best/model.safetensors"}) {
    EXPECT_THAT(refusal(train_with(file, run_), file), HasSubstr(": trainer.profile.trace: "));
  }
  const std::string weights = run_ + "/checkpoints/best/model.safetensors";
  EXPECT_THAT(refusal(train_with(weights, path("new"), run_), weights), HasSubstr("is a file of " + run_));
  EXPECT_FALSE(fs::exists(path("new"))) << "nothing is begun";
  // In a run folder that is made for it.
  const Finished finished = run_heddle(train_with(path("new/trace.json"), path("new")));
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_TRUE(fs::exists(path("new/trace.json")));
}

TEST_F(OwnInputsTest, OfARunFolder) {
  const std::string file = path("new/metrics.csv");
  fs::create_directory(path("new"));
  fs::copy_file(text_, file);
  EXPECT_THAT(refusal({"train", config_, "--out", path("new"), "--set", "data.path='" + file + "'"}, file),
              HasSubstr("the run folder: "));
}

}  // namespace
}  // namespace heddle
