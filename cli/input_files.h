// The files that a command reads, so that it replaces none of them and says what they are. Files that are not there, or
// cannot be read, are left to whoever reads them.
#pragma once

#include <filesystem>
#include <string>

#include "cli/output_file.h"
#include "trainers/train_config.h"

namespace heddle::cli {

// Adds a YAML file, which the user knows as `name` ("the config"), and its chain of bases.
void add_config_files(NamedFiles& inputs, const std::string& name, const std::string& path);

// Adds the files that `path_or_pattern` names.
void add_found_files(NamedFiles& inputs, const std::string& name, const std::string& path_or_pattern);

// Adds the data and the tokenizer of a training.
void add_data_files(NamedFiles& inputs, const DataConfig& data);

// Adds the files of a run that is given by its folder, its config.yaml or its metrics.csv. Of any other folder, such as
// a checkpoint, the files in it are added, and any other file is added alone.
void add_run_files(NamedFiles& inputs, const std::filesystem::path& path);

// What a command that takes a training's config must not replace: the config, its data, and where it is the config.yaml
// of a run all of that run.
void add_training_files(NamedFiles& inputs, const std::string& path, const TrainConfig& config);

// Throws UsageError where the path of a run or checkpoint leads to a folder that `heddle export` wrote.
void check_is_no_export(const std::filesystem::path& path);

}  // namespace heddle::cli
