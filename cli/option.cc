#include "cli/option.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>

#include "core/config/nearest_name.h"

namespace heddle::cli {
namespace {

template <ConfigScalar T>
T parse_number(const std::string& name, const std::string& text, const Range& range) {
  ConfigValue value;
  value.kind = ConfigValue::Kind::scalar;
  value.scalar = text;
  try {
    return parse_scalar<T>(value, name, range);
  } catch (const ConfigError& error) {
    throw CLI::ValidationError(error.message(), CLI::ExitCodes::ValidationError);
  }
}

}  // namespace

template <ConfigScalar T>
CLI::Option* add_number(CLI::App& command, const std::string& name, T& value, const std::string& description,
                        const Range& range) {
  return command.add_option_function<std::string>(
      name, [&value, name, range](const std::string& text) { value = parse_number<T>(name, text, range); },
      description);
}
template CLI::Option* add_number(CLI::App&, const std::string&, int&, const std::string&, const Range&);
template CLI::Option* add_number(CLI::App&, const std::string&, std::int64_t&, const std::string&, const Range&);
template CLI::Option* add_number(CLI::App&, const std::string&, std::uint64_t&, const std::string&, const Range&);
template CLI::Option* add_number(CLI::App&, const std::string&, double&, const std::string&, const Range&);

CLI::Option* add_numbers(CLI::App& command, const std::string& name, std::vector<int64_t>& values,
                         const std::string& description, const Range& range) {
  return command.add_option_function<std::string>(
      name,
      [&values, name, range](const std::string& text) {
        values.clear();
        for (const std::string& part : split_at_commas(text)) {
          values.push_back(parse_number<int64_t>(name, part, range));
        }
      },
      description);
}

std::vector<std::string> split_at_commas(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  for (size_t comma; (comma = text.find(',', begin)) != std::string::npos; begin = comma + 1) {
    parts.push_back(text.substr(begin, comma - begin));
  }
  parts.push_back(text.substr(begin));
  return parts;
}

void fail_unknown_name(const std::string& name, const std::string& found, const std::vector<std::string>& expected) {
  throw CLI::ValidationError(fmt::format("{}: found '{}', expected one of {}{}", name, found, join_names(expected),
                                         did_you_mean(found, expected)),
                             CLI::ExitCodes::ValidationError);
}

}  // namespace heddle::cli
