// The loggers that write files into a run folder.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "trainers/logging/logging_config.h"
#include "trainers/logging/note.h"

namespace heddle {

// Those that the config asks for: metrics.csv first.
std::vector<std::unique_ptr<Logger>> make_file_loggers(const LoggingConfig& config, const std::filesystem::path& folder,
                                                       const Note& note);

}  // namespace heddle
