// `heddle train` as a user meets it: signals, kills, bad configs.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "tests/cli/process.h"
#include "tests/config/bad_configs.h"
#include "tests/trainers/test_config.h"
#include "trainers/run/checkpoint.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using testing::Finished;
using ::testing::HasSubstr;
using testing::Process;
using testing::run_heddle;
using ::testing::StartsWith;

class TrainCommandTest : public ::testing::Test {
 protected:
  TrainCommandTest() { std::ofstream(config_) << testing::tiny_config(); }

  std::vector<std::string> train(const std::string& out, const std::vector<std::string>& more = {}) const {
    std::vector<std::string> arguments = {"train", config_.string(), "--out", (folder_ / out).string(), "--device",
                                          "cpu",   "--threads",      "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::string file(const std::string& path) const { return read_file(folder_ / path); }

  testing::TempFolder folder_;
  fs::path config_ = folder_ / "tiny.yaml";
};

// A config of the name of one that comes with heddle: the one in the current folder is meant.
TEST_F(TrainCommandTest, OnesOwnConfigGoesBeforeTheSharedOne) {
  fs::create_directory(folder_ / "configs");
  std::ofstream(folder_ / "configs/toy_copy.yaml") << "{}\n";
  const fs::path before = fs::current_path();
  fs::current_path(folder_.path());
  const Finished own = run_heddle({"train", "configs/toy_copy.yaml"});
  fs::remove(folder_ / "configs/toy_copy.yaml");
  const Finished shared = run_heddle({"train", "configs/toy_copy.yaml", "--set", "trainer.steps=0"});
  fs::current_path(before);
  EXPECT_THAT(own.err, StartsWith("error: configs/toy_copy.yaml:1:1: missing key 'data'"));
  EXPECT_THAT(shared.err, HasSubstr("trainer.steps"));  // it is read, and no steps are refused
}

TEST_F(TrainCommandTest, CtrlCWritesACheckpointAndSaysHowToGoOn) {
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    const std::string name = fmt::format("signal_{}", signal);
    Process process(train(name, {"--set", "trainer.steps=1000000", "--set", "trainer.eval_every=0"}));
    ASSERT_TRUE(process.wait_for("step 1/1000000")) << process.err();
    process.send(signal);
    EXPECT_EQ(process.wait(), 130);
    EXPECT_THAT(process.err(), HasSubstr("stopped after step "));
    EXPECT_THAT(process.err(), HasSubstr("--resume auto"));
    const auto checkpoints = list_checkpoints(folder_ / name / "checkpoints");
    ASSERT_FALSE(checkpoints.empty());
    EXPECT_NO_THROW(open_checkpoint(checkpoints.back().path));
    EXPECT_THAT(process.err(), HasSubstr(fmt::format("step_{}, train again", checkpoints.back().step)));
  }
}

TEST_F(TrainCommandTest, BadConfigsExitWithTwoAndNameThePlace) {
  const std::vector<testing::BadConfig> all = testing::bad_configs();
  EXPECT_GE(all.size(), 30u);
  for (const testing::BadConfig& bad : all) {
    const fs::path folder = folder_ / bad.name;
    const fs::path path = testing::write_bad_config(bad, folder);
    std::vector<std::string> arguments = {"train", path.string(), "--out", (folder / "run").string()};
    for (const std::string& override_text : bad.overrides) {
      arguments.insert(arguments.end(), {"--set", override_text});
    }
    const Finished finished = run_heddle(arguments);
    const std::string location = bad.location.starts_with("--set") ? bad.location : (folder / bad.location).string();
    EXPECT_EQ(finished.code, 2) << bad.name;
    EXPECT_THAT(finished.err, StartsWith("error: " + location + ": ")) << bad.name;
    EXPECT_THAT(finished.err, HasSubstr(bad.message)) << bad.name;
    EXPECT_EQ(finished.out, "") << bad.name;
    EXPECT_FALSE(fs::exists(folder / "run")) << bad.name;
  }
}

TEST_F(TrainCommandTest, LayerOptionsAreCheckedAsStrictly) {
  const auto refusal = [&](const std::string& assignment) {
    const Finished finished = run_heddle(train("run", {"--set", assignment}));
    EXPECT_EQ(finished.code, 2) << assignment;
    EXPECT_THAT(finished.err, StartsWith("error: ")) << assignment;
    return finished.err;
  };
  EXPECT_THAT(refusal("model.mixer.headz=3"), HasSubstr("unknown key 'headz' in model.mixer"));
  EXPECT_THAT(refusal("model.mixer.heads=3"), HasSubstr("model.mixer.heads"));
  EXPECT_THAT(refusal("model.mixer.type=lightening"), HasSubstr("did you mean 'lightning'?"));
  EXPECT_THAT(refusal("model.norm.type=rmsnorm"), HasSubstr("did you mean 'rms_norm'?"));
  EXPECT_THAT(refusal("model.channel.hiden=3"), HasSubstr("did you mean 'hidden'?"));
  EXPECT_EQ(refusal("lr=2"), "error: --set lr=2: unknown key 'lr'; did you mean 'optimizer.lr'?\n");
  EXPECT_THAT(refusal("wheels=4"), HasSubstr("unknown key 'wheels', expected one of seed, data, "));  // no base
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

TEST_F(TrainCommandTest, WrongUsageExitsWithTwo) {
  const auto refusal = [](const std::vector<std::string>& arguments) {
    const Finished finished = run_heddle(arguments);
    EXPECT_EQ(finished.code, 2);
    EXPECT_THAT(finished.err, StartsWith("error: "));
    return finished.err;
  };
  EXPECT_THAT(refusal({"train", (folder_ / "nowhere.yaml").string()}), HasSubstr("nowhere.yaml"));
  EXPECT_THAT(refusal({"train"}), HasSubstr("config"));
  EXPECT_THAT(refusal({}), HasSubstr("subcommand"));
  EXPECT_THAT(refusal({"trian"}), HasSubstr("unknown command 'trian'; did you mean 'train'?"));
  EXPECT_THAT(refusal({"--verison"}), HasSubstr("unknown option '--verison'; did you mean '--version'?"));
  EXPECT_THAT(refusal(train("run", {"--stes", "3"})),
              StartsWith("error: the following arguments were not expected: --stes 3; did you mean '--steps'?\n"));
  EXPECT_THAT(refusal(train("run", {"--outside=1", "a", "b"})),
              StartsWith("error: the following arguments were not expected: --outside=1 a b\nsee heddle train --help"));
  EXPECT_THAT(refusal(train("run", {"--device", "gpu"})), HasSubstr("gpu"));
  EXPECT_THAT(refusal(train("run", {"--threads", "-1"})), HasSubstr("--threads"));
  EXPECT_THAT(refusal(train("run", {"extra"})), HasSubstr("extra"));
  EXPECT_THAT(refusal(train("run", {"--init-from", ""})), HasSubstr("--init-from: found '', expected a path"));
  EXPECT_THAT(refusal(train("run", {"--resume", ""})), HasSubstr("--resume: found '', expected auto, none or a path"));
}

// A run folder, or the config in it, names the run that goes on.
TEST_F(TrainCommandTest, ARunGoesOnByItsFolder) {
  ASSERT_EQ(run_heddle(train("whole")).code, 0);
  for (const std::string subject : {"run", "run/config.yaml"}) {
    const std::string name = subject == "run" ? "one" : "two";
    Process process(train(name, {"--set", "trainer.checkpoint_every=1"}));
    ASSERT_TRUE(process.wait_for("step 1/40")) << process.err();
    process.send(SIGINT);
    ASSERT_TRUE(process.wait() == 130 || process.wait() == 0) << process.err();
    std::string path = subject;
    path.replace(0, 3, (folder_ / name).string());
    const Finished finished = run_heddle({"train", path, "--device", "cpu", "--threads", "1"});
    EXPECT_EQ(finished.code, 0) << finished.err;
    EXPECT_THAT(finished.err, HasSubstr("run folder " + (folder_ / name).string()));
    EXPECT_EQ(file("whole/metrics.csv"), file(name + "/metrics.csv"));
  }
}

// Old checkpoints are removed, with all that is in them.
TEST_F(TrainCommandTest, ARunInACheckpointIsRefused) {
  ASSERT_EQ(run_heddle(train("run")).code, 0);
  const std::string step = "run/checkpoints/step_40";
  ASSERT_TRUE(fs::exists(folder_ / step));
  fs::create_symlink(step, folder_ / "link");
  for (const std::string& out : {step, step + "/inner", step + "/a/b", std::string("link/inner"),
                                 std::string("run/checkpoints/best/inner"), std::string("run/checkpoints/step_80/a")}) {
    for (const char* more : {"--set=seed=2", "--dry-run"}) {
      const Finished refused = run_heddle(train(out, {more}));
      EXPECT_EQ(refused.code, 2) << out << "\n" << refused.err;
      EXPECT_THAT(refused.err, HasSubstr(" is in the checkpoint ")) << out;
    }
    const Finished refused = run_heddle({"export", (folder_ / "run").string(), "--out", (folder_ / out).string()});
    EXPECT_EQ(refused.code, 2) << out << "\n" << refused.err;
  }
  EXPECT_FALSE(fs::exists(folder_ / step / "inner"));
  fs::create_directories(folder_ / "disk/step_7");
  for (const auto& [out, found] :
       std::vector<std::pair<std::string, std::string>>{{"run/checkpoints", " holds checkpoints itself"},
                                                        {"run/checkpoints/inner", "is for the checkpoints of a run"},
                                                        {"disk", " holds checkpoints itself"}}) {
    const Finished refused = run_heddle(train(out, {"--set=seed=2"}));
    EXPECT_EQ(refused.code, 2) << out << "\n" << refused.err;
    EXPECT_THAT(refused.err, HasSubstr(found)) << out;
    EXPECT_FALSE(fs::exists(folder_ / out / "config.yaml"));
  }
  EXPECT_EQ(run_heddle(train("run/checkpoints_2/step_40")).code, 0);
  EXPECT_EQ(run_heddle(train("step_40/run")).code, 0);
}

TEST_F(TrainCommandTest, AConfigOfTheUserIsNotReplacedByTheResolvedOne) {
  const std::string text = "# my own\n" + testing::tiny_config();
  std::ofstream(folder_ / "config.yaml") << text;
  const Finished finished =
      run_heddle({"train", (folder_ / "config.yaml").string(), "--out", folder_.path().string(), "--device", "cpu"});
  EXPECT_EQ(finished.code, 2);
  EXPECT_THAT(finished.err, HasSubstr("config.yaml was not written by a run and would be replaced"));
  EXPECT_EQ(file("config.yaml"), text);
  EXPECT_FALSE(fs::exists(folder_ / "metrics.csv"));
}

TEST_F(TrainCommandTest, CheckpointsMayLieOnAnotherDisk) {
  ASSERT_EQ(run_heddle(train("whole")).code, 0);
  fs::create_directories(folder_ / "disk");
  fs::create_directories(folder_ / "run");
  fs::create_directory_symlink(folder_ / "disk", folder_ / "run/checkpoints");
  Process process(train("run", {"--set", "trainer.checkpoint_every=1"}));
  ASSERT_TRUE(process.wait_for("step 1/40")) << process.err();
  process.send(SIGINT);
  process.wait();
  const Finished finished = run_heddle(train("run", {"--set", "trainer.checkpoint_every=1"}));
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.err, ::testing::Not(HasSubstr("missing")));
  EXPECT_EQ(file("whole/metrics.csv"), file("run/metrics.csv"));
}

// What a newcomer tries first: a few steps of a config whose warm-up is longer.
TEST_F(TrainCommandTest, AFewStepsOfAnyConfig) {
  const Finished finished = run_heddle(train("run", {"--set", "trainer.steps=3"}));
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.err,
              HasSubstr("schedule.warmup_steps is 5, but trainer.steps 3: the warm-up takes all of them"));
}

