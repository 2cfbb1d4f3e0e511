#include "core/config/config_error.h"

#include <utility>

#include "core/runtime/message.h"

namespace heddle {

std::string Location::to_string() const {
  if (line == 0) return file;
  return file + ":" + std::to_string(line) + ":" + std::to_string(column);
}

ConfigError::ConfigError(Location location, const std::string& message)
    : Error(with_visible_controls(location.to_string() + ": " + message)),
      location_(std::move(location)),
      message_(with_visible_controls(message)) {}

}  // namespace heddle
