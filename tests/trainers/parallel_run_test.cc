// Whole runs of several processes, here threads: one set of files, whatever their number; stops that all take part in;
// and errors that end all of them.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/io/safetensors.h"
#include "core/runtime/error.h"
#include "tests/distributed/threads.h"
#include "tests/io/recorded_calls.h"
#include "tests/temp_folder.h"
#include "tests/trainers/test_config.h"
#include "trainers/parallel/processes.h"
#include "trainers/trainer.h"

namespace heddle::parallel_run_test {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using testing::tiny_train_config;

// Column `name` of a metrics.csv, where it is not empty.
std::vector<double> column(const std::string& csv, const std::string& name) {
  std::istringstream lines(csv);
  std::string line, cell;
  std::getline(lines, line);
  std::istringstream head(line);
  size_t place = 0;
  while (std::getline(head, cell, ',') && cell != name) ++place;
  std::vector<double> values;
  while (std::getline(lines, line)) {
    std::istringstream cells(line);
    for (size_t i = 0; i <= place; ++i) {
      if (!std::getline(cells, cell, ',')) cell.clear();
    }
    if (!cell.empty()) values.push_back(std::stod(cell));
  }
  return values;
}

// The tiny config as a well-conditioned model: rounding does not grow from step to step.
TrainConfig well_conditioned(const std::vector<std::string>& settings) {
  std::vector<std::string> all = {"model.norm={type: rms_norm}", "model.mixer={type: softmax_attention, heads: 2}",
                                  "trainer.batch_size=6", "trainer.ema=0.9"};
  all.insert(all.end(), settings.begin(), settings.end());
  return tiny_train_config(all);
}

class ParallelRunThreaded : public ::testing::Test {
 protected:
  struct How {
    int processes = 1;
    int64_t stop_after = 0;  // steps of this call; 0: goes to the end
    int asked = 0;           // the process that is asked to stop
    std::function<void(TrainOptions&, int rank)> change = {};
    std::function<TrainConfig(TrainConfig, int rank)> config_of = {};
  };

  std::vector<std::string> run(const std::string& name, const TrainConfig& config, const How& how) {
    return testing::run_together(how.processes, [&](Communicator& communicator) {
      Context context(Device{}, {.threads = 1});
      TrainOptions options;
      options.folder = folder_ / name;
      options.log = nullptr;
      options.communicator = &communicator;
      const bool is_asked = communicator.rank() == how.asked;
      options.stop_requested = [&, taken = int64_t{0}]() mutable {
        ++taken;
        return how.stop_after > 0 && is_asked && taken >= how.stop_after + (how.processes == 1 ? 1 : 0);
      };
      if (how.change) how.change(options, communicator.rank());
      const TrainConfig own = how.config_of ? how.config_of(config, communicator.rank()) : config;
      last_step_ = train(context, own, options).step;
    });
  }
  void expect_run(const std::string& name, const TrainConfig& config, const How& how) {
    EXPECT_THAT(run(name, config, how), Each(""));
  }

  std::string file(const std::string& path) { return read_file(folder_ / path); }
  std::vector<double> losses(const std::string& name) { return column(file(name + "/metrics.csv"), "loss"); }
  double difference(const std::string& a, const std::string& b, const std::string& quantity) {
    const std::vector<double> x = column(file(a + "/metrics.csv"), quantity),
                              y = column(file(b + "/metrics.csv"), quantity);
    EXPECT_EQ(x.size(), y.size());
    double largest = 0.0;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i)
      largest = std::max(largest, std::abs(x[i] - y[i]) / std::abs(y[i]));
    return largest;
  }
  std::set<std::string> files(const std::string& name) {
    std::set<std::string> found;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_ / name)) {
      found.insert(std::filesystem::relative(entry.path(), folder_ / name).string());
    }
    return found;
  }

  testing::TempFolder folder_;
  std::atomic<int64_t> last_step_ = 0;
};

// Process 0 alone has logs, and goes on without them as one process alone does.
TEST_F(ParallelRunThreaded, LogsWithoutRoomEndNoProcess) {
  testing::RecordedCalls record(folder_.path());
  struct Filler : Logger {
    explicit Filler(testing::RecordedCalls& record) : record(record) {}
    void checkpoint(const CheckpointEvent&) override {
      record.fails_on = true;
      record.fails_at = record.made;
    }
    void note(const std::string& line) override { notes.push_back(line); }
    testing::RecordedCalls& record;
    std::vector<std::string> notes;
  } filler(record);
  const auto fill = [&](TrainOptions& options, int rank) {
    if (rank == 0) options.loggers = {&filler};
  };
  expect_run("run", well_conditioned({"trainer.steps=4", "logging.jsonl=true"}), {.processes = 2, .change = fill});
  EXPECT_EQ(last_step_, 4);
  EXPECT_THAT(filler.notes, ::testing::Contains(HasSubstr("log.jsonl: No space left on device")));
}

