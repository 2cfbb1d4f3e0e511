#include "trainers/logging/console_logger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"

namespace heddle::console_logger_test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// What a logger that is told something writes where there is no terminal.
std::string written(const std::function<void(ConsoleLogger& logger)>& tell) {
  const testing::TempFolder folder;
  const std::string path = (folder / "log").string();
  std::FILE* out = std::fopen(path.c_str(), "w");
  {
    ConsoleLogger logger(out);
    tell(logger);
  }
  std::fclose(out);
  return read_file(path);
}

StartEvent start_event() {
  StartEvent event;
  event.folder = "runs/toy";
  event.steps = 100;
  event.parameters = 1234567;
  event.dtype = DType::bfloat16;
  event.batch_size = 32;
  event.sequence_length = 256;
  event.threads = 3;
  return event;
}

TEST(ConsoleLoggerTest, TheStartSaysWhatIsTrainedAndWhere) {
  const std::string line = "1.23 M parameters, bfloat16, batch 32 x 256 on cpu with 3 threads; run folder runs/toy\n";
  StartEvent event = start_event();
  EXPECT_EQ(written([&](ConsoleLogger& logger) { logger.start(event); }), line);
  event.checkpoint = "runs/toy/checkpoints/step_100";
  event.step = 100;
  EXPECT_EQ(
      written([&](ConsoleLogger& logger) { logger.start(event); }),
      "resumed from runs/toy/checkpoints/step_100\n" + line + "nothing left to do: the run is at step 100 of 100\n");
  event = start_event();
  event.device = {DeviceType::cuda, 1};
  EXPECT_EQ(written([&](ConsoleLogger& logger) { logger.start(event); }),
            "1.23 M parameters, bfloat16, batch 32 x 256 on cuda:1; run folder runs/toy\n");
}

TEST(ConsoleLoggerTest, FewParametersAreShownInFull) {
  StartEvent event = start_event();
  for (const auto& [count, shown] : {std::pair<int64_t, const char*>{848, "848 parameters, "},
                                     {99999, "99999 parameters, "},
                                     {100000, "0.10 M parameters, "},
                                     {1234567890, "1234.57 M parameters, "}}) {
    event.parameters = count;
    EXPECT_THAT(written([&](ConsoleLogger& logger) { logger.start(event); }), ::testing::StartsWith(shown));
  }
}

TEST(ConsoleLoggerTest, OfManyStepsTheFirstAndTheLastAreShownAtOnce) {
  const std::string text = written([](ConsoleLogger& logger) {
    for (int64_t step = 1; step <= 100; ++step) {
      logger.step({.step = step,
                   .steps = 100,
                   .tokens = 64,
                   .loss = 2.0,
                   .seconds = 0.4 * static_cast<double>(step),
                   .elapsed = 0.5 * static_cast<double>(step),
                   .peak_bytes = size_t{3} << 20});
    }
  });
  EXPECT_THAT(text, ::testing::StartsWith("step 1/100  loss 2.0000  0.2 k tokens/s  ETA 0:50  peak 3.0 MiB\n"));
  EXPECT_THAT(text, ::testing::EndsWith("\nstep 100/100  loss 2.0000  0.2 k tokens/s  ETA 0:00  peak 3.0 MiB\n"));
  EXPECT_THAT(text, Not(HasSubstr("\r")));
  EXPECT_LT(std::count(text.begin(), text.end(), '\n'), 6);
}

// The rate and the time left are those of the steps since the start.
TEST(ConsoleLoggerTest, StepsBeforeTheStartDoNotCount) {
  StartEvent start = start_event();
  start.step = 60;
  const std::string text = written([&](ConsoleLogger& logger) {
    logger.start(start);
    logger.step(
        {.step = 61, .steps = 100, .tokens = 4000, .loss = 1.0, .seconds = 2.0, .elapsed = 3.0, .peak_bytes = 512});
  });
  EXPECT_THAT(text, HasSubstr("step 61/100  loss 1.0000  2.0 k tokens/s  ETA 1:57  peak 512 B\n"));
}

TEST(ConsoleLoggerTest, EvaluationsAreOfTextOrOfAnswers) {
  EXPECT_EQ(written([](ConsoleLogger& logger) {
              logger.evaluation({.step = 20, .loss = 1.25, .is_text = true});
              logger.evaluation({.step = 40, .loss = 0.5, .accuracy = 0.875});
              logger.note("a line");
            }),
            "step 20: validation loss 1.2500 nats/byte (1.803 bits/byte)\n"
            "step 40: validation loss 0.5000 nats/token, accuracy 87.50 %\n"
            "note: a line\n");
}

TEST(ConsoleLoggerTest, NansAreShownWithoutTheirSign) {
  const double nan = std::copysign(std::nan(""), -1.0);
  EXPECT_EQ(written([&](ConsoleLogger& logger) {
              logger.step({.step = 1, .steps = 1, .tokens = 1000, .loss = nan, .seconds = 1.0, .peak_bytes = 512});
              logger.evaluation({.step = 1, .loss = nan, .is_text = true});
            }),
            "step 1/1  loss nan  1.0 k tokens/s  ETA 0:00  peak 512 B\n"
            "step 1: validation loss nan nats/byte (nan bits/byte)\n");
}

