// The weights that a new run starts from.                                                        docs/training.md
#pragma once

#include <filesystem>
#include <string>

#include "trainers/logging/note.h"
#include "trainers/run/run_folder.h"

namespace heddle {

// Loads the weights of a run, a checkpoint or an exported model, and says whose they are: "the average of runs/a". A
// tokenizer that is not theirs is noted. Throws Error when they do not fit the model.
std::string init_weights(Context& context, const std::filesystem::path& path, const RunSubject& subject,
                         ParameterSet& parameters, const Note& note);

}  // namespace heddle
