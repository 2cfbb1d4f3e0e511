#include "core/config/config_error.h"

#include <cstddef>
#include <utility>

namespace heddle {

std::string Location::to_string() const {
  if (line == 0) return file;
  return file + ":" + std::to_string(line) + ":" + std::to_string(column);
}

namespace {

// what() would end at a NUL byte.
std::string without_nul(std::string text) {
  for (std::size_t at; (at = text.find('\0')) != std::string::npos;) text.replace(at, 1, "\\x00");
  return text;
}

}  // namespace

ConfigError::ConfigError(Location location, std::string message)
    : Error(without_nul(location.to_string() + ": " + message)),
      location_(std::move(location)),
      message_(without_nul(std::move(message))) {}

}  // namespace heddle