TEST_F(TrainCommandTest, SizesBeyondTheMemoryAreErrors) {
  const auto refusal = [&](const std::string& set, int code) {
    const Finished finished = run_heddle(train("run", {"--set", set}));
    EXPECT_EQ(finished.code, code) << set << "\n" << finished.err;
    return finished.err;
  };
  EXPECT_THAT(refusal("trainer.batch_size=1099511627776", 1),
              HasSubstr("error: out of memory on the host: the batches of a step would take "));
  EXPECT_THAT(refusal("trainer.accumulate=1099511627776", 1), HasSubstr("the batches of a step would take "));
  EXPECT_THAT(refusal("model.vocab_size=2147483647", 1), HasSubstr("error: out of memory on cpu: asked "));
  EXPECT_THAT(refusal("model.dim=1073741824", 1), HasSubstr("error: parameter blocks.0.mixer.qkv.weight has shape "));
  EXPECT_THAT(refusal("trainer.batch_size=4611686018427387904", 2), HasSubstr("more than an int64 counts"));
  EXPECT_THAT(refusal("trainer.eval_batches=4611686018427387904", 2), HasSubstr("more than an int64 counts"));
  EXPECT_THAT(refusal("data.length=4611686018427387905", 2), HasSubstr("expected an integer in [1, 2147483647]"));
}

