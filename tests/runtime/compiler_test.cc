// What a compiler of ours was seen to get wrong, and the flags in cmake/heddle_options.cmake prevent.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace heddle {
namespace {

template <class T>
[[gnu::noinline]] void expect_ones(const std::vector<T>& values, size_t ones) {
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_EQ(values[i], i < ones ? T(1) : T(0)) << i << " of " << values.size();
}

// g++ 12 with the instructions of AVX-512 makes eight ones of the first.
TEST(CompilerTest, ConstantsThatEndWithZeros) {
  expect_ones<int64_t>({1, 1, 1, 1, 0, 0, 0, 0}, 4);
  expect_ones<double>({1, 1, 1, 1, 0, 0, 0, 0}, 4);
  expect_ones<double>({1, 1, 0, 0}, 2);
  expect_ones<double>({1, 1, 0, 0, 0, 0, 0, 0}, 2);
  expect_ones<float>({1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0}, 8);
  expect_ones<int32_t>({1, 1, 1, 1, 0, 0, 0, 0}, 4);
}

}  // namespace
}  // namespace heddle
