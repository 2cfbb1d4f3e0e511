// Checkpoints: RUN/checkpoints/step_N/{model.safetensors, optimizer.safetensors, state.json}, and average.safetensors
// where an average of the weights is kept.                                                          docs/training.md
//
// A step_N folder is there whole or not at all; state.json holds size and checksum of the other files and a checksum of
// itself, so damage is found before anything is loaded.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/io/safetensors.h"
#include "trainers/logging/note.h"
#include "trainers/optimizer.h"
#include "trainers/parallel/data_parallel.h"
#include "trainers/run/checkpoint_state.h"
#include "trainers/weight_average.h"

namespace heddle {

// A checkpoint whose files are whole.
struct Checkpoint {
  std::filesystem::path path;
  CheckpointState state;
};

// Which checkpoints of a run stay.
struct KeptCheckpoints {
  int64_t newest = 3;  // how many of the last
  bool best = true;    // and the one of the best evaluation
  Note note = {};      // is called for each old one that cannot be removed; without it that is an error
};

// Writes `folder`/step_N under a hidden name, syncs it and renames it into place. Then those that are not to
// be kept are removed, and where the best is, the symbolic link `folder`/best leads to it. `folder` is RUN/checkpoints
// and is made when it is missing; it must have one writer.
// Throws NoSpace, before anything is written where that is known, when the disk has not enough room; then, as after any
// other failure, the checkpoints are those that were there before, or the new one is whole beside them.
//
// With `parallel` all processes call it, and the first one writes. What is written does not depend on their number.
// When writing fails, the call throws on all of them.
std::filesystem::path write_checkpoint(Context& context, const std::filesystem::path& folder,
                                       const ParameterSet& parameters, const Optimizer& optimizer,
                                       const CheckpointState& state, const KeptCheckpoints& kept,
                                       const WeightAverage* average = nullptr, DataParallel* parallel = nullptr);

// Removes the checkpoints that are not to be kept beside that of `state`. Only those up to its step that have all their
// files are counted, so that damaged or later ones never take the place of a whole one; later ones are left alone. The
// best that was written is kept, and `folder`/best leads to it.
void remove_older_checkpoints(const std::filesystem::path& folder, const CheckpointState& state,
                              const KeptCheckpoints& kept);

// Checks every file. Throws Error saying which file is wrong, what was found and what was expected.
Checkpoint open_checkpoint(const std::filesystem::path& path);

// The name "step_N" of the folder of a checkpoint, and N of such a name. Others are no checkpoints of ours.
std::string checkpoint_name(int64_t step);
std::optional<int64_t> step_of_checkpoint(std::string_view name);

// Throws Error where `path` is a symbolic link that leads to no folder, as one to a disk that is not mounted.
void check_leads_to_a_folder(const std::filesystem::path& path);

// A folder step_N, which may be damaged.
struct CheckpointFolder {
  int64_t step = 0;
  std::filesystem::path path;
};
// The oldest comes first; there are none where `folder` does not exist. Throws Error when it is something else than a
// folder, or leads to none.
std::vector<CheckpointFolder> list_checkpoints(const std::filesystem::path& folder);

// The newest whole checkpoint of a folder RUN/checkpoints. Notes of each newer one why it is skipped.
std::optional<Checkpoint> newest_checkpoint(const std::filesystem::path& folder, const Note& note);

// The newest checkpoint of a run folder, or the checkpoint itself. Throws UsageError when the path is neither,
// and Error when none is whole.
Checkpoint find_checkpoint(const std::filesystem::path& run_or_checkpoint, const Note& note);

// Whether the checkpoint is one of this folder, as its path names it or behind links: `best` is a link, and so may a
// step_N be, which was moved to another disk.
bool is_in_folder(const Checkpoint& checkpoint, const std::filesystem::path& folder);

// The master weights, each under the name of its parameter.
std::vector<NamedTensor> masters(const ParameterSet& parameters);

// Of any floating dtype. Throw UsageError when names or shapes do not fit the model, and Error when what an optimizer
// keeps is not what this one keeps.
void load_parameters(Context& context, const Checkpoint& checkpoint, ParameterSet& parameters);
void load_optimizer(Context& context, const Checkpoint& checkpoint, const Optimizer& optimizer);

// Whether the checkpoint holds an average of the weights.
bool has_average(const Checkpoint& checkpoint);
void load_average(Context& context, const Checkpoint& checkpoint, const WeightAverage& average);
// Loads the average as the parameters where there is one, else what load_parameters() does: the weights that an
// evaluation of the run was of.
void load_evaluated_parameters(Context& context, const Checkpoint& checkpoint, ParameterSet& parameters);

// Says how the data now differ from those that a checkpoint was trained on; "" when they do not, or when it is not
// known.
std::string data_difference(const DataIdentity& now, const Checkpoint& checkpoint);

// Removes the checkpoints that a killed process left half-written or half-removed. Nobody else may be writing into the
// folder.
void remove_leftovers(const std::filesystem::path& folder);

}  // namespace heddle