TEST_F(TrainCommandTest, ADryRunCountsAndWritesNothing) {
  const std::vector<std::string> accumulate = {"--set", "trainer.accumulate=3"};
  std::vector<std::string> dry_run = accumulate;
  dry_run.push_back("--dry-run");
  const Finished dry = run_heddle(train("run", dry_run));
  EXPECT_EQ(dry.code, 0) << dry.err;
  EXPECT_FALSE(fs::exists(folder_ / "run"));
  EXPECT_THAT(dry.out, HasSubstr("run folder   " + (folder_ / "run").string() + ", from the beginning"));
  const Finished whole = run_heddle(train("run", accumulate));
  // The progress of a training names the same peak.
  const size_t at = dry.out.find("memory       ") + 13;
  const std::string peak = dry.out.substr(at, dry.out.find(" at the peak") - at);
  EXPECT_THAT(whole.err, HasSubstr("peak " + peak)) << dry.out;
  // 2 blocks of 16 features: qkv, gate down and up, out, w1, w2, w3; and the head of 8 tokens. 192 tokens in a step.
  const double matrices = 2 * (3 * 256 + 256 + 3 * 256 + 2 * 4 * 16) + 8 * 16;
  EXPECT_THAT(dry.out, HasSubstr(fmt::format("operations   {:.3g} GFLOP a step", 6 * matrices * 192 * 1e-9)));
  EXPECT_THAT(dry.out, HasSubstr("steps        40 of 192 tokens"));
  EXPECT_THAT(dry.out, HasSubstr("evaluation   24 sequences"));
  EXPECT_THAT(run_heddle(train("run", dry_run)).out, HasSubstr("run, from step 40"));
  write_file(folder_ / "text", std::string(1024, 'a'));
  dry_run.insert(dry_run.end(), {"--set", "data={type: text, path: '" + (folder_ / "text").string() + "'}"});
  dry_run.insert(dry_run.end(), {"--set", "model.vocab_size=256", "--set", "data.validation_fraction=0.5"});
  EXPECT_THAT(run_heddle(train("text_run", dry_run)).out, HasSubstr("data         1 file, 1.0 KiB\n"));
}

