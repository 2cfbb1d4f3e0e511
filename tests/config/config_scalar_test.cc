#include "core/config/config_scalar.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <regex>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "tests/error_of.h"

namespace heddle {
namespace {

using testing::error_of;

template <class T>
std::string error_of_scalar(const std::string& text, const Range& range = {}) {
  ConfigValue value;
  value.kind = ConfigValue::Kind::scalar;
  value.location = {"m.yaml", 1, 4};
  value.scalar = text;
  return error_of([&] { parse_scalar<T>(value, "x", range); });
}

TEST(ConfigScalarTest, NumbersAreDecimal) {
  EXPECT_EQ(number_of<std::int64_t>("0"), 0);
  EXPECT_EQ(number_of<std::int64_t>("-0"), 0);
  EXPECT_EQ(number_of<std::int64_t>("+7"), 7);
  EXPECT_EQ(number_of<std::int64_t>("-9223372036854775808"), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(number_of<double>("+.5"), 0.5);
  EXPECT_EQ(number_of<double>("1.e2"), 100.0);
  EXPECT_EQ(number_of<double>("-5e-324"), -std::numeric_limits<double>::denorm_min());
  for (const char* text : {"", "+", "++1", "+-1", "1e3", "0x10", "0b1", "0o10", "010", "+010", "-08", "00", "0_1",
                           "1_000", "1:30", " 1", "1 ", "1.0", "9223372036854775808"}) {
    EXPECT_FALSE(number_of<std::int64_t>(text)) << text;
  }
  EXPECT_EQ(number_of<double>("0"), 0.0);
  EXPECT_EQ(number_of<double>("00.5"), 0.5);  // to all readers
  for (const char* text : {"", "+", "e", "1e", "0x10", "0o10", "010", "-00", "01e3", "1_000", "1:30", "inf", "-inf",
                           "nan", "infinity", " 1", "1 ", "1,5", "1e999"}) {
    EXPECT_FALSE(number_of<double>(text)) << text;
  }
}

TEST(ConfigScalarTest, ErrorsSayWhatDoesNotFit) {
  EXPECT_EQ(error_of_scalar<std::int64_t>("-1", Range::at_least(0)),
            "m.yaml:1:4: x: found '-1', expected an integer >= 0");
  EXPECT_EQ(error_of_scalar<std::int64_t>("99999999999999999999", Range::positive()),
            "m.yaml:1:4: x: found '99999999999999999999', which 64 bits cannot hold, expected an integer > 0");
  EXPECT_EQ(error_of_scalar<int>("3000000000"),
            "m.yaml:1:4: x: found '3000000000', which 32 bits cannot hold, expected an integer");
  EXPECT_EQ(error_of_scalar<std::uint64_t>("18446744073709551616"),
            "m.yaml:1:4: x: found '18446744073709551616', which 64 bits cannot hold, expected a non-negative integer");
  EXPECT_EQ(error_of_scalar<std::uint64_t>("-1"), "m.yaml:1:4: x: found '-1', expected a non-negative integer");
  EXPECT_EQ(error_of_scalar<float>("1e39"),
            "m.yaml:1:4: x: found '1e39', which 32 bits cannot hold, expected a number");
  EXPECT_EQ(error_of_scalar<double>("nan"), "m.yaml:1:4: x: found 'nan', expected a number");
  EXPECT_EQ(
      error_of_scalar<std::int64_t>("010", Range::positive()),
      "m.yaml:1:4: x: found '010', whose leading 0 makes it octal to readers of YAML 1.1, expected an integer > 0");
  EXPECT_EQ(error_of_scalar<double>("-07"),
            "m.yaml:1:4: x: found '-07', whose leading 0 makes it octal to readers of YAML 1.1, expected a number");
  EXPECT_EQ(error_of_scalar<std::int64_t>("0", Range::count()),
            "m.yaml:1:4: x: found '0', expected an integer in [1, 2147483647]");
}

// What a reader of YAML 1.1 takes a plain scalar for: the rules of yaml.org/type, as PyYAML has them.
bool is_number_of_yaml_1_1(const std::string& text) {
  static const std::regex number(
      "[-+]?[0-9][0-9_]*\\.[0-9_]*([eE][-+][0-9]+)?|\\.[0-9][0-9_]*([eE][-+][0-9]+)?|[-+]?(0|[1-9][0-9_]*)");
  return std::regex_match(text, number);
}

TEST(ConfigScalarTest, ReadersOfYaml11ReadTheNumbersThatAreWritten) {
  for (const double value : {0.1, 1e-5, 1e22, 1e300, 5e-324, 1.7976931348623157e308, 100.0, 9007199254740993.0, 1e-7}) {
    for (const double number : {value, -value}) {
      EXPECT_TRUE(is_number_of_yaml_1_1(format_scalar(number))) << format_scalar(number);
      EXPECT_EQ(number_of<double>(format_scalar(number)), number);
    }
  }
  for (const float number : {0.1f, 1e-5f, 1e-45f, 3.4028235e38f, 16777216.0f}) {
    EXPECT_TRUE(is_number_of_yaml_1_1(format_scalar(number))) << format_scalar(number);
  }
  EXPECT_EQ(format_scalar(1e-5), "1.0e-05");
  EXPECT_EQ(format_scalar(1.5e-5), "1.5e-05");
  EXPECT_EQ(format_scalar(std::numeric_limits<std::uint64_t>::max()), "18446744073709551615");
}

}  // namespace
}  // namespace heddle
