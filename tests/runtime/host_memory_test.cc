#include "core/runtime/host_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "core/runtime/checked.h"
#include "core/runtime/context.h"
#include "core/runtime/storage.h"
#include "tests/error_of.h"

namespace heddle {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(HostMemoryTest, IsWhatThisMachineMayHave) {
  EXPECT_GT(host_memory_bytes(), size_t{64} << 20);
  EXPECT_LT(host_memory_bytes(), size_t{1} << 50);
  EXPECT_EQ(Context().properties().memory_bytes, host_memory_bytes());
}

TEST(HostMemoryTest, SizesBeyondItAreRefusedWithBothSizes) {
  const auto there = static_cast<std::int64_t>(host_memory_bytes());
  check_host_memory("a list", there / 8, 8);
  const std::string machine = "the machine has " + format_bytes(host_memory_bytes());
  EXPECT_THAT(testing::error_of<OutOfMemory>([&] { check_host_memory("a list", there / 8 + 1, 8); }),
              AllOf(HasSubstr("out of memory on the host: a list would take "), HasSubstr(machine)));
  EXPECT_THAT(
      testing::error_of<OutOfMemory>([] { check_host_memory("a list", std::numeric_limits<std::int64_t>::max(), 8); }),
      HasSubstr("a list would take 16777216.0 TiB"));
}

// A system that overcommits grants what it does not have, and ends the process when it is touched.
TEST(HostMemoryTest, TheAllocatorOfTheCpuRefusesWhatTheMachineLacks) {
  Context context;
  const size_t there = host_memory_bytes();
  const Storage held(context, 100 << 20);
  const std::string text = testing::error_of<OutOfMemory>([&] { Storage(context, there - (64 << 20)); });
  EXPECT_THAT(text, AllOf(HasSubstr("out of memory on cpu: asked " + format_bytes(there - (64 << 20))),
                          HasSubstr("100.0 MiB allocated of 100.0 MiB reserved"),
                          HasSubstr("the device has " + format_bytes(there))));
}

TEST(CheckedProductTest, KnowsWhatAnIntegerCannotHold) {
  const std::int64_t large = std::int64_t{1} << 62;
  EXPECT_EQ(checked_product({}), 1);
  EXPECT_EQ(checked_product({3, -4, 5}), -60);
  EXPECT_EQ(checked_product({large, 1}), large);
  EXPECT_EQ(checked_product({large, 2}), std::nullopt);
  EXPECT_EQ(checked_product({large, 4}), std::nullopt) << "0 modulo 2^64";
  EXPECT_EQ(checked_product({large, 4, 0}), 0);
}

}  // namespace
}  // namespace heddle