// Angles turn features and are in no product, learned or not.
TEST_F(TrainCommandTest, ADryRunCountsTheOperationsOfWeights) {
  const auto operations = [&](const char* learnable) {
    const std::string out = run_heddle(train("run", {"--dry-run", "--set", learnable})).out;
    const size_t at = out.find("operations ");
    return out.substr(at, out.find('\n', at) - at);
  };
  EXPECT_EQ(operations("model.mixer.lrpe={type: lrpe_rotate, learnable: true, per_head: true}"),
            operations("model.mixer.lrpe={type: lrpe_rotate}"));
}

TEST_F(TrainCommandTest, TheRunFolderHasTheNameOfTheConfigUnlessItIsGiven) {
  const std::vector<std::string> arguments = {"train", config_.string(), "--dry-run"};
  EXPECT_THAT(run_heddle(arguments).out, HasSubstr("run folder   runs/tiny, from the beginning"));
}

// A rate of next to nothing leaves the weights where they start.
TEST_F(TrainCommandTest, ARunMayStartFromTheWeightsOfAnother) {
  ASSERT_EQ(run_heddle(train("first")).code, 0);
  const auto loss = [&](const std::string& run) {
    const std::string eval = run_heddle({"eval", (folder_ / run).string()}).out;
    return std::stod(eval.substr(eval.find("validation loss") + std::string("validation loss").size()));
  };
  const std::vector<std::string> still = {"--set", "trainer.steps=1",          "--set", "optimizer.lr=1.0e-9",
                                          "--set", "schedule={type: constant}"};
  std::vector<std::string> from = still;
  from.insert(from.end(), {"--init-from", (folder_ / "first").string()});
  ASSERT_EQ(run_heddle(train("without", still)).code, 0);
  ASSERT_EQ(run_heddle(train("second", from)).code, 0);
  EXPECT_NEAR(loss("second"), loss("first"), 1e-4);
  EXPECT_GT(std::abs(loss("without") - loss("first")), 1e-2);
}

