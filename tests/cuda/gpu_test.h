// What the tests on a real GPU share: a fixture that skips where there is none, and the comparison of a kernel on the
// GPU with the same kernel on the CPU in a wider dtype.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/runtime/backend.h"
#include "core/runtime/context.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"

namespace heddle {

inline constexpr DType kFloating[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "no CUDA device here";
  }
};

// Multiples of 1/64 between -4 and 4: the same numbers in every dtype.
inline std::vector<double> exact_values(int64_t count, Random& random) {
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) value = (static_cast<double>(random.next_below(511)) - 255.0) / 64.0;
  return values;
}

// How the rows of a tensor lie: `gap` NaN elements after each, the first one `shift` elements after an aligned address.
struct Place {
  int64_t gap = 0;
  int64_t shift = 0;
};

// (rows, cols), all NaN.
inline Tensor placed(Context& context, int64_t rows, int64_t cols, DType dtype, Place place) {
  const Tensor memory = Tensor::empty(context, {rows * (cols + place.gap) + place.shift}, dtype);
  poison(context, memory);
  const Tensor whole = memory.slice(0, place.shift, memory.numel()).reshape({rows, cols + place.gap});
  return whole.slice(1, 0, cols);
}

inline Tensor placed_values(Context& context, int64_t rows, int64_t cols, DType dtype, Place place, Random& random) {
  const Tensor tensor = placed(context, rows, cols, dtype, place);
  write_values(context, tensor, exact_values(rows * cols, random));
  return tensor;
}

inline Tensor int32_values(Context& context, int64_t count, int64_t bound, Random& random) {
  const Tensor tensor = Tensor::empty(context, {count}, DType::int32);
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) value = static_cast<double>(random.next_below(static_cast<uint64_t>(bound)));
  write_values(context, tensor, values);
  return tensor;
}

// Largest difference, each relative to the larger of the expected number and the root mean square of all; NaN is worse
// than anything.
inline double largest_error(const std::vector<double>& found, const std::vector<double>& expected) {
  if (found.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double squares = 0.0;
  for (const double value : expected) squares += value * value;
  const double typical = std::sqrt(squares / std::max<double>(1.0, static_cast<double>(expected.size()))) + 1e-30;
  double worst = 0.0;
  for (size_t i = 0; i < found.size(); ++i) {
    const double error = std::abs(found[i] - expected[i]) / std::max(std::abs(expected[i]), typical);
    if (!(error <= worst)) worst = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
  }
  return worst;
}

// Of one stored result: the rounding of the dtype, with room for the order of summation.
inline double tolerance(DType dtype) {
  switch (dtype) {
    case DType::float64:
      return 1e-12;
    case DType::float32:
      return 1e-5;
    case DType::bfloat16:
      return 8e-3;
    default:
      return 1e-3;
  }
}

using Results = std::vector<std::vector<double>>;

// Runs `work` on the CPU in float64 and on the GPU in `dtype` twice: the results are close, and the two of the GPU are
// the same bits.
inline void expect_same_as_cpu(DType dtype, const std::function<Results(Context&, DType)>& work, double room = 1.0) {
  Context cpu;
  Context gpu = Context({DeviceType::cuda, 0});
  const Results expected = work(cpu, DType::float64);
  const Results found = work(gpu, dtype);
  const Results again = work(gpu, dtype);
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_LE(largest_error(found[i], expected[i]), room * tolerance(dtype)) << "result " << i << " " << name(dtype);
    EXPECT_EQ(found[i], again[i]) << "result " << i << " differs from run to run, " << name(dtype);
  }
}

}  // namespace heddle
