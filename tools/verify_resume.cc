#include "tools/verify_resume.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <sstream>
#include <utility>
#include <vector>

#include "core/io/atomic_file.h"
#include "core/io/safetensors.h"
#include "core/io/temporary_folder.h"
#include "core/runtime/message.h"
#include "trainers/trainer.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

// What a step left, by name: "model.safetensors, tensor head.weight" or "state.json".
using Digests = std::map<std::string, FileDigest>;

// The tensors of a file, read part by part.
void digest_tensors(const fs::path& path, Digests& digests) {
  SafetensorsReader reader(path);
  std::vector<char> bytes;
  for (const SafetensorsEntry& entry : reader.entries()) {
    bytes.resize(static_cast<size_t>(entry.end - entry.begin));
    reader.read(entry, bytes.data());
    FileDigest digest;
    extend(digest, bytes.data(), bytes.size());
    digests[fmt::format("{}, tensor {}", path.filename().string(), entry.name)] = digest;
  }
}

// Keeps the digests of every checkpoint.
class CheckpointDigests : public Logger {
 public:
  void checkpoint(const CheckpointEvent& event) override {
    Digests& digests = of_step[event.step];
    for (const fs::directory_entry& entry : fs::directory_iterator(event.path)) {
      if (entry.path().extension() == ".safetensors") {
        digest_tensors(entry.path(), digests);
      } else {
        digests[entry.path().filename().string()] = digest_file(entry.path());
      }
    }
  }

  std::map<int64_t, Digests> of_step;
};

// The rows of a metrics.csv by step.
std::map<int64_t, std::string> rows_of(const fs::path& metrics) {
  std::map<int64_t, std::string> rows;
  std::istringstream file(read_file(metrics));
  std::string line;
  std::getline(file, line);  // the header
  for (int64_t step = 1; std::getline(file, line); ++step) rows[step] = line;
  return rows;
}

// What differs first, by step, then by name; the tensors of a step are the cause of a state and of metrics.
std::optional<std::string> first_difference(const std::map<int64_t, Digests>& whole,
                                            const std::map<int64_t, Digests>& parts,
                                            const std::map<int64_t, std::string>& whole_rows,
                                            const std::map<int64_t, std::string>& parts_rows) {
  for (const auto& [step, expected] : whole) {
    const auto found = parts.find(step);
    if (found == parts.end()) return fmt::format("step {}: no checkpoint after the stop", step);
    for (const auto& [name, digest] : expected) {
      const auto same = found->second.find(name);
      if (same == found->second.end() || same->second != digest) return fmt::format("step {}: {}", step, name);
    }
    const auto row = whole_rows.find(step), other = parts_rows.find(step);
    if (row == whole_rows.end()) continue;
    if (other == parts_rows.end() || row->second != other->second) {
      return fmt::format("step {}: metrics.csv, {} without and {} with a stop", step, row->second,
                         other == parts_rows.end() ? "no row" : other->second);
    }
  }
  if (whole_rows != parts_rows) return "metrics.csv: other rows";
  return std::nullopt;
}

class Verification {
 public:
  Verification(const TrainConfig& config, const VerifyResumeOptions& options, const Registry& registry)
      : config_(config), options_(options), registry_(registry) {
    check_can_be_read_again(config.data, config.node.section("data"));
    TrainerConfig& trainer = config_.trainer;
    trainer.checkpoint_every = 1;
    trainer.keep_checkpoints = 1;
    trainer.keep_best = false;
    trainer.stop_after_no_gain = 0;
    trainer.sample.reset();
    trainer.hours.reset();
    trainer.profile.reset();     // each of the trainings would write its trace
    config_.logging.csv = true;  // its rows are compared
    result_.steps = std::min(options.steps, trainer.steps);
    result_.stop = result_.steps / 2;
    if (result_.stop < 1) throw UsageError("to stop on the way a training needs two steps at least");
  }

  VerifyResumeResult run() {
    CheckpointDigests whole, parts;
    const TemporaryFolder folder("verify_resume");
    if (!train_to(result_.steps, folder.path() / "whole", "without a stop", whole)) return result_;
    const auto whole_rows = rows_of(folder.path() / "whole" / "metrics.csv");
    fs::remove_all(folder.path() / "whole");  // room for the other
    const fs::path run = folder.path() / "parts";
    if (!train_to(result_.stop, run, "then a stop", parts)) return result_;
    if (!train_to(result_.steps, run, "going on from the checkpoint", parts)) return result_;
    result_.finished = true;
    for (const auto& [name, digest] : whole.of_step[result_.steps]) {
      result_.tensors += name.find("tensor ") != std::string::npos ? 1 : 0;
    }
    result_.difference = first_difference(whole.of_step, parts.of_step, whole_rows, rows_of(run / "metrics.csv"));
    return result_;
  }

 private:
  // Trains until `last` steps are done. Returns false when the user ended it.
  bool train_to(int64_t last, const fs::path& folder, const std::string& how, CheckpointDigests& digests) const {
    struct Count : Logger {
      void start(const StartEvent& event) override { step_ = event.step; }
      void step(const StepEvent& event) override { step_ = event.step; }
      int64_t step_ = 0;
    } count;
    if (options_.log != nullptr) print_message(options_.log, fmt::format("to step {}, {}\n", last, how));
    const std::unique_ptr<Context> context = options_.open();
    TrainOptions train_options;
    train_options.folder = folder;
    train_options.is_temporary = true;
    if (!fs::exists(folder / "checkpoints")) train_options.init_from = options_.init_from;
    train_options.log = nullptr;
    train_options.loggers = {&digests, &count};
    train_options.stop_requested = [&] { return count.step_ >= last || options_.stop_requested(); };
    train(*context, config_, train_options, registry_);
    return count.step_ >= last;
  }

  TrainConfig config_;
  const VerifyResumeOptions& options_;
  const Registry& registry_;
  VerifyResumeResult result_;
};

}  // namespace

VerifyResumeResult verify_resume(const TrainConfig& config, const VerifyResumeOptions& options,
                                 const Registry& registry) {
  return Verification(config, options, registry).run();
}

}  // namespace heddle
