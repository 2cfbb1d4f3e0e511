// `heddle train` under SIGKILL: whenever it comes, the run that goes on ends with the bytes of one that nobody
// disturbed.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "core/tensor/random.h"
#include "tests/cli/process.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using std::chrono::duration;
using std::chrono::steady_clock;
using testing::Process;

double seconds_since(steady_clock::time_point start) { return duration<double>(steady_clock::now() - start).count(); }

class KillsTest : public ::testing::Test {
 protected:
  KillsTest() { std::ofstream(config_) << testing::tiny_config(); }

  std::vector<std::string> train(const std::string& out, const std::vector<std::string>& settings) const {
    std::vector<std::string> arguments = {"train", config_.string(), "--out", (folder_ / out).string(), "--device",
                                          "cpu",   "--threads",      "1"};
    for (const std::string& setting : settings) arguments.insert(arguments.end(), {"--set", setting});
    return arguments;
  }

  // Trains without a disturbance and returns the seconds that it took.
  double train_whole(const std::string& name, const std::vector<std::string>& settings) const {
    const auto start = steady_clock::now();
    const testing::Finished whole = testing::run_heddle(train(name, settings));
    EXPECT_EQ(whole.code, 0) << whole.err;
    return seconds_since(start);
  }

  // Trains to the end. `next_kill` gives the seconds until the next kill, and nothing more than infinity says that
  // there is none. Returns the number of kills that the training did not escape.
  int train_under_kills(const std::string& name, const std::vector<std::string>& settings,
                        const std::function<double()>& next_kill) const {
    for (int kills = 0;;) {
      Process process(train(name, settings));
      const double seconds = next_kill();
      const auto start = steady_clock::now();
      while (process.running() && seconds_since(start) < seconds) {
        std::this_thread::sleep_for(std::chrono::microseconds(seconds < 1.0 ? 50 : 5000));
      }
      process.send(SIGKILL);
      const int code = process.wait();
      if (code == 0) return kills;
      EXPECT_EQ(code, -SIGKILL) << process.err();
      if (code != -SIGKILL) return kills;
      ++kills;
    }
  }

  // The files of a run and their contents, and where its links lead.
  std::map<std::string, std::string> contents(const std::string& name) const {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder_ / name)) {
      const std::string path = entry.path().lexically_relative(folder_ / name).string();
      if (entry.is_symlink()) {
        files[path] = fs::read_symlink(entry.path()).string();
      } else if (entry.is_regular_file()) {
        files[path] = read_file(entry.path());
      }
    }
    return files;
  }

  // All files are those of the run `whole`, and nothing half-written is beside them.
  void expect_the_files_of(const std::string& whole, const std::string& name) const {
    const std::map<std::string, std::string> expected = contents(whole), found = contents(name);
    EXPECT_TRUE(expected.contains("metrics.csv"));
    for (const auto& [path, bytes] : expected) {
      EXPECT_TRUE(found.contains(path)) << path;
      EXPECT_TRUE(found.contains(path) && found.at(path) == bytes) << path << " differs";
    }
    for (const auto& [path, bytes] : found) EXPECT_TRUE(expected.contains(path)) << path << " is left";
  }

  testing::TempFolder folder_;
  fs::path config_ = folder_ / "tiny.yaml";
};

constexpr double kNever = INFINITY;

// tests/interrupt.sh runs it with HEDDLE_KILLS=1000.
TEST_F(KillsTest, SurvivesKillsAtRandomMoments) {
  const char* wanted = std::getenv("HEDDLE_KILLS");
  const int wanted_kills = wanted != nullptr ? std::atoi(wanted) : 20;
  const std::vector<std::string> settings = {"trainer.checkpoint_every=2", "trainer.eval_every=3"};
  const double seconds = train_whole("whole", settings);
  Random random(1, RandomStream::test);
  int kills = 0;
  for (int run = 0; kills < wanted_kills; ++run) {
    const std::string name = fmt::format("killed_{}", run);
    int left = wanted_kills - kills;
    kills +=
        train_under_kills(name, settings, [&] { return left-- > 0 ? seconds * 0.3 * random.next_uniform() : kNever; });
    expect_the_files_of("whole", name);
    fs::remove_all(folder_ / name);
    ASSERT_FALSE(HasFailure());
  }
}

// tests/soak.sh runs it with HEDDLE_SOAK=3600: a training that lasts as long as a sixth of these seconds is killed at
// random moments, 20 seconds apart on average, goes on to its end, and is begun anew until the time is over.
TEST_F(KillsTest, SoaksInKills) {
  const char* wanted = std::getenv("HEDDLE_SOAK");
  const double wanted_seconds = wanted != nullptr ? std::atof(wanted) : 20.0;
  const double mean = std::min(20.0, wanted_seconds / 10.0);
  const auto settings = [](int64_t steps) {
    return std::vector<std::string>{fmt::format("trainer.steps={}", steps), "trainer.checkpoint_every=25",
                                    "trainer.eval_every=40"};
  };
  const double rate = 400.0 / train_whole("trial", settings(400));
  const auto steps = static_cast<int64_t>(std::max(100.0, rate * wanted_seconds / 6.0));
  const auto start = steady_clock::now();
  train_whole("whole", settings(steps));
  Random random(3, RandomStream::test);
  int kills = 0, runs = 0;
  while (seconds_since(start) < wanted_seconds) {
    const std::string name = fmt::format("killed_{}", runs++);
    kills += train_under_kills(name, settings(steps), [&] {
      const double seconds = -mean * std::log(1.0 - random.next_uniform());
      return seconds_since(start) + seconds < wanted_seconds ? seconds : kNever;
    });
    expect_the_files_of("whole", name);
    fs::remove_all(folder_ / name);
    ASSERT_FALSE(HasFailure());
  }
  EXPECT_GT(kills, 0);
  fmt::print("{} trainings of {} steps were killed {} times in {:.0f} s and ended with the bytes of one that was not\n",
             runs, steps, kills, seconds_since(start));
}

}  // namespace
}  // namespace heddle
