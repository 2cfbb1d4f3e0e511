#include "core/config/config_error.h"

#include <utility>

namespace heddle {

std::string Location::to_string() const {
  if (line == 0) return file;
  return file + ":" + std::to_string(line) + ":" + std::to_string(column);
}

ConfigError::ConfigError(Location location, std::string message)
    : Error(location.to_string() + ": " + message), location_(std::move(location)), message_(std::move(message)) {}

}  // namespace heddle
