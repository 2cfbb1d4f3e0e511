// Where a configuration value was written, and the error that names such a place.
#pragma once

#include <string>

#include "core/runtime/error.h"

namespace heddle {

// A place in a configuration source. `file` is a path as the user gave it, or the text of a command-line override
// ("--set optimizer.lr=abc"); overrides and whole files have line 0. Lines and columns count from 1.
struct Location {
  std::string file;
  int line = 0;
  int column = 0;

  std::string to_string() const;  // "FILE:LINE:COL", or "FILE" when line is 0
  bool is_override() const { return line == 0 && file.starts_with("--set "); }
};

// A configuration that a user has to mend. what() is "FILE:LINE:COL: message".
class ConfigError : public Error {
 public:
  ConfigError(Location location, const std::string& message);

  const Location& location() const { return location_; }
  const std::string& message() const { return message_; }

 private:
  Location location_;
  std::string message_;
};

}  // namespace heddle
