#include "core/runtime/error.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>

namespace heddle {
namespace {

template <class... Args>
std::string message_of(fmt::format_string<Args...> format, Args&&... args) {
  try {
    check(false, format, std::forward<Args>(args)...);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(ErrorTest, NumbersAreShownAsTheyAreAndNansWithoutTheirSign) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const float negative = std::copysign(static_cast<float>(nan), -1.0f);
  EXPECT_EQ(message_of("{} {:.3f} {:>6.1e} {}", std::copysign(nan, -1.0), -nan, negative, nan), "nan nan    nan nan");
  EXPECT_EQ(message_of("{} {:.2f} {} {} {}", -0.0, 2.5f, -std::numeric_limits<double>::infinity(), 7, "text"),
            "-0 2.50 -inf 7 text");
}

TEST(ErrorTest, UnsignedNanKeepsOtherValues) {
  const std::string text = "text";
  EXPECT_EQ(&unsigned_nan(text), &text);
  static_assert(std::is_same_v<decltype(unsigned_nan(1.0f)), float>);
  EXPECT_FALSE(std::signbit(unsigned_nan(std::copysign(std::nan(""), -1.0))));
  EXPECT_EQ(unsigned_nan(0.1), 0.1);
}

}  // namespace
}  // namespace heddle