TEST_F(ParallelRunThreaded, AnyNumberOfProcessesWritesTheSameFiles) {
  for (const char* optimizer : {"{type: adamw, lr: 3.0e-3}", "{type: muon, lr: 3.0e-3}"}) {
    const std::string name = optimizer;
    const TrainConfig config = well_conditioned({std::string("optimizer=") + optimizer});
    expect_run(name + "1", config, {.processes = 1});
    expect_run(name + "3", config, {.processes = 3});
    expect_run(name + "3 again", config, {.processes = 3});
    EXPECT_EQ(files(name + "3"), files(name + "1"));
    EXPECT_EQ(file(name + "3/config.yaml"), file(name + "1/config.yaml"));
    EXPECT_LE(difference(name + "3", name + "1", "loss"), 1e-5);
    EXPECT_LE(difference(name + "3", name + "1", "validation_loss"), 1e-5);
    for (const char* tensors : {"model", "optimizer", "average"}) {
      const std::string path = std::string("/checkpoints/step_40/") + tensors + ".safetensors";
      EXPECT_EQ(file(name + "3" + path), file(name + "3 again" + path)) << tensors;
      SafetensorsReader one(folder_ / (name + "1" + path)), three(folder_ / (name + "3" + path));
      ASSERT_EQ(one.entries().size(), three.entries().size());
      for (size_t i = 0; i < one.entries().size(); ++i) {
        EXPECT_EQ(one.entries()[i].name, three.entries()[i].name);
        EXPECT_EQ(one.entries()[i].shape, three.entries()[i].shape);
      }
    }
  }
}

TEST_F(ParallelRunThreaded, AnotherNumberOfProcessesGoesOn) {
  for (const char* optimizer : {"{type: adamw, lr: 3.0e-3}", "{type: muon, lr: 3.0e-3}"}) {
    const std::string name = optimizer;
    const TrainConfig config = well_conditioned({std::string("optimizer=") + optimizer});
    expect_run(name + "whole", config, {.processes = 1});
    expect_run(name + "parts", config, {.processes = 3, .stop_after = 13, .asked = 2});
    EXPECT_EQ(last_step_, 13);
    expect_run(name + "parts", config, {.processes = 2, .stop_after = 9, .asked = 1});
    EXPECT_EQ(last_step_, 22);
    expect_run(name + "parts", config, {.processes = 1});
    EXPECT_EQ(last_step_, 40);
    EXPECT_LE(difference(name + "parts", name + "whole", "loss"), 1e-5);
    EXPECT_LE(difference(name + "parts", name + "whole", "validation_loss"), 1e-5);
  }
}

TEST_F(ParallelRunThreaded, AStopChangesNoBit) {
  const TrainConfig config = tiny_train_config({"trainer.dtype=bfloat16", "trainer.ema=0.9", "model.dropout=0.1"});
  expect_run("whole", config, {.processes = 2});
  for (const int asked : {0, 1}) {
    expect_run("stopped", config, {.processes = 2, .stop_after = 9, .asked = asked});
    EXPECT_EQ(last_step_, asked == 0 ? 9 : 18);
  }
  expect_run("stopped", config, {.processes = 2});
  for (const char* tensors : {"model", "optimizer", "average"}) {
    const std::string path = std::string("/checkpoints/step_40/") + tensors + ".safetensors";
    EXPECT_EQ(file("stopped" + path), file("whole" + path)) << tensors;
  }
  EXPECT_EQ(losses("stopped"), losses("whole"));
}

TEST_F(ParallelRunThreaded, ACheckpointThatOneProcessIsAskedFor) {
  const TrainConfig config = tiny_train_config({"trainer.checkpoint_every=0", "trainer.eval_every=0"});
  const auto ask = [](TrainOptions& options, int rank) {
    options.checkpoint_requested = [rank, step = 0]() mutable { return rank == 1 && ++step == 7; };
  };
  expect_run("asked", config, {.processes = 2, .change = ask});
  EXPECT_TRUE(std::filesystem::exists(folder_ / "asked/checkpoints/step_7"));
}

TEST_F(ParallelRunThreaded, AnotherConfigIsRefused) {
  const auto change = [](TrainConfig config, int rank) {
    return rank == 2 ? tiny_train_config({"trainer.batch_size=6", "optimizer.lr=0.5", "model.dropout=0.25"}) : config;
  };
  const std::string expected = "process 2 would train something else than process 0: ";
  EXPECT_THAT(run("refused", tiny_train_config({"trainer.batch_size=6"}), {.processes = 3, .config_of = change}),
              Each(AllOf(HasSubstr(expected), HasSubstr("optimizer.lr is 0.5, that of process 0 0.003"),
                         HasSubstr("model.dropout is 0.25, that of process 0 0"))));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "refused/config.yaml"));
  const auto version = [](TrainOptions& options, int rank) { options.program = rank == 1 ? "heddle 9" : "heddle 8"; };
  EXPECT_THAT(run("refused", tiny_train_config({}), {.processes = 2, .change = version}),
              Each(HasSubstr("version is heddle 9, that of process 0 heddle 8")));
}

