// What a training run would take, found out without training.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

#include "core/autograd/parameter.h"
#include "core/runtime/memory_stats.h"
#include "trainers/logging/note.h"
#include "trainers/train_config.h"

namespace heddle {

// Of an optimizer step.
int64_t tokens_per_step(const TrainerConfig& trainer);
// Floating-point operations of the matrix products of a step: 6 for each number of a weight matrix and each token, 2
// forward and 4 backward. Rows of the embedding are looked up and cost none; what model.recompute computes once more is
// not counted. Source: Kaplan et al., "Scaling laws for neural language models", arXiv:2001.08361, section 2.1.
double operations_per_step(const TrainConfig& config, const ParameterSet& parameters);

struct DryRun {
  int64_t parameters = 0;
  size_t peak_bytes = 0;                                   // allocated on the device at the peak of a step: exact; of
                                                           // several processes that of the first
  std::array<size_t, kMemoryCategories> category_peaks{};  // the peak of each category alone
  double operations_per_step = 0.0;                        // of the matrix products
  int64_t tokens_per_step = 0;
  int64_t files = 0;        // that would be read
  uint64_t file_bytes = 0;  // of all of them
  int64_t evaluated = 0;    // validation sequences of one evaluation
  int64_t step = 0;         // after which the run would go on; 0: it starts
};

// As those of train() (trainers/trainer.h). An empty folder: nothing is looked for.
struct DryRunOptions {
  int processes = 1;
  std::filesystem::path folder = {};
  std::string resume = "auto";
  std::string init_from = {};
  Note note = [](const std::string&) {};
};

// Takes two steps on device meta, which counts memory and computes nothing, opens the data, and looks for what the run
// would start from. Throws what training would throw before its first step.
DryRun dry_run(const TrainConfig& config, const DryRunOptions& options = {},
               const Registry& registry = built_in_registry());

}  // namespace heddle
