#include "core/tensor/transfer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/element_types.h"
#include "core/tensor/random.h"
#include "tests/error_of.h"

namespace heddle {
namespace {

using ::testing::HasSubstr;
using Values = std::vector<double>;

class TransferTest : public ::testing::Test {
 protected:
  Values round_trip(const Values& values, DType dtype) {
    const Tensor tensor = Tensor::empty(context_, {static_cast<int64_t>(values.size())}, dtype);
    write_values(context_, tensor, values);
    return read_values(context_, tensor);
  }
  static Values iota(size_t count) {
    Values values(count);
    std::iota(values.begin(), values.end(), 0.0);
    return values;
  }

  Context context_;
};

// A value between two neighbours of a format with `digits` significant bits goes to the nearest, ties to even.
double nearest(double value, int digits, int least_exponent) {
  if (value == 0.0) return value;
  const int exponent = std::max(std::ilogb(value), least_exponent);
  const double unit = std::ldexp(1.0, exponent - digits + 1);
  return std::nearbyint(value / unit) * unit;
}

struct Format {
  DType dtype;
  int digits;
  int least_exponent;  // of normal numbers
  double largest;
};

constexpr Format kFormats[] = {{DType::float32, 24, -126, 3.4028234663852886e38},
                               {DType::bfloat16, 8, -126, 3.3895313892515355e38},
                               {DType::float16, 11, -14, 65504.0}};

TEST_F(TransferTest, EveryFloatingDtypeRoundsOnceToNearestEven) {
  for (const Format& format : kFormats) {
    Values values;
    Random random(1, RandomStream::test);
    const double unit = std::ldexp(1.0, 1 - format.digits);
    for (int i = 0; i < 2000; ++i) {
      // Around every kind of place between two neighbours: the middle, and the middle less or more than a float shows.
      const double base = 1.0 + unit * static_cast<double>(random.next_below(uint64_t{1} << (format.digits - 1)));
      const int exponent = static_cast<int>(random.next_below(40)) - 25;
      for (const double part : {0.0, 0.25, 0.5, 0.5 - 1e-9, 0.5 + 1e-9, 0.5 + 1e-5, 0.75}) {
        const double value = std::ldexp(base + part * unit, exponent);
        values.insert(values.end(), {value, -value});
      }
    }
    values.insert(values.end(), {0.0, -0.0, 1e-300, -1e-300, 1e-40, 6e-8, 2.98e-8, 2.99e-8});
    Values expected;
    for (double value : values) {
      const double rounded = nearest(value, format.digits, format.least_exponent);
      expected.push_back(
          std::abs(rounded) > format.largest ? std::copysign(std::numeric_limits<double>::infinity(), value) : rounded);
    }
    const Values found = round_trip(values, format.dtype);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(found[i], expected[i]) << name(format.dtype) << " of " << fmt::format("{:a}", values[i]);
      ASSERT_EQ(std::signbit(found[i]), std::signbit(values[i]));
    }
  }
}

TEST_F(TransferTest, ExtremesKeepTheirMeaning) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const Format& format : kFormats) {
    const double half_unit = std::ldexp(1.0, std::ilogb(format.largest) - format.digits);
    const Values found = round_trip({inf, -inf, format.largest, format.largest + 0.99 * half_unit,
                                     format.largest + half_unit, 1e300, -1e300, std::nan("")},
                                    format.dtype);
    EXPECT_EQ(found[0], inf);
    EXPECT_EQ(found[1], -inf);
    EXPECT_EQ(found[2], format.largest);
    EXPECT_EQ(found[3], format.largest) << name(format.dtype);
    EXPECT_EQ(found[4], inf);
    EXPECT_EQ(found[5], inf);
    EXPECT_EQ(found[6], -inf);
    EXPECT_TRUE(std::isnan(found[7]));
  }
  EXPECT_EQ(round_trip({0.1, 1e300, 5e-324}, DType::float64), (Values{0.1, 1e300, 5e-324}));
}

// All 16-bit patterns go there and back.
TEST_F(TransferTest, NarrowNumbersAreExactBothWays) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    const Tensor all = Tensor::empty(context_, {1 << 16}, dtype);
    std::vector<uint16_t> bits(1 << 16);
    std::iota(bits.begin(), bits.end(), uint16_t{0});
    copy_from_host(context_, all, bits.data());
    const Tensor again = Tensor::empty(context_, {1 << 16}, dtype);
    const Values values = read_values(context_, all);
    write_values(context_, again, values);
    std::vector<uint16_t> back(1 << 16);
    copy_to_host(context_, again, back.data());
    for (size_t i = 0; i < bits.size(); ++i) {
      if (!std::isnan(values[i])) {
        ASSERT_EQ(back[i], bits[i]) << name(dtype);
      }
    }
  }
}

TEST_F(TransferTest, IntegersAreExactOrRefused) {
  EXPECT_EQ(round_trip({-2147483648.0, 0, 2147483647.0}, DType::int32), (Values{-2147483648.0, 0, 2147483647.0}));
  EXPECT_EQ(round_trip({-9223372036854775808.0, 9007199254740991.0}, DType::int64),
            (Values{-9223372036854775808.0, 9007199254740991.0}));
  for (const double value : {0.5, 2147483648.0, -2147483649.0, std::nan(""), 1e300}) {
    EXPECT_THROW(round_trip({value}, DType::int32), Error) << value;
  }
  EXPECT_THROW(round_trip({9223372036854775808.0}, DType::int64), Error);
  try {
    round_trip({2.5}, DType::int32);
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "write_values: 2.5 is not an int32");
  }
}

