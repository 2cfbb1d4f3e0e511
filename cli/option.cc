#include "cli/option.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "core/config/config_scalar.h"
#include "core/config/nearest_name.h"
#include "tools/share_folders.h"

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

std::optional<size_t> parse_bytes(const std::string& text) {
  constexpr std::pair<std::string_view, double> units[] = {
      {"", 1},      {"B", 1},        {"KB", 1e3},     {"MB", 1e6},     {"GB", 1e9},     {"TB", 1e12},
      {"PB", 1e15}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}, {"PiB", 0x1p50}};
  const size_t end = text.find_last_of("0123456789.") + 1;
  const std::optional<double> number = number_of<double>(text.substr(0, end));
  std::string unit = text.substr(end);
  unit.erase(0, unit.find_first_not_of(' '));
  for (const auto& [known, factor] : units) {
    if (!number || unit != known || !(*number * factor >= 1 && *number * factor < 0x1p62)) continue;
    return static_cast<size_t>(*number * factor);
  }
  return {};
}

}  // namespace

CLI::Option* add_overrides(CLI::App& command, std::vector<std::string>& overrides, const std::string& example) {
  return command.add_option("--set", overrides, "Override a value of the config, e.g. " + example + "; repeatable")
      ->allow_extra_args(false)
      ->option_text("KEY=VALUE");
}

CLI::Option* add_bytes(CLI::App& command, const std::string& name, size_t& value, const std::string& description) {
  return command.add_option_function<std::string>(
      name,
      [&value, name](const std::string& text) {
        const std::optional<size_t> bytes = parse_bytes(text);
        if (!bytes) {
          throw CLI::ValidationError(
              fmt::format("{}: found '{}', expected a size such as 80GiB, 512MiB or 24GB", name, text),
              CLI::ExitCodes::ValidationError);
        }
        value = *bytes;
      },
      description);
}

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
          const auto value = parse_number<int64_t>(name, part, range);
          if (std::find(values.begin(), values.end(), value) != values.end()) {
            throw CLI::ValidationError(fmt::format("{}: found {} twice, expected each number once", name, value),
                                       CLI::ExitCodes::ValidationError);
          }
          values.push_back(value);
        }
      },
      description);
}

CLI::Option* refuse_empty(CLI::Option* option, const std::string& what) {
  return option->check(CLI::Validator(
      [what](const std::string& text) { return text.empty() ? fmt::format("found '', expected {}", what) : ""; }, "",
      "not empty"));
}

CLI::Option* add_output(CLI::App& command, const std::string& name, std::string& path, const std::string& description) {
  return add_path(command, name, path, description + "; -: stdout")->transform([](const std::string& given) {
    return given == "-" ? std::string("/dev/stdout") : given;
  });
}

CLI::Option* find_shared_configs(CLI::Option* option) {
  return option->transform([](const std::string& path) { return own_or_shared(path).string(); });
}

CLI::Option* find_configs_and_runs(CLI::Option* option, std::vector<std::string> others) {
  return option->transform([others = std::move(others)](const std::string& text) {
    if (text.empty() || std::find(others.begin(), others.end(), text) != others.end()) return text;
    const std::filesystem::path path = own_or_shared(text);
    std::error_code unreadable;
    const std::filesystem::path config = path / "config.yaml";
    return std::filesystem::is_regular_file(config, unreadable) ? config.string() : path.string();
  });
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

std::vector<std::string> parts_given_once(const std::string& name, const std::string& text) {
  std::vector<std::string> parts = split_at_commas(text);
  for (auto part = parts.begin(); part != parts.end(); ++part) {
    if (std::find(parts.begin(), part, *part) == part) continue;
    throw CLI::ValidationError(fmt::format("{}: {} is given twice", name, *part), CLI::ExitCodes::ValidationError);
  }
  return parts;
}

void fail_unknown_name(const std::string& name, const std::string& found, const std::vector<std::string>& expected) {
  throw CLI::ValidationError(fmt::format("{}: found '{}', expected one of {}{}", name, found, join_names(expected),
                                         did_you_mean(found, expected)),
                             CLI::ExitCodes::ValidationError);
}

}  // namespace heddle::cli