TEST(ConsoleLoggerTest, TheEndIsASummaryOrSaysHowToContinue) {
  StartEvent start = start_event();
  start.config = "toy";
  start.program = "heddle 1.2.3";
  EndEvent event;
  event.finished = true;
  event.start = 10;
  event.step = 40;
  event.steps = 40;
  event.tokens = 300000;
  event.seconds = 75.0;
  event.elapsed = 100.0;  // with evaluations
  event.peak_bytes = size_t{5} << 20;
  event.evaluation = {.step = 40, .loss = 0.5, .accuracy = 0.875};
  event.checkpoint = "runs/toy/checkpoints/step_40";
  event.best = EvaluationHistory::Best{.step = 20, .loss = 0.25, .accuracy = 0.9375};
  const auto end_of = [&] {
    const std::string text = written([&](ConsoleLogger& logger) {
      logger.start(start);
      logger.end(event);
    });
    return text.substr(text.find('\n') + 1);
  };
  EXPECT_EQ(end_of(),
            "config      toy (heddle 1.2.3)\n"
            "device      cpu with 3 threads\n"
            "model       1234567 parameters, bfloat16\n"
            "training    steps 11 to 40 of 40, batch 32 x 256, 0.3 M tokens\n"
            "time        1:40, 1:15 of it in steps: 4.0 k tokens/s\n"
            "memory      5.0 MiB at the peak\n"
            "best loss   0.2500 nats/token, accuracy 93.75 % in validation after step 20\n"
            "last loss   0.5000 nats/token, accuracy 87.50 % in validation after step 40\n"
            "run folder  runs/toy\n");
  start.threads = 1;
  EXPECT_THAT(end_of(), HasSubstr("device      cpu with 1 thread\n"));
  start.device = {DeviceType::cuda, 1};
  start.device_name = "NVIDIA H100";
  event.evaluation->is_text = true;
  event.evaluation->accuracy = event.best->accuracy = std::nan("");
  EXPECT_THAT(end_of(), HasSubstr("device      cuda:1, NVIDIA H100\n"));
  EXPECT_THAT(end_of(), HasSubstr("best loss   0.2500 nats/byte (0.361 bits/byte) in validation after step 20\n"));
  event.evaluation->is_text = false;  // pieces of text
  event.evaluation->bits_per_byte = 1.5;
  event.best->bits_per_byte = 1.25;
  EXPECT_THAT(end_of(), HasSubstr("best loss   0.2500 nats/token (1.250 bits/byte) in validation after step 20\n"
                                  "last loss   0.5000 nats/token (1.500 bits/byte) in validation after step 40\n"));
  event.finished = false;
  event.steps = 100;
  EXPECT_EQ(
      written([&](ConsoleLogger& logger) { logger.end(event); }),
      "stopped after step 40 of 100; to go on from runs/toy/checkpoints/step_40, train again with the same config "
      "and --resume auto\n");
  event.finished = true;
  event.evaluation.reset();
  EXPECT_EQ(written([&](ConsoleLogger& logger) { logger.end(event); }), "");
}

TEST(ConsoleLoggerTest, AProfileIsShown) {
  EXPECT_EQ(written([](ConsoleLogger& logger) {
              logger.profile({.step = 3, .tables = "a table\n", .trace = "trace.json"});
              logger.profile({.step = 3, .tables = "another\n", .trace = {}});
            }),
            "a table\n\ntrace written to trace.json\nanother\n\n");
}

TEST(ConsoleLoggerTest, SamplesOnTheWayAreShown) {
  EXPECT_EQ(written([](ConsoleLogger& logger) {
              logger.sample({.step = 20, .text = "And it"});
              logger.sample({.step = 40, .text = "the caller shows it", .is_last = true});
            }),
            "sample after step 20:\nAnd it\n");
}

// A disk that is full, or a reader that has gone, ends no training.
TEST(ConsoleLoggerTest, WhatCannotBeWrittenIsLost) {
  std::FILE* full = std::fopen("/dev/full", "w");
  if (full == nullptr) GTEST_SKIP() << "there is no /dev/full";
  {
    ConsoleLogger logger(full);
    EXPECT_NO_THROW(logger.start(start_event()));
    EXPECT_NO_THROW(logger.step({.step = 1, .steps = 2}));
    EXPECT_NO_THROW(logger.note("a line"));
  }
  std::fclose(full);
}

TEST(ConsoleLoggerTest, Durations) {
  EXPECT_EQ(format_duration(0.4), "0:00");
  EXPECT_EQ(format_duration(65), "1:05");
  EXPECT_EQ(format_duration(7439), "2:03:59");
}

}  // namespace
}  // namespace heddle::console_logger_test
