// Products and column sums against loops in double: all dtypes, transposes, strided rows, empty extents, both modes,
// and the same bits for any number of threads.
#include "kernels/dense/gemm.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"

namespace heddle::kernels {
namespace {

constexpr DType kAll[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

// A (rows, cols) view with `gap` unused elements after each row, all NaN at first.
Tensor padded(Context& context, int64_t rows, int64_t cols, DType dtype, int64_t gap) {
  const Tensor whole = Tensor::empty(context, {rows, cols + gap}, dtype);
  poison(context, whole);
  return whole.slice(1, 0, cols);
}

Tensor random_rows(Context& context, int64_t rows, int64_t cols, DType dtype, int64_t gap, Random& random) {
  const Tensor tensor = padded(context, rows, cols, dtype, gap);
  std::vector<double> values(static_cast<size_t>(rows * cols));
  for (double& value : values) value = 2.0 * random.next_uniform() - 1.0;
  write_values(context, tensor, values);
  return tensor;
}

double tolerance(DType dtype, int64_t k) {
  switch (dtype) {
    case DType::float64:
      return 1e-14 * static_cast<double>(k + 1);
    case DType::float32:
      return 1e-6 * std::sqrt(static_cast<double>(k + 1));
    case DType::bfloat16:
      return 8e-3 * std::sqrt(static_cast<double>(k + 1));
    default:
      return 1e-3 * std::sqrt(static_cast<double>(k + 1));
  }
}

struct ProductCase {
  int64_t m, n, k, gap;
  Transpose a = Transpose::no, b = Transpose::no;
  bool bias = false;
  GradientMode mode = GradientMode::overwrite;
  bool wide_output = false;  // the accumulate type instead of the operands'
};

std::vector<double> run_gemm(int threads, DType dtype, const ProductCase& c, std::vector<double>* expected = nullptr) {
  Context context(Device{}, {.threads = threads, .allocator = {}});
  Random random(7, RandomStream::test);
  const bool a_is_transposed = c.a == Transpose::yes, b_is_transposed = c.b == Transpose::yes;
  const Tensor a = random_rows(context, a_is_transposed ? c.k : c.m, a_is_transposed ? c.m : c.k, dtype, c.gap, random);
  const Tensor b = random_rows(context, b_is_transposed ? c.n : c.k, b_is_transposed ? c.k : c.n, dtype, c.gap, random);
  const Tensor bias = random_rows(context, 1, c.n, dtype, 0, random);
  const DType output = c.wide_output ? accumulate_type(dtype) : dtype;
  const Tensor y = c.mode == GradientMode::accumulate ? random_rows(context, c.m, c.n, output, c.gap, random)
                                                      : padded(context, c.m, c.n, output, c.gap);
  if (expected != nullptr) {
    const auto left = read_values(context, a), right = read_values(context, b), offset = read_values(context, bias);
    *expected = c.mode == GradientMode::accumulate ? read_values(context, y)
                                                   : std::vector<double>(static_cast<size_t>(c.m * c.n), 0.0);
    for (int64_t i = 0; i < c.m; ++i) {
      for (int64_t j = 0; j < c.n; ++j) {
        double sum = c.bias ? offset[j] : 0.0;
        for (int64_t p = 0; p < c.k; ++p) {
          sum += left[a_is_transposed ? p * c.m + i : i * c.k + p] * right[b_is_transposed ? j * c.k + p : p * c.n + j];
        }
        (*expected)[i * c.n + j] += sum;
      }
    }
  }
  gemm(context, {.a = rows_view(a),
                 .b = rows_view(b),
                 .transpose_a = c.a,
                 .transpose_b = c.b,
                 .bias = c.bias ? vector_view(bias) : VectorView{},
                 .c = {rows_view(y), c.mode}});
  return read_values(context, y);
}

void expect_product(const std::vector<double>& found, const std::vector<double>& expected, double tolerance) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_NEAR(found[i], expected[i], tolerance * std::max(1.0, std::abs(expected[i]))) << "element " << i;
  }
}

TEST(Gemm, EqualsTheLoopsForAllTypesTransposesAndModes) {
  for (DType dtype : kAll) {
    for (Transpose a : {Transpose::no, Transpose::yes}) {
      for (Transpose b : {Transpose::no, Transpose::yes}) {
        for (GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
          for (bool bias : {false, true}) {
            for (bool wide : {false, true}) {
              const ProductCase c{67, 131, 259, 5, a, b, bias, mode, wide};
              SCOPED_TRACE(::testing::Message() << name(dtype) << " transposes " << static_cast<int>(a) << " "
                                                << static_cast<int>(b) << " bias " << bias << " wide " << wide);
              std::vector<double> expected;
              const auto found = run_gemm(2, dtype, c, &expected);
              expect_product(found, expected, tolerance(wide ? accumulate_type(dtype) : dtype, c.k));
            }
          }
        }
      }
    }
  }
}

TEST(Gemm, SmallAndEmptyExtents) {
  const int64_t sizes[] = {0, 1, 2, 17};
  for (DType dtype : kAll) {
    for (int64_t m : sizes) {
      for (int64_t n : sizes) {
        for (int64_t k : sizes) {
          for (GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
            SCOPED_TRACE(::testing::Message() << name(dtype) << " " << m << " " << n << " " << k);
            std::vector<double> expected;
            const ProductCase c{m, n, k, 3, Transpose::no, Transpose::yes, true, mode};
            const auto found = run_gemm(1, dtype, c, &expected);
            expect_product(found, expected, tolerance(dtype, k));
          }
        }
      }
    }
  }
}

// Small results of long sums are made of partial sums, large ones of many tiles.
TEST(Gemm, LongSumsAndLargeResults) {
  for (DType dtype : kAll) {
    for (const ProductCase& c :
         {ProductCase{130, 70, 2051, 1, Transpose::yes, Transpose::no, true},
          ProductCase{33, 65, 4097, 2, Transpose::yes, Transpose::no, true, GradientMode::accumulate, true},
          ProductCase{1030, 517, 9, 0, Transpose::no, Transpose::yes, true, GradientMode::accumulate},
          ProductCase{2, 9001, 3, 1, Transpose::no, Transpose::yes, true, GradientMode::accumulate},
          ProductCase{2, 9001, 3, 1, Transpose::no, Transpose::yes, true}}) {
      SCOPED_TRACE(::testing::Message() << name(dtype) << " " << c.m << " " << c.n << " " << c.k);
      std::vector<double> expected;
      const auto found = run_gemm(2, dtype, c, &expected);
      expect_product(found, expected, tolerance(c.wide_output ? accumulate_type(dtype) : dtype, c.k));
    }
  }
}

// A result that is a row or a column, from sums that the library is not given, and sums so long that they are cut.
TEST(Gemm, VectorsAndVeryLongSums) {
  const int64_t sizes[][3] = {{1, 1, 300},   {1, 70, 300},   {70, 1, 300},   {1, 600, 1030}, {1, 1100, 50},
                              {1100, 1, 50}, {1, 1100, 300}, {1100, 1, 300}, {5, 1, 20011},  {3, 2, 20011}};
  for (DType dtype : kAll) {
    for (const auto& [m, n, k] : sizes) {
      for (Transpose a : {Transpose::no, Transpose::yes}) {
        for (Transpose b : {Transpose::no, Transpose::yes}) {
          for (GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
            const ProductCase c{m, n, k, 3, a, b, mode == GradientMode::accumulate, mode, b == Transpose::yes};
            SCOPED_TRACE(::testing::Message() << name(dtype) << " " << m << " " << n << " " << k << " transposes "
                                              << static_cast<int>(a) << " " << static_cast<int>(b));
            std::vector<double> expected;
            const auto found = run_gemm(2, dtype, c, &expected);
            // Rounding errors do not grow with k, but the terms that cancel in these sums do.
            expect_product(found, expected, tolerance(c.wide_output ? accumulate_type(dtype) : dtype, k));
          }
        }
      }
    }
  }
}

TEST(GemmThreaded, SameBitsForAnyNumberOfThreads) {
  const ProductCase cases[] = {{515, 384, 128, 3, Transpose::no, Transpose::yes, true},
                               {1, 70, 9001, 0, Transpose::yes, Transpose::no},
                               {3, 1, 20011, 1, Transpose::no, Transpose::no, true},
                               {2, 3, 20011, 1, Transpose::yes, Transpose::no},
                               {130, 70, 2050, 1, Transpose::yes, Transpose::no, false, GradientMode::accumulate, true},
                               {1, 700, 300, 0, Transpose::no, Transpose::yes, true}};
  for (DType dtype : kAll) {
    for (const ProductCase& c : cases) {
      const auto one = run_gemm(1, dtype, c);
      EXPECT_EQ(one, run_gemm(2, dtype, c)) << name(dtype);
      EXPECT_EQ(one, run_gemm(3, dtype, c)) << name(dtype);
    }
  }
}

std::vector<double> run_column_sum(int threads, DType dtype, int64_t rows, int64_t cols, GradientMode mode, bool wide,
                                   std::vector<double>* expected = nullptr) {
  Context context(Device{}, {.threads = threads, .allocator = {}});
  Random random(8, RandomStream::test);
  const Tensor x = random_rows(context, rows, cols, dtype, 3, random);
  const DType output = wide ? accumulate_type(dtype) : dtype;
  const Tensor sums = mode == GradientMode::accumulate ? random_rows(context, 1, cols, output, 0, random)
                                                       : padded(context, 1, cols, output, 0);
  if (expected != nullptr) {
    *expected = mode == GradientMode::accumulate ? read_values(context, sums)
                                                 : std::vector<double>(static_cast<size_t>(cols), 0.0);
    const auto values = read_values(context, x);
    for (int64_t i = 0; i < rows * cols; ++i) (*expected)[i % cols] += values[i];
  }
  column_sum(context, {.x = rows_view(x), .sums = {vector_view(sums), mode}});
  return read_values(context, sums);
}

TEST(ColumnSum, EqualsTheLoops) {
  for (DType dtype : kAll) {
    for (int64_t rows : {0, 1, 63, 200}) {
      for (int64_t cols : {1, 64, 131}) {
        for (GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
          for (bool wide : {false, true}) {
            std::vector<double> expected;
            const auto found = run_column_sum(2, dtype, rows, cols, mode, wide, &expected);
            expect_product(found, expected, tolerance(wide ? accumulate_type(dtype) : dtype, rows));
          }
        }
      }
    }
  }
}

TEST(ColumnSumThreaded, SameBitsForAnyNumberOfThreads) {
  for (DType dtype : kAll) {
    const auto one = run_column_sum(1, dtype, 300, 200, GradientMode::overwrite, true);
    EXPECT_EQ(one, run_column_sum(3, dtype, 300, 200, GradientMode::overwrite, true));
  }
}

}  // namespace
}  // namespace heddle::kernels
