// Norms of numbers near the ends of their type's range, whose squares do not fit it, forward and backward, against the
// unfused formulas in long double: on the CPU and, where there is one, on a GPU.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "tests/layers/norm_formula.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::norm_range_test {
namespace {

// Normal numbers of a size, in the rows of a problem; size(row, group) may differ from group to group.
Numbers normal_rows(const Problem& problem, Random& random, const std::function<double(int64_t, int64_t)>& size,
                    double mean = 0.0) {
  Numbers numbers;
  const int64_t extent = problem.dim / problem.options.groups;
  for (int64_t row = 0; row < problem.rows; ++row) {
    for (int64_t i = 0; i < problem.dim; ++i) {
      numbers.push_back(round_to(problem.dtype, (random.next_normal() + mean) * size(row, i / extent)));
    }
  }
  return numbers;
}
Numbers normal_rows(const Problem& problem, Random& random, double size, double mean = 0.0) {
  return normal_rows(
      problem, random, [size](int64_t, int64_t) { return size; }, mean);
}
Numbers normal_vector(const Problem& problem, Random& random, double size) {
  Numbers numbers;
  for (int64_t i = 0; i < problem.dim; ++i)
    numbers.push_back(round_to(problem.parameters, random.next_normal() * size));
  return numbers;
}

struct Sizes {
  DType dtype;
  double x, d_y, eps;
};

// The sizes of x and of the upstream gradient: large, small, both, either.
std::vector<Sizes> all_sizes() {
  const auto f64 = DType::float64, f32 = DType::float32, bf16 = DType::bfloat16, f16 = DType::float16;
  return {{f32, 1e18, 1.0, 1e-5},     {f32, 1e18, 1e-20, 1e-5},  {f32, 1e18, 1e30, 1e-5},   {f32, 5e37, 1.0, 1e-5},
          {f32, 5e37, 1e-30, 1e-5},   {f32, 1e10, 1e-19, 1e-5},  {f32, 1e-20, 1.0, 1e-50},  {f32, 1e-30, 1.0, 1e-80},
          {f32, 1e-30, 1.0, 1e-50},   {f32, 1e-30, 1e-6, 0.0},   {f32, 1e-38, 1e-5, 0.0},   {f32, 1.0, 1e37, 1e-5},
          {f32, 1.0, 1e-37, 1e-5},    {f32, 1e-8, 1e-33, 1e-18}, {f32, 1e-4, 1e-38, 1e-10}, {f32, 1.0, 1.0, 1e-50},
          {bf16, 3e19, 1.0, 1e-5},    {bf16, 5e37, 1e20, 1e-5},  {bf16, 1e-30, 1.0, 1e-80}, {bf16, 1.0, 1e37, 1e-5},
          {f16, 1.5e4, 1.0, 1e-5},    {f16, 1e-6, 1e-3, 1e-50},  {f16, 1.0, 1e4, 1e-5},     {f64, 1e200, 1.0, 1e-5},
          {f64, 1e200, 1e-200, 1e-5}, {f64, 1e200, 1e250, 1e-5}, {f64, 5e306, 1.0, 1e-5},   {f64, 1e-200, 1.0, 0.0},
          {f64, 1e-200, 1.0, 1e-300}, {f64, 1e-300, 1e-9, 0.0},  {f64, 1.0, 1e300, 1e-5},   {f64, 1.0, 1e-300, 1e-5},
          {f32, 1e-9, 1e-36, 0.0},    {f64, 1e-60, 1e-290, 0.0}};  // products that are lost
}

// `kind` counts through the options of the family.
constexpr int kKinds = 12;
Problem problem_of(const Sizes& sizes, int64_t dim, int kind, std::optional<DType> parameters = {}) {
  Problem problem{.name = fmt::format("{} x {} d_y {} eps {} dim {} kind {}", name(sizes.dtype), sizes.x, sizes.d_y,
                                      sizes.eps, dim, kind),
                  .dtype = sizes.dtype,
                  .dim = dim};
  problem.parameters = parameters.value_or(sizes.dtype);
  NormOptions& options = problem.options;
  options.eps = sizes.eps;
  options.center = kind % 2 == 1;
  options.groups = kind % 4 >= 2 ? 2 : 1;
  Random random(static_cast<uint64_t>(kind) + 1, RandomStream::test);
  problem.inputs["x"] = normal_rows(problem, random, sizes.x, options.center ? 1.5 : 0.0);
  problem.inputs["d_y"] = normal_rows(problem, random, sizes.d_y);
  if (kind >= 3) problem.inputs["weight"] = normal_vector(problem, random, 1.0);
  if (kind >= 5) problem.inputs["bias"] = normal_vector(problem, random, 1.0);
  if (kind >= 7) {
    problem.inputs["residual"] = normal_rows(problem, random, sizes.x);
    problem.inputs["d_r"] = normal_rows(problem, random, sizes.d_y);
  }
  if (kind >= 8) {
    problem.inputs["gate"] = normal_rows(problem, random, 1.0);
    options.gate_position = kind < 10 ? GatePosition::pre : GatePosition::post;
    options.gate_act = kind % 3 == 0 ? Activation::sigmoid : kind % 3 == 1 ? Activation::silu : Activation::relu;
  }
  return problem;
}

void sizes_are_right(Context& context) {
  // Lengths that different kernels of the GPU take, and one that the CPU takes in several chunks.
  constexpr int64_t kDims[] = {6, 16, 512, 4098, 16384};
  int count = 0;
  for (const Sizes& sizes : all_sizes()) {
    for (int kind = 0; kind < kKinds; ++kind) {
      expect_right(context, problem_of(sizes, kDims[count++ % 3], kind));
      if (kind % 5 == 3) expect_right(context, problem_of(sizes, kDims[3 + count % 2], kind));
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// Parameters of float32 beside numbers of 16 bits, some of which leave the ordinary range: both parameters, or the bias
// alone.
void full_precision_parameters_are_right(Context& context) {
  for (const Sizes& sizes : all_sizes()) {
    if (size_of(sizes.dtype) != 2) continue;
    for (int kind = 3; kind < kKinds; ++kind) {
      for (const int64_t dim : {6, 16, 512, 4096}) {
        if (dim > 100 && kind > 6) continue;  // with a gate, all lengths are the same kernel
        Problem problem = problem_of(sizes, dim, kind, DType::float32);
        problem.name += " full precision";
        if (kind == 6) problem.inputs.erase("weight");
        expect_right(context, problem);
        expect_added(context, problem);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

void gradients_are_added(Context& context) {
  const auto f64 = DType::float64, f32 = DType::float32, bf16 = DType::bfloat16, f16 = DType::float16;
  const Sizes all[] = {{f64, 1.0, 1.0, 1e-5},   {f32, 1.0, 1.0, 1e-5},   {bf16, 1.0, 1.0, 1e-5},
                       {f16, 1.0, 1.0, 1e-5},   {f64, 1e200, 1.0, 1e-5}, {f64, 1e-200, 1.0, 1e-300},
                       {f32, 1e25, 1e15, 1e-5}, {f32, 1e-30, 1e-6, 0.0}, {bf16, 3e19, 1e20, 1e-5}};
  constexpr int64_t kDims[] = {6, 16, 512};
  int count = 0;
  for (const Sizes& sizes : all) {
    for (int kind = 0; kind < kKinds; ++kind) {
      expect_added(context, problem_of(sizes, kDims[count++ % 3], kind));
      if (kind == 9) expect_added(context, problem_of(sizes, 4098, kind));
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// Every row and group has a size of its own.
void mixed_rows_are_right(Context& context) {
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16}) {
    for (const int64_t groups : {1, 4}) {
      for (const int kind : {0, 1, 5, 8, 11}) {
        for (const int64_t dim : {24, 32, 1024}) {
          Problem problem = problem_of({dtype, 1.0, 1.0, 1e-80}, dim, kind);
          problem.name = fmt::format("{} mixed groups {} dim {} kind {}", name(dtype), groups, dim, kind);
          problem.rows = dim < 100 ? 450 : 30;  // 450: more than there are partial sums
          problem.options.groups = groups;
          Random random(3, RandomStream::test);
          const double step = dtype == DType::float64 ? 40.0 : 5.0;
          const auto size = [&](int64_t row, int64_t group) {
            return std::pow(10.0, step * static_cast<double>((row + 3 * group) % 15 - 7));
          };
          const auto inverse = [&](int64_t row, int64_t group) { return std::min(1.0, size(row, group)); };
          problem.inputs["x"] = normal_rows(problem, random, size);
          problem.inputs["d_y"] = normal_rows(problem, random, inverse);
          for (const char* name : {"residual", "d_r"}) problem.inputs.erase(name);
          if (kind >= 8) problem.inputs["gate"] = normal_rows(problem, random, 1.0);
          expect_right(context, problem);
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

// Numbers of one row and group that are special; the others stay ordinary.
void special_numbers_show(Context& context) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    for (const char* input : {"x", "d_y", "gate"}) {
      for (const double special : {infinity, -infinity, std::nan("")}) {
        for (int kind = 0; kind < kKinds; ++kind) {
          for (const int64_t dim : {6, 16}) {
            Problem problem = problem_of({dtype, 1.0, 1.0, 1e-5}, dim, kind);
            if (!problem.inputs.contains(input)) continue;
            problem.name += fmt::format(" {} in {}", special, input);
            problem.inputs[input][1] = special;
            expect_right(context, problem);
            if (::testing::Test::HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

void zeros_are_right(Context& context) {
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    for (const double eps : {1e-5, 1e-50}) {
      for (int kind = 0; kind < kKinds; ++kind) {
        Problem problem = problem_of({dtype, 1.0, dtype == DType::float16 ? 1e-3 : 1.0, eps}, 16, kind);
        problem.name += " zeros";
        std::fill_n(problem.inputs["x"].begin(), 16, 0.0);
        if (problem.inputs.contains("residual")) std::fill_n(problem.inputs["residual"].begin(), 16, 0.0);
        expect_right(context, problem);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// The product of x and a pre gate is beyond float32; scale brings the result out of it.
void products_are_right(Context& context) {
  for (const int64_t dim : {6, 16, 512}) {
    for (const bool center : {false, true}) {
      Problem problem{.name = fmt::format("product dim {} center {}", dim, center), .dim = dim};
      Random random(5, RandomStream::test);
      problem.options.center = center;
      problem.options.gate_position = GatePosition::pre;
      problem.inputs["x"] = normal_rows(problem, random, 1e25);
      problem.inputs["gate"] = normal_rows(problem, random, 1e25);
      problem.inputs["d_y"] = normal_rows(problem, random, 1.0);
      expect_right(context, problem);
      problem.options.gate_position = GatePosition::post;
      problem.options.scale = 1e-30;
      expect_right(context, problem);
    }
  }
}

// d_y times the scale is infinite, and a small weight or a large x brings the gradient of x back. In a single row
// d_weight is infinite where its only term is.
void scaled_gradients_are_right(Context& context) {
  struct Large {
    DType dtype;
    double d_y, x;
  };
  for (const Large& large : {Large{DType::float32, 1e36, 1e10},
                             {DType::bfloat16, 1e36, 1e10},
                             {DType::float64, 1e306, 1e10},
                             {DType::float32, 1e-4, 1e-30}}) {
    for (const int64_t dim : {6, 16, 512, 4098, 16384}) {
      for (int kind = 0; kind < kKinds; ++kind) {
        const bool weighted = kind >= 3;
        if (dim > 1000 && kind % 6 != 4) continue;
        Problem problem = problem_of({large.dtype, weighted ? 1.0 : large.x, large.d_y, 1e-5}, dim, kind);
        if (large.d_y < 1.0) problem = problem_of({large.dtype, large.x, large.d_y, 1e-80}, dim, kind);
        problem.name += fmt::format(" scaled, {}", large.x);
        problem.options.scale = large.d_y < 1.0 ? 1e-3 : 1000.0;
        for (const char* name : {"residual", "d_r", "bias"}) problem.inputs.erase(name);
        Random random(11, RandomStream::test);
        if (weighted && large.d_y > 1.0) problem.inputs["weight"] = normal_vector(problem, random, 1e-4);
        problem.rows = 1;
        for (auto& [name, numbers] : problem.inputs) {
          if (name != "weight") numbers.resize(static_cast<size_t>(dim));
        }
        expect_right(context, problem);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// Equal numbers have no deviation, however large they are and however small eps is.
void constant_rows_are_right(Context& context) {
  struct Constant {
    DType dtype;
    double x, eps;
  };
  const auto f64 = DType::float64, f32 = DType::float32, bf16 = DType::bfloat16;
  for (const Constant& constant : {Constant{f64, 1e154, 1e-50},
                                   {f64, -1.1e154, 1e-50},
                                   {f64, 1.3e308, 1e-50},
                                   {f64, 7.7e200, 1e-5},
                                   {f64, 1e300, 1e-300},
                                   {f64, 1e-200, 1e-300},
                                   {f64, 0.1, 1e-50},
                                   {f32, 1.1e30, 1e-5},
                                   {f32, -3e38, 1e-30},
                                   {f32, 1e15, 1e-50},
                                   {f32, 0.1, 1e-50},
                                   {bf16, 1e30, 1e-20}}) {
    for (const int64_t dim : {1, 3, 16, 768, 4098}) {
      for (const int kind : {1, 5, 9, 11}) {
        if (dim > 4000 && kind > 5) continue;
        Problem problem = problem_of({constant.dtype, 1.0, 1e-20, constant.eps}, dim, 1);
        problem.name =
            fmt::format("{} of {} eps {} dim {} kind {}", name(constant.dtype), constant.x, constant.eps, dim, kind);
        problem.options.groups = 1;
        Random random(12, RandomStream::test);
        const double x = round_to(constant.dtype, constant.x);
        problem.inputs["x"].assign(static_cast<size_t>(problem.rows * dim), x);
        if (kind >= 5) {
          problem.inputs["weight"] = normal_vector(problem, random, 1.0);
          problem.inputs["bias"] = normal_vector(problem, random, 1.0);
        }
        if (kind >= 9) {
          problem.inputs["gate"] = normal_rows(problem, random, 1.0);
          problem.options.gate_act = Activation::sigmoid;
          problem.options.gate_position = GatePosition::post;
        }
        expect_right(context, problem);
        if (::testing::Test::HasFatalFailure()) return;
        if (dim > 1000 || kind != 1) continue;
        const Tensors found = operator_results(context, problem);
        for (const double y : found.at("y")) ASSERT_EQ(y, 0.0) << problem.name;
      }
    }
  }
}

// Only one number of a row, and only one row, is large: a sum that leaves it out shows. Places are the last of the
// CPU's chunks of 4096 features and of its 396 chunks of rows, and their neighbours.
void sums_leave_nothing_out(Context& context) {
  const auto expect_spike = [&](int64_t rows, int64_t dim, int64_t row, int64_t feature, bool center) {
    Problem problem{.name = fmt::format("spike at {} {} of {} {}", row, feature, rows, dim), .rows = rows, .dim = dim};
    problem.options.center = center;
    Random random(7, RandomStream::test);
    problem.inputs["x"] = normal_rows(problem, random, 1.0);
    problem.inputs["d_y"] = normal_rows(problem, random, 1e-3);
    problem.inputs["weight"] = normal_vector(problem, random, 1.0);
    problem.inputs["bias"] = normal_vector(problem, random, 1.0);
    problem.inputs["x"][static_cast<size_t>(row * dim + feature)] = 300.0;
    problem.inputs["d_y"][static_cast<size_t>(row * dim + feature)] = 300.0;
    expect_right(context, problem);
  };
  for (const bool center : {false, true}) {
    for (const int64_t dim : {4096, 4097, 8192, 9001}) {
      for (const int64_t feature : {int64_t{0}, int64_t{4095}, int64_t{4096}, dim - 1}) {
        expect_spike(2, dim, 1, std::min(feature, dim - 1), center);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
    for (const int64_t rows : {395, 396, 397, 1000}) {
      for (const int64_t row : {int64_t{0}, rows - 1, rows - 2, rows / 2}) {
        expect_spike(rows, 8, row, 5, center);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// The mean is rounded by about the deviation, here to a multiple of a quarter, and what rounding left must not show.
void means_far_above_the_deviation(Context& context) {
  const std::pair<DType, double> means[] = {
      {DType::float32, 0x1p21}, {DType::bfloat16, 192.0}, {DType::float16, 1536.0}};  // long double holds these
  for (const auto& [dtype, mean] : means) {
    for (const int64_t dim : {6, 16, 512, 4098, 8192, 16384}) {
      for (const int kind : {1, 5, 11}) {
        if (dim > 4000 && kind > 5) continue;
        Problem problem = problem_of({dtype, 1.0, 1.0, 1e-5}, dim, kind);
        problem.name += " mean";
        problem.options.center = true;
        for (const char* name : {"residual", "d_r"}) problem.inputs.erase(name);
        Random random(9, RandomStream::test);
        for (double& x : problem.inputs["x"]) {
          x = round_to(dtype, mean + 0.25 * (static_cast<double>(random.next_below(33)) - 16.0));
        }
        expect_right(context, problem);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// Rows of one number, or of one and its neighbour: rounding moves the mean by more than they deviate.
void nearly_constant_rows(Context& context) {
  const std::pair<DType, double> means[] = {{DType::float32, 54321.7}, {DType::float32, 1.1e7}, {DType::float32, 1e10},
                                            {DType::float32, 1e15},    {DType::bfloat16, 1e8},  {DType::float16, 3e4}};
  for (const auto& [dtype, mean] : means) {
    for (const int64_t dim : {3, 16, 768, 4098, 8192}) {
      for (const double eps : {1e-5, 1e-12}) {
        Problem problem{.name = fmt::format("{} mean {} eps {} dim {}", name(dtype), mean, eps, dim), .dtype = dtype};
        problem.dim = dim;
        problem.parameters = dtype;
        problem.options.center = true;
        problem.options.eps = eps;
        Random random(10, RandomStream::test);
        Numbers& x = problem.inputs["x"];
        x.assign(static_cast<size_t>(problem.rows * dim), round_to(dtype, mean));
        const double step = dtype == DType::float32 ? 0x1p-23 : dtype == DType::bfloat16 ? 0x1p-7 : 0x1p-10;
        x[1] = round_to(dtype, mean * (1.0 + step));  // of the first row
        problem.inputs["d_y"] = normal_rows(problem, random, 1.0);
        expect_right(context, problem);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// One number is far larger than all others of its row, wherever it lies.
void one_large_number_is_seen(Context& context) {
  for (const auto& [dtype, large] : {std::pair(DType::float64, 1e200), {DType::float32, 1e30}}) {
    for (const int64_t dim : {16, 100, 520, 4099}) {
      for (const int64_t place : {int64_t{0}, int64_t{40}, dim / 2, dim - 1}) {
        for (const int kind : {0, 5}) {
          if (place >= dim) continue;
          Problem problem = problem_of({dtype, 1.0, 1.0, 1e-5}, dim, kind);
          problem.name += fmt::format(" {} at {}", large, place);
          problem.options.groups = 1;
          problem.inputs["x"][static_cast<size_t>(dim + place)] = round_to(dtype, large);
          expect_right(context, problem);
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

class NormRange : public OnDevices {};

TEST_P(NormRange, LargeAndSmallNumbers) { sizes_are_right(context()); }
TEST_P(NormRange, FullPrecisionParameters) { full_precision_parameters_are_right(context()); }
TEST_P(NormRange, GradientsAreAdded) { gradients_are_added(context()); }
TEST_P(NormRange, MixedRows) { mixed_rows_are_right(context()); }
TEST_P(NormRange, InfinityAndNaNShow) { special_numbers_show(context()); }
TEST_P(NormRange, Zeros) { zeros_are_right(context()); }
TEST_P(NormRange, ProductsBeyondTheRange) { products_are_right(context()); }
TEST_P(NormRange, ScaledGradientsBeyondTheRange) { scaled_gradients_are_right(context()); }
TEST_P(NormRange, ConstantRowsOfAnySize) { constant_rows_are_right(context()); }
TEST_P(NormRange, MeansFarAboveTheDeviation) { means_far_above_the_deviation(context()); }
TEST_P(NormRange, NearlyConstantRows) { nearly_constant_rows(context()); }
TEST_P(NormRange, OneLargeNumberIsSeen) { one_large_number_is_seen(context()); }
TEST_P(NormRange, SumsLeaveNothingOut) { sums_leave_nothing_out(context()); }
HEDDLE_ON_DEVICES(NormRange);

}  // namespace
}  // namespace heddle::test::norm_range_test