// As a folder of one name that is another on a second host: nothing is trained.
TEST_F(ParallelRunThreaded, OtherWeightsToStartFromAreRefused) {
  const TrainConfig config = well_conditioned({"trainer.steps=2"});
  expect_run("one", config, {});
  expect_run("other", well_conditioned({"trainer.steps=2", "seed=9"}), {});
  const auto from = [&](const std::string& first, const std::string& second) {
    return run("both", config, {.processes = 2, .change = [&](TrainOptions& options, int rank) {
                                  const std::string& name = rank == 0 ? first : second;
                                  if (!name.empty()) options.init_from = (folder_ / name).string();
                                }});
  };
  for (const auto& [first, second] : {std::pair{"one", "other"}, {"one", ""}, {"", "one"}}) {
    EXPECT_THAT(from(first, second), Each(HasSubstr("process 1 would start from other weights than process 0: step 0")))
        << first << " and " << second;
    EXPECT_FALSE(std::filesystem::exists(folder_ / "both" / "metrics.csv"));
  }
  EXPECT_THAT(from("one", "one"), Each(""));
}

TEST_F(ParallelRunThreaded, OtherDataAreRefused) {
  const auto write_text = [&](const std::string& name, const std::string& text) {
    write_file(folder_ / name, text);
    return "data={type: text, path: '" + (folder_ / name).string() + "'}";
  };
  std::string text;
  for (int i = 0; i < 300; ++i) text += "a text, ";
  const std::string first = write_text("text", text);
  const TrainConfig config = tiny_train_config({first, "model.vocab_size=256"});
  const auto change = [&](TrainConfig own, int rank) {  // the same config on another host, with another file
    if (rank == 1) own.data.path = (folder_ / "other").string();
    return own;
  };
  write_text("other", text + "more");
  EXPECT_THAT(run("refused", config, {.processes = 2, .config_of = change}),
              Each(HasSubstr("data is 1 file of 2404 bytes")));
}

TEST_F(ParallelRunThreaded, TheBatchIsDividedEvenly) {
  EXPECT_THAT(run("refused", tiny_train_config({"trainer.batch_size=4"}), {.processes = 3}),
              Each(HasSubstr("found 4, expected a multiple of 3, the number of processes")));
  EXPECT_THAT(run("refused", tiny_train_config({"trainer.parallel={data: 4}"}), {.processes = 2}),
              Each(HasSubstr("found 4, but the number of processes is 2")));
}

TEST_F(ParallelRunThreaded, AnErrorOfOneEndsAll) {
  const auto throw_at = [](int failing) {
    return [failing](TrainOptions& options, int rank) {
      options.checkpoint_requested = [=, step = 0]() mutable {
        if (rank == failing && ++step == 3) fail("the disk is on fire");
        return false;
      };
    };
  };
  for (const int failing : {0, 1}) {
    const std::string name = "failed" + std::to_string(failing);
    const std::vector<std::string> errors =
        run(name, tiny_train_config(), {.processes = 2, .change = throw_at(failing)});
    EXPECT_THAT(errors, Each(HasSubstr("the disk is on fire")));
    EXPECT_THAT(errors[static_cast<size_t>(1 - failing)], HasSubstr("process " + std::to_string(failing)));
  }
  // What cannot be read by one cannot be trained by the others.
  const auto unreadable = [&](TrainConfig config, int rank) {
    if (rank == 1) config.data.path = "/not/there";
    return config;
  };
  const TrainConfig readable = tiny_train_config(testing::learn_text((folder_ / "text").string(), "10"));
  EXPECT_THAT(run("failed", readable, {.processes = 2, .config_of = unreadable}), Each(HasSubstr("/not/there")));
}

// What one process throws is thrown by all, as an error of the same kind.
TEST_F(ParallelRunThreaded, AnErrorOfOneIsToldToTheOthers) {
  for (const int failing : {0, 1, 2}) {
    std::array<std::string, 3> caught;
    const std::vector<std::string> errors = testing::run_together(3, [&](Communicator& communicator) {
      Processes processes(&communicator);
      EXPECT_EQ(processes.together([&] { return communicator.rank(); }), communicator.rank());
      try {
        processes.together([&] {
          if (communicator.rank() == failing) throw UsageError("no such file");
        });
      } catch (const UsageError& error) {
        caught[static_cast<size_t>(communicator.rank())] = error.what();
      }
    });
    EXPECT_THAT(errors, Each(""));
    for (int rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(caught[static_cast<size_t>(rank)],
                rank == failing ? "no such file" : fmt::format("process {}: no such file", failing));
    }
  }
}

TEST_F(ParallelRunThreaded, ASampleIsThatOfTheFirstProcess) {
  const std::string path = (folder_ / "text").string();
  std::vector<std::string> settings = testing::learn_text(path, "10");
  settings.push_back("trainer.sample={prompt: ab, tokens: 5, every: 5}");
  settings.push_back("trainer.ema=0.5");
  expect_run("sample", tiny_train_config(settings), {.processes = 2});
}

}  // namespace
}  // namespace heddle::parallel_run_test