TEST_F(TrainCommandTest, NumbersThatBlowUpAreExitCodeOne) {
  const Finished finished =
      run_heddle(train("run", {"--set", "optimizer.lr=1.0e+30", "--set", "schedule.warmup_steps=0"}));
  EXPECT_EQ(finished.code, 1);
  EXPECT_THAT(finished.err, ::testing::ContainsRegex("error: (loss|gradient norm) is -?(nan|inf) at step "));
  EXPECT_EQ(finished.out, "");
}

TEST_F(TrainCommandTest, VerifyResumeComparesAndLeavesNothing) {
  const auto left = [&] {
    return std::count_if(fs::directory_iterator(folder_.path()), {}, [](const fs::directory_entry& entry) {
      return entry.path().filename().string().starts_with("heddle_verify_resume");
    });
  };
  ::setenv("TMPDIR", folder_.path().c_str(), 1);
  const Finished finished =
      run_heddle({"train", config_.string(), "--device", "cpu", "--threads", "1", "--verify-resume", "--steps", "6"});
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.out, StartsWith("ok: 6 steps, and 3 steps, a stop and 3 more, gave the same bits"));
  EXPECT_EQ(left(), 0);
  for (const std::vector<std::string>& wrong :
       std::vector<std::vector<std::string>>{{"--verify-resume", "--out", "x"},
                                             {"--verify-resume", "--resume", "none"},
                                             {"--verify-resume", "--dry-run"},
                                             {"--verify-resume", "--steps", "1"},
                                             {"--verify-resume", "--set", "trainer.steps=1"},
                                             {"--steps", "5"}}) {
    std::vector<std::string> arguments = {"train", config_.string(), "--device", "cpu"};
    arguments.insert(arguments.end(), wrong.begin(), wrong.end());
    EXPECT_EQ(run_heddle(arguments).code, 2) << wrong.back();
  }
  // Nor when it is interrupted.
  Process process({"train", config_.string(), "--device", "cpu", "--threads", "1", "--verify-resume", "--steps",
                   "1000000", "--set", "trainer.steps=1000000"});
  ASSERT_TRUE(process.wait_for("without a stop")) << process.err();
  process.send(SIGINT);
  EXPECT_EQ(process.wait(), 130);
  EXPECT_EQ(left(), 0);
  ::unsetenv("TMPDIR");
}

TEST_F(TrainCommandTest, ATimeLimitIsExitCodeZero) {
  const std::vector<std::string> more = {"--set", "trainer.hours=1.0e-9"};
  const Finished finished = run_heddle(train("run", more));
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.err, HasSubstr("the time is over (trainer.hours 1e-09)"));
  EXPECT_THAT(finished.err, HasSubstr("stopped after step 1 of 40; to go on from "));
  EXPECT_THAT(run_heddle(train("run", more)).err, HasSubstr("stopped after step 2 of 40"));
  EXPECT_EQ(run_heddle(train("run")).code, 0);
}

