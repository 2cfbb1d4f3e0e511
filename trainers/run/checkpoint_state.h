// What a checkpoint holds beside its tensors, and its file state.json.                              docs/training.md
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "core/io/atomic_file.h"
#include "trainers/data/data_identity.h"
#include "trainers/evaluation_history.h"
#include "trainers/loss_scale.h"
#include "trainers/skipped_steps.h"

namespace heddle {

// How much training data a run has used.
struct TrainedOn {
  int64_t sequences = 0;
  int64_t tokens = 0;
};

// What tells the model of a tokenizer from others.
struct TokenizerIdentity {
  std::string name;   // as data.tokenizer has it
  FileDigest digest;  // of the file
};

// What a checkpoint holds beside its tensors. Checkpoints of earlier versions lack what is optional here.
struct CheckpointState {
  int64_t step = 0;
  uint64_t seed = 0;
  std::string config;   // the resolved config, YAML
  std::string program;  // "heddle 0.1.0"
  std::optional<TrainedOn> trained_on = {};
  std::optional<DataIdentity> data = {};            // of the data set that it was trained on
  std::optional<TokenizerIdentity> tokenizer = {};  // of pieces; none for bytes and ids, too
  EvaluationHistory evaluations = {};
  std::optional<LossScale> loss_scale = {};
  SkippedSteps skipped = {};
};

// Size and checksum of files by name.
using FileDigests = std::map<std::string, FileDigest>;

// Writes state.json, whole or not at all: the state, the digests of the other files of the checkpoint, and a checksum
// over all of it. Throws as write_file().
void write_state(const std::filesystem::path& path, const CheckpointState& state, const FileDigests& files);

struct StateFile {
  CheckpointState state;
  FileDigests files;
};
// Throws Error for a file that is truncated or damaged, or of another format.
StateFile read_state(const std::filesystem::path& path);

}  // namespace heddle
