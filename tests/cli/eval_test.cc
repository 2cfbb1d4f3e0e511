// `heddle eval` as a user meets it.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <limits>
#include <string>
#include <vector>

#include "core/tensor/transfer.h"
#include "tests/cli/trained_test.h"
#include "trainers/run/checkpoint.h"
#include "trainers/train_step.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using testing::Finished;
using ::testing::HasSubstr;
using testing::run_heddle;
using ::testing::StartsWith;

class EvalCommandTest : public testing::TrainedTest {
 protected:
  Finished eval(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = {"eval", run_, "--device", "cpu", "--threads", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_heddle(arguments);
  }
  // The value that a line of the output gives.
  static std::string value(const Finished& finished, const std::string& name) {
    EXPECT_EQ(finished.code, 0) << finished.err;
    const size_t begin = ("\n" + finished.out).find("\n" + name + " ");
    if (begin == std::string::npos) return "no " + name + " in " + finished.out;
    const std::string line = finished.out.substr(begin, finished.out.find('\n', begin) - begin);
    return line.substr(line.find_first_not_of(' ', name.size()));
  }
  std::string write(const std::string& name, const std::string& text) const {
    write_file(folder_ / name, text);
    return (folder_ / name).string();
  }
};

TEST_F(EvalCommandTest, GivesTheLossOfTheLastRow) {
  const Finished eval = run_heddle({"eval", run_});
  ASSERT_EQ(eval.code, 0) << eval.err;
  EXPECT_THAT(eval.out, HasSubstr("perplexity"));
  EXPECT_THAT(eval.out, HasSubstr("bits per byte"));
  const std::string metrics = read_file(run_ + "/metrics.csv");
  const std::string last = metrics.substr(metrics.rfind('\n', metrics.size() - 2) + 1);
  const size_t begin = last.rfind(',', last.size() - 3) + 1;
  const double loss = std::stod(last.substr(begin));
  EXPECT_THAT(eval.out, HasSubstr(fmt::format("{:.6f} nats per byte", loss)));
  EXPECT_NEAR(std::stod(value(eval, "perplexity")), std::exp(loss), 1e-4);
  EXPECT_NEAR(std::stod(value(eval, "bits per byte")), loss / std::log(2.0), 1e-6);
  EXPECT_EQ(run_heddle({"eval", run_ + "/checkpoints/step_40"}).out, eval.out);
  EXPECT_NE(run_heddle({"eval", run_, "--set", "trainer.eval_batches=1"}).out, eval.out);
}

TEST_F(EvalCommandTest, NamesWhatIsWrong) {
  EXPECT_EQ(run_heddle({"eval", run_, "--set", "trainer.evalbatches=1"}).code, 2);
  const Finished nowhere = run_heddle({"eval", run_ + "/nowhere"});
  EXPECT_EQ(nowhere.code, 2);
  EXPECT_EQ(nowhere.err, "error: '" + run_ + "/nowhere' does not exist, expected a run folder or a checkpoint\n");
  const Finished file = run_heddle({"eval", run_ + "/config.yaml"});
  EXPECT_EQ(file.code, 2);
  EXPECT_EQ(file.err, "error: " + run_ + "/config.yaml is a file, expected a run folder or a checkpoint\n");
  const std::string link = (folder_ / "link").string();  // to itself
  fs::create_symlink("link", link);
  EXPECT_EQ(run_heddle({"eval", link}).err, "error: " + link + ": Too many levels of symbolic links\n");
  EXPECT_THAT(eval({"--set", "model.dim=32"}).err, HasSubstr("float32 (256, 32): the config is of another model"));
  EXPECT_EQ(eval({"--set", "model.dim=32"}).code, 2);
  fs::resize_file(run_ + "/checkpoints/step_40/model.safetensors", 99);
  const Finished passed_over = run_heddle({"eval", run_});
  EXPECT_EQ(passed_over.code, 0);
  EXPECT_THAT(passed_over.err, HasSubstr("model.safetensors: 99 bytes, expected"));
  EXPECT_THAT(passed_over.out, HasSubstr("step_30"));
  const Finished damaged = run_heddle({"eval", run_ + "/checkpoints/step_40"});
  EXPECT_EQ(damaged.code, 1);
  EXPECT_THAT(damaged.err, StartsWith("error: " + run_ + "/checkpoints/step_40/model.safetensors: 99 bytes, expected"));
}

TEST_F(EvalCommandTest, TheWeightsAreReadIntoAnotherDtype) {
  const double loss = std::stod(value(eval(), "validation loss"));
  EXPECT_NEAR(std::stod(value(eval({"--set", "trainer.dtype=float64"}), "validation loss")), loss, 1e-4);
}

TEST_F(EvalCommandTest, AnAverageIsThatOfTheRunOrNone) {
  const Finished without = eval({"--set", "trainer.ema=0.9"});
  EXPECT_EQ(without.code, 2);
  EXPECT_THAT(without.err, StartsWith("error: --set trainer.ema=0.9: trainer.ema: found 0.9, expected none: " + run_ +
                                      "/checkpoints/step_40 holds no average of the weights"));
  run_ = (folder_ / "averaged").string();
  ASSERT_EQ(train(run_, {"trainer.ema=0.5", "trainer.steps=2"}).code, 0);
  EXPECT_EQ(eval({"--set", "trainer.ema=0.5"}).out, eval().out);
  EXPECT_EQ(eval({"--set", "trainer.ema=null"}).code, 0);
  EXPECT_THAT(eval({"--set", "trainer.ema=0.9"}).err,
              HasSubstr("trainer.ema: found 0.9, expected 0.5, the decay of the average in"));
}

// What was asked for is printed, and a script that looks at the exit code does not take nan for a loss.
TEST_F(EvalCommandTest, ALossThatIsNotFiniteIsExitCodeOne) {
  Context context(Device{}, {.threads = 1});
  const TrainConfig config = load_train_config(run_ + "/config.yaml");
  TrainStep train_step(context, config);
  const Checkpoint newest = find_checkpoint(run_, [](const std::string&) {});
  ParameterSet& parameters = train_step.model().parameters();
  load_parameters(context, newest, parameters);
  const Tensor master = parameters.all().at(0).master;
  write_values(context, master,
               std::vector<double>(static_cast<size_t>(master.numel()), std::numeric_limits<double>::quiet_NaN()));
  const fs::path damaged =
      write_checkpoint(context, folder_ / "damaged/checkpoints", parameters, train_step.optimizer(), newest.state, {});
  const Finished finished = run_heddle({"eval", damaged.string(), "--device", "cpu"});
  EXPECT_EQ(finished.code, 1);
  EXPECT_THAT(finished.out, HasSubstr("validation loss   nan nats per byte"));
  EXPECT_THAT(finished.err, HasSubstr("error: the validation loss is nan, since parameter " + parameters.all()[0].name +
                                      " of " + damaged.string() + " is not finite (nan)"));
}

// A file is evaluated from its first token to its last, however the user names it.
TEST_F(EvalCommandTest, AFileIsEvaluatedWhole) {
  const std::string whole = std::to_string(fs::file_size(text_) - 1);
  const std::string part = value(eval(), "tokens");
  EXPECT_EQ(value(eval(), "data"), text_ + ", the last 5 %");
  EXPECT_EQ(part, "128");  // 2 batches of 4 windows of 16 tokens

  const Finished file = eval({"--data", text_});
  EXPECT_EQ(value(file, "tokens"), whole);
  EXPECT_EQ(value(file, "data"), text_ + ", all of it");
  EXPECT_EQ(eval({"--set", "data.validation_path=" + text_}).out, file.out);
  const std::string copy = write("copy.txt", read_file(text_) + "x");
  EXPECT_EQ(value(eval({"--set", "data.path=" + copy}), "tokens"), std::to_string(fs::file_size(copy) - 1));
  EXPECT_EQ(value(eval({"--set", "data.path=" + copy}), "data"), copy + ", all of it");
  EXPECT_EQ(value(eval({"--data", (folder_ / "*.txt").string()}), "tokens"), std::to_string(2 * 60 * 44));
  EXPECT_EQ(value(eval({"--data", write("pair", "th")}), "tokens"), "1");

  // The other data of the run need not be there.
  fs::rename(text_, folder_ / "moved");
  EXPECT_EQ(value(eval({"--data", (folder_ / "moved").string()}), "tokens"), whole);
  // As many batches as are asked for.
  EXPECT_EQ(value(eval({"--data", copy, "--set", "trainer.eval_batches=3"}), "tokens"), "192");
  EXPECT_EQ(value(eval({"--data", copy, "--set", "trainer.eval_batches=20"}), "tokens"), "1280");  // as in training
}

// However an override writes a value, it is asked for; and nothing that is asked for is left out.
TEST_F(EvalCommandTest, OverridesAreReadAsValues) {
  const std::string copy = write("copy.txt", read_file(text_) + "x");
  EXPECT_EQ(value(eval({"--data", copy, "--set", "trainer={eval_batches: 3}"}), "tokens"), "192");
  EXPECT_EQ(value(eval({"--set", "data={validation_path: '" + copy + "'}"}), "data"), copy + ", all of it");
  const Finished half = eval({"--set", "data.path=" + copy, "--set", "data.validation_fraction=0.5"});
  EXPECT_EQ(value(half, "data"), copy + ", the last 50 %");
  EXPECT_EQ(half.err, "");
  for (const std::string key : {"path", "validation_path", "validation_fraction"}) {
    const Finished both = eval({"--data", text_, "--set", "data={" + key + ": 0.1}"});
    EXPECT_EQ(both.code, 2);
    EXPECT_EQ(both.err, "error: --data: found --set data." + key + " beside it, expected one of them\n");
  }
}

// The text that the model was trained on stays that under another name, and is another text when it has changed.
TEST_F(EvalCommandTest, DataThatChangedAreTold) {
  const Finished before = eval();
  EXPECT_EQ(before.err, "");
  const std::string moved = (folder_ / "moved").string();
  fs::rename(text_, moved);
  const Finished elsewhere = eval({"--set", "data.path=" + moved});
  EXPECT_EQ(elsewhere.err, "");
  EXPECT_EQ(value(elsewhere, "data"), moved + ", the last 5 %");
  EXPECT_EQ(value(elsewhere, "validation loss"), value(before, "validation loss"));
  write_file(text_, read_file(moved) + "one line more\n");
  const Finished changed = eval();
  EXPECT_EQ(changed.code, 0);
  EXPECT_THAT(changed.err, StartsWith("note: the data are not those that " + run_ +
                                      "/checkpoints/step_40 was trained on: "
                                      "now 1 file of 2654 bytes"));
  EXPECT_THAT(changed.err, HasSubstr(", then 1 file of 2640 bytes"));
}

TEST_F(EvalCommandTest, TheAccuracyIsThatOfTheLastRow) {
  const std::string copy = (folder_ / "copy").string();
  ASSERT_EQ(train(copy, {"trainer.steps=80", "optimizer.lr=0.02"}).code, 0);
  const std::string metrics = read_file(copy + "/metrics.csv");
  const double accuracy = std::stod(metrics.substr(metrics.rfind(',') + 1));
  ASSERT_GT(accuracy, 0.1);
  EXPECT_EQ(value(run_heddle({"eval", copy}), "accuracy"), fmt::format("{:.2f} %", 100.0 * accuracy));
}

TEST_F(EvalCommandTest, AFileThatCannotBeReadIsNamed) {
  const Finished missing = eval({"--data", "no/such.txt"});
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.err, StartsWith("error: --data no/such.txt: data.validation_path: found no file 'no/such.txt'"));
  EXPECT_EQ(eval({"--set", "data.path=no/such.txt"}).code, 2);
  const Finished both = eval({"--set", "data.validation_path=a", "--set", "data.validation_fraction=0.1"});
  EXPECT_EQ(both.code, 2);
  EXPECT_THAT(both.err, HasSubstr("found a share of data.path beside data.validation_path"));
  const std::string copy = (folder_ / "copy").string();
  ASSERT_EQ(train(copy, {}).code, 0);
  const Finished generated = run_heddle({"eval", copy, "--data", text_});
  EXPECT_EQ(generated.code, 2);
  EXPECT_THAT(generated.err, HasSubstr("--data: this model was trained on data that are generated"));
}

TEST_F(EvalCommandTest, TheValidationFilesOfARunAreEvaluated) {
  const std::string other = write("other.txt", std::string(testing::TrainedTest::kLine).substr(0, 40));
  const std::string run = (folder_ / "other").string();
  const Finished training = train(
      run, {"data={type: text, path: '" + text_ + "', validation_path: '" + other + "'}", "model.vocab_size=256"});
  ASSERT_EQ(training.code, 0) << training.err;
  const Finished eval = run_heddle({"eval", run});
  EXPECT_EQ(value(eval, "tokens"), "39");
  EXPECT_EQ(value(eval, "data"), other);
  EXPECT_EQ(value(run_heddle({"eval", run, "--set", "data.path=" + write("third", "some text")}), "tokens"), "8");
}

}  // namespace
}  // namespace heddle
