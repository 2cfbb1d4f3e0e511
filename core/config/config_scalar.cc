#include "core/config/config_scalar.h"

#include <fmt/format.h>
#include <stdlib.h>

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>

#include "core/config/c_locale.h"
#include "core/config/for_each_scalar.h"

namespace heddle {
namespace {

enum class Parsed { good, bad, out_of_range, leading_zero };

// Whether readers of YAML 1.1, PyYAML among them, may take a decimal number for an octal one: 010 is 8 to them.
bool is_octal_of_yaml_1_1(std::string_view text) {
  if (text.starts_with('+') || text.starts_with('-')) text.remove_prefix(1);
  return text.size() > 1 && text[0] == '0' && std::isdigit(static_cast<unsigned char>(text[1])) != 0 &&
         text.find('.') == std::string_view::npos;
}

template <std::integral T>
Parsed parse(std::string_view text, T& number) {
  if (text.starts_with('+')) {
    text.remove_prefix(1);
    if (text.starts_with('-')) return Parsed::bad;
  }
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, number);
  if (parsed.ptr != end || parsed.ec == std::errc::invalid_argument) return Parsed::bad;
  if (is_octal_of_yaml_1_1(text)) return Parsed::leading_zero;
  return parsed.ec == std::errc() ? Parsed::good : Parsed::out_of_range;
}

double parse_floating(const char* text, char** end, double) { return strtod_l(text, end, c_locale()); }
float parse_floating(const char* text, char** end, float) { return strtof_l(text, end, c_locale()); }

// By strtod, because the library of clang has no std::from_chars for floating point. Of what strtod takes beside
// decimal numbers (hexadecimal ones, inf, nan, leading space) nothing gets through.
template <std::floating_point T>
Parsed parse(std::string_view text, T& number) {
  if (text.empty() || text.find_first_not_of("0123456789.eE+-") != std::string_view::npos) return Parsed::bad;
  const std::string copy(text);
  char* end = nullptr;
  number = parse_floating(copy.c_str(), &end, T{});
  if (end != copy.c_str() + copy.size()) return Parsed::bad;
  if (is_octal_of_yaml_1_1(text)) return Parsed::leading_zero;
  const bool is_lost = number == 0 && text.substr(0, text.find_first_of("eE")).find_first_of("123456789") != text.npos;
  return std::isfinite(number) && !is_lost ? Parsed::good : Parsed::out_of_range;
}

Parsed parse(std::string_view text, bool& value) {
  value = text == "true";
  return value || text == "false" ? Parsed::good : Parsed::bad;
}

Parsed parse(std::string_view text, std::string& value) {
  value = text;
  return Parsed::good;
}

template <ConfigScalar T>
constexpr bool kIsNumber = !std::is_same_v<T, bool> && !std::is_same_v<T, std::string>;

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
  const bool is_quoted_number = value.quoted && !std::is_same_v<T, std::string>;
  T result{};
  Parsed parsed = Parsed::bad;
  if (value.kind == ConfigValue::Kind::scalar && !is_quoted_number) parsed = parse(value.scalar, result);
  bool good = parsed == Parsed::good;
  if constexpr (kIsNumber<T>) good = good && range.contains(static_cast<double>(result));
  if (good) return result;
  std::string found = describe_found(value);
  if (value.kind == ConfigValue::Kind::scalar && is_quoted_number) found += " in quotes (text)";
  if (parsed == Parsed::leading_zero) found += ", whose leading 0 makes it octal to readers of YAML 1.1";
  if (parsed == Parsed::out_of_range) found += fmt::format(", which {} bits cannot hold", 8 * sizeof(T));
  throw ConfigError(value.location, path + ": found " + found + ", expected " + expected_type<T>() + range.describe());
}

template <ConfigScalar T>
std::optional<T> number_of(std::string_view text) {
  T number{};
  if (parse(text, number) != Parsed::good) return std::nullopt;
  return number;
}
template std::optional<std::int64_t> number_of(std::string_view);
template std::optional<double> number_of(std::string_view);

template <ConfigScalar T>
std::string format_scalar(const T& value) {
  if constexpr (std::is_same_v<T, std::string>) {
    return value;
  } else if constexpr (std::is_same_v<T, bool>) {
    return value ? "true" : "false";
  } else {
    char digits[32];
    std::string text(digits, std::to_chars(digits, digits + sizeof(digits), value).ptr);
    // "1e-05" as "1.0e-05": readers of YAML 1.1, PyYAML among them, take a number for text when it has no point.
    const std::size_t exponent = text.find('e');
    if (exponent != std::string::npos && text.find('.') == std::string::npos) text.insert(exponent, ".0");
    return text;
  }
}

// Text of letters, digits and the signs of a path that starts with a letter or as a path does is text to every reader,
// the words of YAML apart.
bool needs_quotes(std::string_view text) {
  constexpr std::string_view letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_/";
  constexpr std::string_view words[] = {"null", "true", "false", "yes",      "no",  "y",    "n",  "on",
                                        "off",  "inf",  ".inf",  "infinity", "nan", ".nan", "..."};
  const auto is_one_of = [](char c, std::string_view set) { return set.find(c) != std::string_view::npos; };
  if (text.empty() || text.back() == ' ') return true;
  if (!is_one_of(text.front(), letters) && text.front() != '.') return true;
  if (text.size() > 1 && text.front() == '.' && is_one_of(text[1], "0123456789_")) return true;
  for (const char c : text) {
    if (!is_one_of(c, letters) && !is_one_of(c, "0123456789.- ")) return true;
  }
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return std::find(std::begin(words), std::end(words), lower) != std::end(words);
}

#define HEDDLE_CONFIG_SCALAR(T)                                                     \
  template T parse_scalar<T>(const ConfigValue&, const std::string&, const Range&); \
  template std::string expected_type<T>();                                          \
  template std::string format_scalar<T>(const T&);
HEDDLE_FOR_EACH_CONFIG_SCALAR(HEDDLE_CONFIG_SCALAR)
#undef HEDDLE_CONFIG_SCALAR

}  // namespace heddle
