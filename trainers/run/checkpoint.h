// Checkpoints: RUN/checkpoints/step_N/{model.safetensors, optimizer.safetensors, state.json}.       docs/training.md
//
// A step_N folder is there whole or not at all; state.json holds size and checksum of the other two and a checksum of
// itself, so damage is found before anything is loaded.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/autograd/parameter.h"
#include "trainers/optimizer.h"

namespace heddle {

// What a checkpoint says beside its tensors.
struct CheckpointState {
  int64_t step = 0;
  uint64_t seed = 0;
  std::string config;   // the resolved config, YAML
  std::string program;  // "heddle 0.1.0"
};

// One whose files are whole.
struct Checkpoint {
  std::filesystem::path path;
  CheckpointState state;
};

// Writes `folder`/step_N aside, syncs it and renames it into place; then removes all but the newest `keep`.
// `folder` is RUN/checkpoints and is made when missing. One writer a folder.
std::filesystem::path write_checkpoint(Context& context, const std::filesystem::path& folder,
                                       const ParameterSet& parameters, const AdamW& optimizer,
                                       const CheckpointState& state, int64_t keep);

// Checks every file. Throws Error saying which file is wrong, what was found and what was expected.
Checkpoint open_checkpoint(const std::filesystem::path& path);

// step_N folders, oldest first.
struct CheckpointFolder {
  int64_t step = 0;
  std::filesystem::path path;
};
std::vector<CheckpointFolder> list_checkpoints(const std::filesystem::path& folder);

// Told to the user as it happens.
using Note = std::function<void(const std::string& line)>;

// The newest whole checkpoint of a RUN/checkpoints folder; says of each newer one why it was passed over.
std::optional<Checkpoint> newest_checkpoint(const std::filesystem::path& folder, const Note& note);

// Of a run folder the newest checkpoint, or the checkpoint itself. Throws Error when it is neither.
Checkpoint find_checkpoint(const std::filesystem::path& run_or_checkpoint, const Note& note);

// Throw Error when names or shapes do not fit the model.
void load_parameters(Context& context, const Checkpoint& checkpoint, ParameterSet& parameters);
void load_optimizer(Context& context, const Checkpoint& checkpoint, const AdamW& optimizer);

// What a killed process left half-written or half-removed. Only while nobody else writes into the folder.
void remove_leftovers(const std::filesystem::path& folder);

}  // namespace heddle
