// Dtypes, devices and shapes: names, parsing, errors.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <Eigen/Core>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/runtime/device.h"
#include "core/runtime/error.h"
#include "core/tensor/dtype.h"
#include "core/tensor/element_types.h"
#include "core/tensor/shape.h"
#include "tests/error_of.h"

namespace heddle {
namespace {

constexpr DType kAll[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16, DType::int32, DType::int64};

TEST(DTypeTest, NamesGoBothWays) {
  for (const DType dtype : kAll) EXPECT_EQ(parse_dtype(name(dtype)), dtype);
  EXPECT_EQ(name(DType::bfloat16), "bfloat16");
}

TEST(DTypeTest, UnknownNamesListTheKnownOnes) {
  for (const char* text : {"", "float", "Float32", "float32 ", "bf16"}) {
    EXPECT_EQ(
        testing::error_of([&] { parse_dtype(text); }),
        fmt::format("unknown dtype '{}', expected one of float64, float32, bfloat16, float16, int32, int64", text));
  }
}

TEST(DTypeTest, SizesAreThoseOfTheHostTypes) {
  EXPECT_EQ(size_of(dtype_of<double>::value), sizeof(double));
  EXPECT_EQ(size_of(dtype_of<float>::value), sizeof(float));
  EXPECT_EQ(size_of(dtype_of<bfloat16>::value), sizeof(bfloat16));
  EXPECT_EQ(size_of(dtype_of<float16>::value), sizeof(float16));
  EXPECT_EQ(size_of(dtype_of<int32_t>::value), sizeof(int32_t));
  EXPECT_EQ(size_of(dtype_of<int64_t>::value), sizeof(int64_t));
}

TEST(DTypeTest, AccumulateTypeIsWideEnough) {
  EXPECT_EQ(accumulate_type(DType::float64), DType::float64);
  EXPECT_EQ(accumulate_type(DType::bfloat16), DType::float32);
  for (const DType dtype : kAll) EXPECT_EQ(is_floating(dtype), dtype != DType::int32 && dtype != DType::int64);
}

TEST(DeviceTest, NamesGoBothWays) {
  for (const char* text : {"cpu", "meta", "cuda:0", "cuda:7"}) EXPECT_EQ(to_string(parse_device(text)), text);
  EXPECT_EQ(parse_device("cuda"), (Device{DeviceType::cuda, 0}));
}

TEST(DeviceTest, WhatIsNoDeviceIsRefused) {
  for (const char* text : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:1 ", "CPU", "cpu:0",
                           "cuda:99999999999999999999", "cuda:01", "cuda:-0", "cuda:+1"}) {
    EXPECT_EQ(testing::error_of([&] { parse_device(text); }),
              fmt::format("unknown device '{}', expected cpu, cuda, cuda:INDEX or meta", text));
  }
}

TEST(ShapeTest, IndexesFromBothEnds) {
  Shape shape{2, 3, 4};
  EXPECT_EQ(shape.rank(), 3);
  EXPECT_EQ(shape[0], 2);
  EXPECT_EQ(shape[-1], 4);
  EXPECT_EQ(shape[-3], 2);
  shape[-1] = 5;
  EXPECT_EQ(shape, (Shape{2, 3, 5}));
  EXPECT_EQ(to_string(shape), "(2, 3, 5)");
  EXPECT_EQ(shape.part(1, 3), (Shape{3, 5}));
  EXPECT_EQ(testing::error_of([&] { (void)shape[3]; }), "dimension 3 of a tensor of rank 3");
  EXPECT_THROW((void)shape[-4], Error);
  EXPECT_THROW((void)Shape{}[0], Error);
}

TEST(ShapeTest, APartHasDimensionsThatThereAre) {
  const Shape shape{2, 3, 4};
  EXPECT_EQ(shape.part(1, 3), (Shape{3, 4}));
  EXPECT_EQ(shape.part(3, 3), Shape{});
  for (const auto& [first, last] : {std::pair(0, 4), std::pair(2, 1), std::pair(-1, 2)}) {
    EXPECT_THROW(shape.part(first, last), Error) << first << " " << last;
  }
}

TEST(ShapeTest, ComparesExtentsAndRank) {
  EXPECT_FALSE((Shape{2, 3} == Shape{2, 3, 1}));
  EXPECT_FALSE((Shape{2, 3} == Shape{3, 2}));
  EXPECT_TRUE(Shape{} == Shape{});
  Shape shrunk{2, 3, 4};
  EXPECT_TRUE(shrunk.part(0, 2) == (Shape{2, 3})) << "what lies beyond the rank does not count";
}

// Also beside fmt/ranges.h, to which a shape is a range.
TEST(ShapeTest, IsAnArgumentOfAMessage) {
  EXPECT_EQ(fmt::format("{} and {}", Shape{2, 3}, Shape{}), "(2, 3) and ()");
  EXPECT_EQ(fmt::format("{:>8}|{:<8}|", Shape{2, 3}, Shape{4}), "  (2, 3)|(4)     |");
  EXPECT_EQ(fmt::format("{}", std::vector<Shape>{{2, 3}, {4}}), "[(2, 3), (4)]");
}

TEST(ShapeTest, HasAtMostEightDimensions) {
  Shape shape{1, 2, 3, 4, 5, 6, 7, 8};
  EXPECT_THROW(shape.append(9), Error);
  EXPECT_THROW((Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}), Error);
}

TEST(ShapeTest, CountsElementsAndStrides) {
  EXPECT_EQ(numel(Shape{}), 1);
  EXPECT_EQ(numel(Shape{2, 0, 3}), 0);
  EXPECT_EQ(numel(Shape{2, 3, 4}), 24);
  EXPECT_EQ(contiguous_strides(Shape{2, 3, 4}), (Shape{12, 4, 1}));
  EXPECT_EQ(contiguous_strides(Shape{2, 0, 4}), (Shape{4, 4, 1}));
  EXPECT_EQ(contiguous_strides(Shape{}), Shape{});
}

TEST(ShapeTest, MoreElementsThanCanBeCountedAreAnError) {
  const int64_t large = int64_t{1} << 62;
  EXPECT_EQ(numel(Shape{large}), large);
  EXPECT_EQ(numel(Shape{large, 4, 0}), 0);
  for (const Shape& shape : {Shape{large, 2}, Shape{large, 4}, Shape{4, large, 3}}) {
    EXPECT_THROW(numel(shape), Error) << to_string(shape);
  }
}

}  // namespace
}  // namespace heddle
