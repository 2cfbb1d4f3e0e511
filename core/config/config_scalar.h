// Text of a YAML scalar to a C++ value, strictly, and back.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

#include "core/config/config_tree.h"

namespace heddle {

// The types that a config value can be read as. Integers are decimal, without leading zeros (YAML 1.1 has 010 for 8);
// numbers must be finite, booleans are true or false, and text is any scalar but null.
template <class T>
concept ConfigScalar = std::same_as<T, int> || std::same_as<T, std::int64_t> || std::same_as<T, std::uint64_t> ||
    std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, bool> || std::same_as<T, std::string>;

// The numbers that a key accepts, and how an error describes them. A range means nothing for text: leave it out there.
struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool low_included = true;
  bool high_included = true;

  // The numbers of features, tokens and the like: kernels count them by int32.
  static Range count() { return between(1, std::numeric_limits<std::int32_t>::max()); }
  static Range any() { return {}; }
  static Range positive() { return above(0); }
  static Range above(double low) { return {.low = low, .low_included = false}; }
  static Range at_least(double low) { return {.low = low}; }
  static Range between(double low, double high) { return {low, high}; }
  // low < value < high
  static Range inside(double low, double high) { return {low, high, false, false}; }
  // low <= value < high
  static Range from_below(double low, double high) { return {low, high, true, false}; }

  bool contains(double value) const;
  std::string describe() const;  // "" when any, else " > 0", " in [0, 1)", ...
};

// "'abc'", "a list", "a map", "nothing": what an error says was found.
std::string describe_found(const ConfigValue& value);

// Throws ConfigError at the value: "PATH: found ..., expected ...".
template <ConfigScalar T>
T parse_scalar(const ConfigValue& value, const std::string& path, const Range& range);

// The number that the text is by the same rules, or nullopt. For std::int64_t and double.
template <ConfigScalar T>
std::optional<T> number_of(std::string_view text);

template <ConfigScalar T>
std::string expected_type();  // "an integer", "a number", "text", ...

// The shortest text that reads back as the same value, here and in readers of YAML 1.1.
template <ConfigScalar T>
std::string format_scalar(const T& value);

// Whether a reader of YAML could take the text, were it written without quotes, for something else: a number, a date, a
// boolean, null, or a part of the syntax. Readers of YAML 1.1 take yes, no, on and off for booleans too.
bool needs_quotes(std::string_view text);

}  // namespace heddle
