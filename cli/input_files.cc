#include "cli/input_files.h"

#include <fmt/format.h>

#include <optional>
#include <system_error>

#include "core/config/config_load.h"
#include "core/runtime/error.h"
#include "trainers/data/find_files.h"
#include "trainers/data/tokenizer.h"
#include "trainers/run/model_folder.h"
#include "trainers/run/run_folder.h"
#include "trainers/shell_argument.h"

namespace heddle::cli {

namespace fs = std::filesystem;

void add_config_files(NamedFiles& inputs, const std::string& name, const std::string& path) {
  std::string whose = name;
  for (const fs::path& file : config_files(path)) {
    inputs.push_back({whose, file});
    whose = "a base of " + name;
  }
}

void add_found_files(NamedFiles& inputs, const std::string& name, const std::string& path_or_pattern) {
  try {
    for (const std::string& file : find_files(path_or_pattern)) inputs.push_back({name, file});
  } catch (const Error&) {  // there is none
  }
}

void add_data_files(NamedFiles& inputs, const DataConfig& data) {
  if (!data.path.empty()) add_found_files(inputs, "a file of data.path", data.path);
  for (const DataSource& source : data.sources) add_found_files(inputs, "a file of data.sources", source.path);
  if (data.validation_path) add_found_files(inputs, "a file of data.validation_path", *data.validation_path);
  if (data.tokenizer.value_or(kByteTokenizer) == kByteTokenizer) return;
  add_found_files(inputs, "the file of data.tokenizer", *data.tokenizer);
}

void add_run_files(NamedFiles& inputs, const fs::path& path) {
  std::error_code unreadable;
  const bool is_folder = fs::is_directory(path, unreadable);
  const fs::path folder = is_folder ? path : path.parent_path();
  const bool is_run = run_folder_of(folder / "config.yaml") || fs::exists(folder / "metrics.csv", unreadable);
  const std::string name = fmt::format("a file of {}", folder.empty() ? "." : folder.string());
  if (is_run) {
    for (const fs::path& file : run_files(folder)) inputs.push_back({name, file});
  } else if (is_folder) {
    for (const auto& entry : fs::directory_iterator(path, unreadable)) inputs.push_back({name, entry.path()});
  }
  if (!is_folder) inputs.push_back({name, path});
}

void add_training_files(NamedFiles& inputs, const std::string& path, const TrainConfig& config) {
  add_config_files(inputs, "the config", path);
  add_data_files(inputs, config.data);
  if (const auto folder = run_folder_of(path)) add_run_files(inputs, *folder);
}

void check_is_no_export(const fs::path& path) {
  std::error_code unreadable;
  if (!fs::is_directory(path, unreadable) || !is_model_folder(path)) return;
  throw UsageError(
      fmt::format("{} is a folder that heddle export wrote, expected a run folder or a checkpoint; "
                  "`heddle train CONFIG --init-from {}` reads its weights",
                  path.string(), shell_argument(path.string())));
}

}  // namespace heddle::cli
