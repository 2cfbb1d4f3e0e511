// The training loop: batches, steps, evaluation, checkpoints, and a sample at the end.               docs/training.md
// Whoever wants to know how it goes is a Logger; the console and metrics.csv are two of them.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/distributed/communicator.h"
#include "trainers/evaluate.h"
#include "trainers/logging/logger.h"
#include "trainers/train_step.h"

namespace heddle {

struct TrainOptions {
  std::filesystem::path folder;  // the run folder
  std::string resume = "auto";   // see RunFolder::choose
  // A run, a checkpoint or an exported model whose weights a new run starts from; empty: random ones.
  std::filesystem::path init_from;
  bool is_temporary = false;       // the folder is removed afterwards: no message sends the user there
  std::string program = "heddle";  // name and version, kept in checkpoints
  std::FILE* log = stderr;         // where the ConsoleLogger writes; nullptr: there is none
  std::vector<Logger*> loggers;    // hear every event, after metrics.csv and the console; must outlive train()
  // The processes that train together, of which this is one; nullptr: it is alone. Then all of them call train() with
  // the same config, and the first alone writes, to the folder and to loggers. All take part in every stop: it is
  // enough that one of them is asked.
  Communicator* communicator = nullptr;
  // Asked before every step. When it says yes, the run writes a checkpoint, if there is none of its last step, and
  // ends. It is also asked while the text at the end is written.
  std::function<bool()> stop_requested = [] { return false; };
  // Asked after every step. When it says yes, the run writes a checkpoint and goes on.
  std::function<bool()> checkpoint_requested = [] { return false; };
};

struct TrainResult {
  bool finished = false;     // false: stopped on request, or by its time limit
  bool out_of_time = false;  // stopped by trainer.hours
  int64_t step = 0;
  std::optional<Evaluation> evaluation;  // of the last step, when this call made it
  std::string sample;                    // text, when the config asks for one and the run is finished
};

// Trains to the last step of the config, or continues to it. A run that was stopped or killed and continues ends with
// the same bytes in model.safetensors and metrics.csv as one that was not. `registry` knows the layers of the config.
// Throws ConfigError, UsageError, NonFinite, or Error for what fails on the way; what fails on one of several processes
// ends all of them. Once a run has started, a full disk ends it only when the last checkpoint cannot be written:
// NoSpace. When the memory of a context that records (AllocatorOptions::trace_capacity) runs out, out_of_memory.pickle
// in the run folder shows what it was taken by.
TrainResult train(Context& context, const TrainConfig& config, const TrainOptions& options,
                  const Registry& registry = built_in_registry());

}  // namespace heddle