// What train would refuse, a dry run refuses, and it says from where the run would start.
TEST_F(TrainCommandTest, ADryRunLooksForTheStart) {
  ASSERT_EQ(run_heddle(train("run")).code, 0);
  const std::string run = (folder_.path() / "run").string();
  const auto dry = [&](std::vector<std::string> more, const std::string& name = "new") {
    more.emplace_back("--dry-run");
    return run_heddle(train(name, more));
  };
  EXPECT_THAT(dry({"--resume", run}).out, HasSubstr("new, from step 40"));
  EXPECT_THAT(dry({"--init-from", run}).out, HasSubstr("new, from the weights of " + run));
  EXPECT_THAT(dry({}).out, HasSubstr("new, from the beginning"));
  EXPECT_EQ(dry({"--resume", run + "_not"}).code, 2);
  EXPECT_EQ(dry({"--init-from", run + "_not"}).code, 2);
  EXPECT_EQ(dry({"--init-from", run, "--set", "model.dim=32"}).code, 2);
  for (const char* from : {"--init-from", "--resume"}) {
    EXPECT_EQ(dry({from, run, "--set", "trainer.dtype=float64", "--set", "trainer.steps=50"}).code, 0) << from;
  }
  EXPECT_EQ(dry({"--set", "trainer.steps=5"}, "run").code, 2);
  std::ofstream(folder_.path() / "file") << "text";
  EXPECT_THAT(dry({}, "file").err, HasSubstr("is a file, expected a run folder"));
  EXPECT_EQ(dry({}, "file").code, 2);
  EXPECT_FALSE(fs::exists(folder_.path() / "new"));
}

// A new folder in which nothing would be done would hold half a run.
TEST_F(TrainCommandTest, ARunThatIsOverDoesNotGoOnElsewhere) {
  ASSERT_EQ(run_heddle(train("run")).code, 0);
  const std::string run = (folder_.path() / "run").string();
  const Finished finished = run_heddle(train("new", {"--resume", run, "--set", "trainer.steps=16"}));
  EXPECT_EQ(finished.code, 2);
  EXPECT_THAT(finished.err, HasSubstr("step_40 is at step 40, and trainer.steps is 16: there is nothing to do in "));
  EXPECT_FALSE(fs::exists(folder_.path() / "new"));
}

TEST_F(TrainCommandTest, ARunGoesOnInAnotherDtype) {
  ASSERT_EQ(run_heddle(train("run", {"--set", "trainer.steps=10"})).code, 0);
  for (const char* from : {"--resume", "--init-from"}) {
    const Finished wide = run_heddle(
        train(from, {from, (folder_ / "run").string(), "--set", "trainer.dtype=float64", "--set", "trainer.steps=12"}));
    EXPECT_EQ(wide.code, 0) << wide.err;
    const std::string checkpoint = fmt::format("{}/checkpoints/step_12/model.safetensors", from);
    EXPECT_THAT(file(checkpoint), HasSubstr(R"("dtype":"F64")"));
  }
}

TEST_F(TrainCommandTest, ResumeSaysWhatItDoes) {
  const std::vector<std::string> shorter = {"--set", "trainer.steps=10"};
  ASSERT_EQ(run_heddle(train("run", shorter)).code, 0);
  const Finished again = run_heddle(train("run", shorter));
  EXPECT_EQ(again.code, 0);
  EXPECT_THAT(again.err, HasSubstr("nothing left to do"));
  const Finished anew = run_heddle(train("run", {"--set", "trainer.steps=10", "--resume", "none"}));
  EXPECT_EQ(anew.code, 2);
  EXPECT_THAT(anew.err, HasSubstr("holds checkpoints up to step 10"));
  const Finished changed = run_heddle(train("run"));
  EXPECT_EQ(changed.code, 2);
  EXPECT_THAT(changed.err, HasSubstr("trainer.steps is 40, the checkpoint's 10"));

  fs::resize_file(folder_.path() / "run/checkpoints/step_10/model.safetensors", 50);
  const Finished damaged = run_heddle(train("run", shorter));
  EXPECT_EQ(damaged.code, 1);
  EXPECT_THAT(damaged.err, HasSubstr("step_10/model.safetensors: 50 bytes, expected"));
  EXPECT_THAT(damaged.err, HasSubstr("error: no checkpoint of"));
}

}  // namespace
}  // namespace heddle
