// What a training run tells about itself, and the interface of those who listen.           docs/training.md#loggers
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>

#include "core/runtime/device.h"
#include "core/runtime/memory_stats.h"
#include "core/tensor/dtype.h"
#include "trainers/evaluation_history.h"

namespace heddle {

// The run is ready for its first step, or for the step after those of a checkpoint.
struct StartEvent {
  std::filesystem::path folder;                     // the run folder
  std::string config;                               // name of the config
  std::string program;                              // name and version of the program
  std::optional<std::filesystem::path> checkpoint;  // what the run continues from
  int64_t step = 0;                                 // how many steps are done already
  int64_t steps = 0;                                // of the whole run
  int64_t parameters = 0;                           // numbers that are trained
  DType dtype = DType::float32;                     // of the computation
  int64_t batch_size = 0;                           // sequences in one step
  int64_t sequence_length = 0;                      // tokens in one sequence
  int64_t checkpoint_every = 0;                     // steps; 0: only after the last
  int64_t skip_nonfinite = 0;                       // steps in a row that may be left out
  Device device;
  std::string device_name;  // of a GPU, as its driver has it
  int threads = 1;          // on a CPU
  int processes = 1;        // that train together
};

// An optimizer step was taken, or left out because its numbers were not finite.
struct StepEvent {
  int64_t step = 0;  // from 1
  int64_t steps = 0;
  int64_t tokens = 0;          // in this step
  int64_t total_tokens = 0;    // in all steps up to this one
  double loss = 0.0;           // nats per token
  double gradient_norm = 0.0;  // before clipping
  double learning_rate = 0.0;
  int64_t skipped_steps = 0;       // of the run so far, this one included, that trainer.skip_nonfinite left out
  double seconds = 0.0;            // spent in the steps since the start; evaluations and checkpoints are not counted
  double elapsed = 0.0;            // seconds since the start, with all that happened between the steps
  size_t peak_bytes = 0;           // the most memory that was allocated at one time
  CategoryBytes category_peaks{};  // the most of each category alone
};

// The model was evaluated after this step.
struct EvaluationEvent {
  int64_t step = 0;
  double loss = 0.0;                                           // nats per token
  double accuracy = std::numeric_limits<double>::quiet_NaN();  // NaN where there are no answers to be right or wrong
  bool is_text = false;                                        // a token is a byte of text
  double bits_per_byte = std::numeric_limits<double>::quiet_NaN();  // NaN where tokens are no text
};

// A checkpoint was written.
struct CheckpointEvent {
  int64_t step = 0;
  std::filesystem::path path;
};

// A text was generated.
struct SampleEvent {
  int64_t step = 0;
  std::string text;      // as a terminal can show it, the prompt included
  bool is_last = false;  // it is the one at the end, which the caller of train() gets, too
};

// Steps were measured kernel by kernel (trainer.profile).
struct ProfileEvent {
  int64_t step = 0;             // the last of them
  std::string tables;           // where the time goes, as lines for a terminal
  std::filesystem::path trace;  // the file that was written; empty: none
};

// No further step follows: all are done, or the run was asked to stop.
struct EndEvent {
  bool finished = false;  // false: stopped on request, after writing `checkpoint`
  int64_t start = 0;      // steps that were done before this start
  int64_t step = 0;
  int64_t steps = 0;
  int64_t tokens = 0;        // in the steps since the start
  int64_t total_tokens = 0;  // in all steps up to the last one
  double seconds = 0.0;      // as in StepEvent
  double elapsed = 0.0;      // as in StepEvent
  size_t peak_bytes = 0;
  std::optional<EvaluationEvent> evaluation;    // of the last step
  std::optional<EvaluationHistory::Best> best;  // of all evaluations of the run
  std::filesystem::path checkpoint;             // of the last step
};

// A listener overrides the functions of the events that it wants to hear. All are called from the thread of train(), in
// the order of what happens; an exception ends the run.
class Logger {
 public:
  virtual ~Logger() = default;

  virtual void start(const StartEvent&) {}
  virtual void step(const StepEvent&) {}
  virtual void evaluation(const EvaluationEvent&) {}
  virtual void checkpoint(const CheckpointEvent&) {}
  virtual void end(const EndEvent&) {}
  virtual void profile(const ProfileEvent&) {}
  virtual void sample(const SampleEvent&) {}  // between steps, and after the end
  // A line that a user should see, such as the reason why a checkpoint is skipped.
  virtual void note(const std::string&) {}
  // Whoever keeps a file brings it up to date, here alone. This is called before a checkpoint is written, so that no
  // file ends before the checkpoint does, and after it, every ten seconds, after evaluations, samples and the end, and
  // before a NonFinite leaves train(). When it throws NoSpace (core/io/disk_space.h), the checkpoint is not written,
  // the run goes on, and the next call is to write what is missing.
  virtual void flush() {}
};

}  // namespace heddle
