// The folder of a training run: config.yaml, metrics.csv, tokenizer.model, checkpoints/step_N.     docs/training.md
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "trainers/logging/note.h"
#include "trainers/parallel/processes.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/run_tokenizer.h"
#include "trainers/train_config.h"

namespace heddle {

// What a run trains: a config, whose layers the registry knows, on data.
struct RunSubject {
  const TrainConfig& config;
  const Registry& registry;
  DataIdentity data;
  const Tokenizer* tokenizer = nullptr;  // of the data; nullptr: they are no text
};

// The run folder that a config file belongs to: RUN for RUN/config.yaml. Nothing for a config that stands for itself.
std::optional<std::filesystem::path> run_folder_of(const std::filesystem::path& config);

// The files that a run writes in its folder: those of fixed names, there or not yet, and those that are there,
// each once.
std::vector<std::filesystem::path> run_files(const std::filesystem::path& folder);

// With write access the folder is made when it is missing, and locked: a second process that opens it so gets an Error.
// One that was made and is still empty at the end, since the run could not start, is removed, its parents are not.
// What a killed run left half-written is removed. With read access, of further processes of the same run, nothing is
// changed.
class RunFolder {
 public:
  enum class Access { write, read };
  explicit RunFolder(std::filesystem::path path, Access access = Access::write);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path config() const { return path_ / "config.yaml"; }
  std::filesystem::path metrics() const { return path_ / "metrics.csv"; }
  std::filesystem::path tokenizer() const { return path_ / kTokenizerFile; }
  std::filesystem::path checkpoints() const { return path_ / "checkpoints"; }

  // Returns the checkpoint to continue from, or nullopt for a run that starts from the beginning. `resume` is one of
  //   "auto"  The newest whole one, if there is any. It must have the same config and the same data, so that the run
  //           continues as if it had never stopped. When there are checkpoints but none is whole, that is an Error.
  //   "none"  The beginning; a UsageError when the folder holds checkpoints already.
  //   PATH    That checkpoint, or the newest of that run folder; config and data may differ, which is noted. A
  //           UsageError when it would leave later checkpoints, or those of another run, behind in this folder, or
  //           when it was trained by another type of optimizer.
  // Another tokenizer than that of the checkpoint is a UsageError in either case.
  std::optional<Checkpoint> choose(const std::string& resume, const RunSubject& subject, const Note& note) const;

  // Collective: what check_config(), choose() and check_tokenizer() say to the first process.
  std::optional<Checkpoint> choose_together(Processes& processes, const std::string& resume, const RunSubject& subject,
                                            const Note& note) const;

  // Writes config.yaml. A file of that name that no run has written is somebody's own, and a UsageError.
  void write_config(const std::string& yaml) const;
  // Throws what write_config() would, and writes nothing.
  void check_config() const;

  // Writes tokenizer.model, the copy of a tokenizer's file; other tokenizers have none. A file of that name that holds
  // something else is a UsageError: it is never replaced.
  void write_tokenizer(const RunSubject& subject) const;
  // Throws what write_tokenizer() would, and writes nothing.
  void check_tokenizer(const RunSubject& subject) const;

 private:
  std::optional<Checkpoint> choose_newest(const RunSubject& subject, const Note& note) const;
  Checkpoint choose_path(const std::string& resume, const RunSubject& subject, const Note& note) const;

  std::filesystem::path path_;
  int lock_ = -1;
  bool is_new_ = false;  // made for this run
};

}  // namespace heddle
