#include "core/config/config_scalar.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <clocale>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

namespace heddle {
namespace {

// As std::from_chars, which not every standard library has for floating-point numbers: strtod in the "C" locale.
template <std::floating_point T>
bool parse_number(std::string_view given, T& number) {
  if (given.find_first_not_of("0123456789+-.eE") != std::string_view::npos) return false;
  std::string text(given);
  std::replace(text.begin(), text.end(), '.', *std::localeconv()->decimal_point);
  char* end = nullptr;
  errno = 0;
  if constexpr (std::is_same_v<T, float>) {
    number = std::strtof(text.c_str(), &end);
  } else {
    number = std::strtod(text.c_str(), &end);
  }
  const bool underflow = errno == ERANGE && number == 0;
  return end != text.c_str() && *end == '\0' && std::isfinite(number) && !underflow;
}

template <std::integral T>
bool parse_number(std::string_view text, T& number) {
  if (text.starts_with("+-")) return false;
  if (text.starts_with('+')) text.remove_prefix(1);
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  return parsed.ec == std::errc() && parsed.ptr == end;
}

bool parse_bool(std::string_view text, bool& value) {
  value = text == "true";
  return value || text == "false";
}

}  // namespace

bool Range::contains(double value) const {
  const bool above_low = low_included ? value >= low : value > low;
  const bool below_high = high_included ? value <= high : value < high;
  return above_low && below_high;
}

std::string Range::describe() const {
  const bool has_low = std::isfinite(low);
  const bool has_high = std::isfinite(high);
  if (has_low && has_high) {
    return std::string(" in ") + (low_included ? "[" : "(") + format_scalar(low) + ", " + format_scalar(high) +
           (high_included ? "]" : ")");
  }
  if (has_low) return (low_included ? " >= " : " > ") + format_scalar(low);
  if (has_high) return (high_included ? " <= " : " < ") + format_scalar(high);
  return "";
}

std::string describe_found(const ConfigValue& value) {
  switch (value.kind) {
    case ConfigValue::Kind::null:
      return "nothing";
    case ConfigValue::Kind::scalar:
      return "'" + value.scalar + "'";
    case ConfigValue::Kind::sequence:
      return "a list";
    case ConfigValue::Kind::map:
      return "a map";
  }
  return "";
}

template <ConfigScalar T>
std::string expected_type() {
  if constexpr (std::is_same_v<T, bool>) return "true or false";
  if constexpr (std::is_same_v<T, std::string>) return "text";
  if constexpr (std::is_floating_point_v<T>) return "a number";
  if constexpr (std::is_same_v<T, std::uint64_t>) return "a non-negative integer";
  return "an integer";
}

template <ConfigScalar T>
T parse_scalar(const ConfigValue& value, const std::string& path, const Range& range) {
  const bool is_text = std::is_same_v<T, std::string>;
  bool good = value.kind == ConfigValue::Kind::scalar && (is_text || !value.quoted);
  T result{};
  if (good) {
    if constexpr (std::is_same_v<T, std::string>) {
      result = value.scalar;
    } else if constexpr (std::is_same_v<T, bool>) {
      good = parse_bool(value.scalar, result);
    } else {
      good = parse_number(value.scalar, result) && range.contains(static_cast<double>(result));
    }
  }
  if (!good) {
    const std::string quoted = value.quoted && !is_text ? " in quotes (text)" : "";
    throw ConfigError(value.location, path + ": found " + describe_found(value) + quoted + ", expected " +
                                          expected_type<T>() + range.describe());
  }
  return result;
}

template <ConfigScalar T>
std::string format_scalar(const T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    return value;
  } else if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else {
    char text[32];
    const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
    return std::string(text, end);
  }
}

bool needs_quotes(std::string_view text) {
  static const std::vector<std::string> words = {"",  "~",  "null", "true", "false", "yes",      "no",   "y",
                                                 "n", "on", "off",  ".inf", "inf",   "infinity", ".nan", "nan"};
  std::string number(text);
  for (char& c : number) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  if (number.starts_with('+') || number.starts_with('-')) number.erase(0, 1);
  if (std::find(words.begin(), words.end(), number) != words.end()) return true;
  const std::size_t first = number.starts_with('.') ? 1 : 0;
  return first < number.size() && std::isdigit(static_cast<unsigned char>(number[first])) != 0;
}

#define HEDDLE_CONFIG_SCALAR(T)                                                     \
  template T parse_scalar<T>(const ConfigValue&, const std::string&, const Range&); \
  template std::string expected_type<T>();                                          \
  template std::string format_scalar<T>(const T&);
HEDDLE_CONFIG_SCALAR(int)
HEDDLE_CONFIG_SCALAR(std::int64_t)
HEDDLE_CONFIG_SCALAR(std::uint64_t)
HEDDLE_CONFIG_SCALAR(float)
HEDDLE_CONFIG_SCALAR(double)
HEDDLE_CONFIG_SCALAR(bool)
HEDDLE_CONFIG_SCALAR(std::string)
#undef HEDDLE_CONFIG_SCALAR

}  // namespace heddle
