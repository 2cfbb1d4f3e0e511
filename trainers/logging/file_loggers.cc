#include "trainers/logging/file_loggers.h"

#include "trainers/logging/csv_logger.h"
#include "trainers/logging/jsonl_logger.h"
#include "trainers/logging/tensorboard_logger.h"

namespace heddle {

std::vector<std::unique_ptr<Logger>> make_file_loggers(const LoggingConfig& config, const std::filesystem::path& folder,
                                                       const Note& note) {
  std::vector<std::unique_ptr<Logger>> loggers;
  if (config.csv) loggers.push_back(std::make_unique<CsvLogger>(folder / "metrics.csv", note, config));
  if (config.jsonl) loggers.push_back(std::make_unique<JsonlLogger>(folder / "log.jsonl", note, config));
  if (config.tensorboard) loggers.push_back(std::make_unique<TensorBoardLogger>(folder, config));
  return loggers;
}

}  // namespace heddle
