#include "trainers/shell_argument.h"

#include <string_view>

#include "core/config/config_tree.h"

namespace heddle {

std::string shell_argument(const std::string& path) {
  const std::string argument = path.starts_with('-') ? "./" + path : path;
  constexpr std::string_view kPlain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./-+,:=@%";
  if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos) return argument;
  std::string quoted;
  for (const char character : argument) quoted += character == '\'' ? "'\\''" : std::string(1, character);
  return "'" + quoted + "'";
}

std::string shell_set(const std::string& key, const std::string& text) {
  ConfigValue value;
  value.kind = ConfigValue::Kind::scalar;
  value.scalar = text;
  return "--set " + shell_argument(key + "=" + to_line(value));
}

}  // namespace heddle
