// Whole trainings in a folder of their own.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "trainers/trainer.h"

namespace heddle::testing {

class TrainerTest : public ::testing::Test {
 protected:
  TrainerTest() : log_(std::fopen((folder_ / "log").c_str(), "w")) {}
  ~TrainerTest() override { std::fclose(log_); }

  // Stops after `steps` steps of this call; 0: does not.
  TrainResult run(const std::string& name, const TrainConfig& config, int64_t steps = 0,
                  const std::string& resume = "auto") {
    Context context(Device{}, {.threads = 1});
    TrainOptions options;
    options.folder = folder_ / name;
    options.resume = resume;
    options.log = log_;
    options.loggers = loggers_;
    options.init_from = init_from_;
    options.stop_requested = [taken = int64_t{0}, steps]() mutable { return steps > 0 && taken++ == steps; };
    return train(context, config, options);
  }
  std::string file(const std::string& path) { return read_file(folder_ / path); }
  std::string log() {
    std::fflush(log_);
    return file("log");
  }

  TempFolder folder_;
  std::FILE* log_;
  std::vector<Logger*> loggers_;
  std::filesystem::path init_from_;
};

}  // namespace heddle::testing