TEST_F(TransferTest, StridesAreMindedBothWays) {
  const Tensor whole = Tensor::zeros(context_, {3, 4}, DType::int32);
  const Tensor middle = whole.slice(1, 1, 3).transpose(0, 1);
  write_values(context_, middle, {1, 2, 3, 4, 5, 6});
  EXPECT_EQ(read_values(context_, whole), (Values{0, 1, 4, 0, 0, 2, 5, 0, 0, 3, 6, 0}));
  EXPECT_EQ(read_values(context_, middle), (Values{1, 2, 3, 4, 5, 6}));
  EXPECT_THROW(write_values(context_, middle, {1, 2}), Error);
}

TEST_F(TransferTest, CopiesBetweenAnyStrides) {
  const Tensor from = Tensor::empty(context_, {2, 3}, DType::float32);
  write_values(context_, from, iota(6));
  const Tensor to = Tensor::zeros(context_, {3, 3}, DType::float32);
  copy(context_, to.slice(1, 1, 3), from.transpose(0, 1));
  EXPECT_EQ(read_values(context_, to), (Values{0, 0, 3, 0, 1, 4, 0, 2, 5}));
  const Tensor cloned = clone(context_, from.transpose(0, 1));
  EXPECT_TRUE(cloned.is_contiguous());
  EXPECT_EQ(read_values(context_, cloned), (Values{0, 3, 1, 4, 2, 5}));
  EXPECT_FALSE(cloned.shares_storage_with(from));
}

TEST_F(TransferTest, CopyWantsOneShapeAndDtype) {
  const Tensor a = Tensor::zeros(context_, {2}, DType::float32);
  const auto error_of = [&](const Tensor& b) -> std::string {
    try {
      copy(context_, a, b);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(error_of(Tensor::zeros(context_, {3}, DType::float32)), "copy: float32 (3) to float32 (2)");
  EXPECT_EQ(error_of(Tensor::zeros(context_, {2}, DType::float64)), "copy: float64 (2) to float32 (2)");
}

TEST_F(TransferTest, RawCopiesWantContiguousTensors) {
  const Tensor tensor = Tensor::zeros(context_, {2, 2}, DType::float32);
  std::vector<float> host(4, 7.0f);
  copy_from_host(context_, tensor, host.data());
  EXPECT_EQ(read_values(context_, tensor), Values(4, 7.0));
  try {
    copy_to_host(context_, tensor.transpose(0, 1), host.data());
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "copy_to_host: the tensor of shape (2, 2) and strides (1, 2) is not contiguous");
  }
}

TEST_F(TransferTest, FillsMindStrides) {
  const Tensor whole = Tensor::empty(context_, {2, 3}, DType::float16);
  poison(context_, whole);
  for (const double value : read_values(context_, whole)) EXPECT_TRUE(std::isnan(value));
  fill_zero(context_, whole.slice(1, 1, 2));
  const Values values = read_values(context_, whole);
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(values[i] == 0.0, i % 3 == 1);
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16}) {
    const Tensor tensor = Tensor::zeros(context_, {2}, dtype);
    EXPECT_EQ(read_values(context_, tensor), (Values{0, 0}));
    poison(context_, tensor);
    EXPECT_TRUE(std::isnan(read_values(context_, tensor)[1]));
  }
}

TEST_F(TransferTest, EmptyAndScalarTensors) {
  const Tensor none = Tensor::zeros(context_, {0, 3}, DType::float32);
  EXPECT_TRUE(read_values(context_, none).empty());
  write_values(context_, none, {});
  EXPECT_TRUE(clone(context_, none).defined());
  const Tensor scalar = Tensor::zeros(context_, {}, DType::float32);
  write_values(context_, scalar, {5});
  EXPECT_EQ(read_values(context_, scalar), (Values{5}));
}

TEST_F(TransferTest, TensorsOfAnotherDeviceAreRefused) {
  Context meta(Device{DeviceType::meta});
  const Tensor far = Tensor::empty(meta, {2}, DType::float32), near = Tensor::empty(context_, {2}, DType::float32);
  Values host(2);
  EXPECT_EQ(testing::error_of([&] { read_values(context_, far); }),
            "read_values: the tensor is on device meta, the context on cpu");
  EXPECT_EQ(testing::error_of([&] { write_values(context_, far, host); }),
            "write_values: the tensor is on device meta, the context on cpu");
  EXPECT_EQ(testing::error_of([&] { copy(context_, near, far); }),
            "copy: the tensor is on device meta, the context on cpu");
  EXPECT_EQ(testing::error_of([&] { copy(context_, far, near); }),
            "copy: the tensor is on device meta, the context on cpu");
  EXPECT_EQ(testing::error_of([&] { fill_zero(context_, far); }),
            "fill: the tensor is on device meta, the context on cpu");
  EXPECT_EQ(testing::error_of([&] { copy_to_host(context_, far, host.data()); }),
            "copy_to_host: the tensor is on device meta, the context on cpu");
  EXPECT_EQ(testing::error_of([&] { copy_from_host(context_, far, host.data()); }),
            "copy_from_host: the tensor is on device meta, the context on cpu");
}

TEST_F(TransferTest, MetaHasNoDataToReadAndIgnoresWrites) {
  Context meta(Device{DeviceType::meta});
  const Tensor tensor = Tensor::zeros(meta, {2, 2}, DType::float32);
  write_values(meta, tensor, {1, 2, 3, 4});
  copy(meta, tensor, clone(meta, tensor));
  try {
    read_values(meta, tensor);
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("meta has no data"));
  }
}

}  // namespace
}  // namespace heddle
