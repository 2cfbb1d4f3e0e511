// Products of bfloat16, which CPUs with instructions for them compute otherwise than products of other types: the exact
// sums in double, kept in float and rounded once; numbers that are not finite; the same bits for dense and strided rows
// and for any number of threads.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/tensor/element_types.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "kernels/dense/gemm.h"

namespace heddle::kernels {
namespace {

struct Case {
  int64_t m, n, k;
  Transpose a = Transpose::no, b = Transpose::no;
  GradientMode mode = GradientMode::overwrite;
  bool wide_output = false;  // float32 instead of bfloat16
  bool bias = false;
  int64_t gap = 0;  // elements between two rows, all NaN
};

// The values of op(a), op(b), bias and of c before the product, row by row.
struct Values {
  std::vector<double> a, b, bias, c;
};

double random_bfloat16(Random& random) {
  return static_cast<double>(static_cast<bfloat16>(static_cast<float>(2.0 * random.next_uniform() - 1.0)));
}

Values random_values(const Case& c) {
  Random random(11, RandomStream::test);
  const auto draw = [&](int64_t count) {
    std::vector<double> values(static_cast<size_t>(count));
    for (double& value : values) value = random_bfloat16(random);
    return values;
  };
  return {.a = draw(c.m * c.k), .b = draw(c.k * c.n), .bias = draw(c.n), .c = draw(c.m * c.n)};
}

// A matrix whose rows lie `gap` elements apart and whose neighbours in memory are NaN.
Tensor matrix(Context& context, int64_t rows, int64_t cols, DType dtype, int64_t gap,
              const std::vector<double>& values) {
  const Tensor whole = Tensor::empty(context, {rows + 2, cols + gap}, dtype);
  poison(context, whole);
  const Tensor view = whole.slice(0, 1, rows + 1).slice(1, 0, cols);
  write_values(context, view, values);
  return view;
}

std::vector<double> transposed(const std::vector<double>& values, int64_t rows, int64_t cols) {
  std::vector<double> result(values.size());
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) result[j * rows + i] = values[i * cols + j];
  }
  return result;
}

std::vector<double> product(const Case& c, const Values& values, int threads = 2) {
  Context context(Device{}, {.threads = threads, .allocator = {}});
  const auto operand = [&](int64_t rows, int64_t cols, Transpose transpose, const std::vector<double>& x) {
    return transpose == Transpose::no ? matrix(context, rows, cols, DType::bfloat16, c.gap, x)
                                      : matrix(context, cols, rows, DType::bfloat16, c.gap, transposed(x, rows, cols));
  };
  const Tensor a = operand(c.m, c.k, c.a, values.a), b = operand(c.k, c.n, c.b, values.b);
  const Tensor bias = matrix(context, 1, c.n, DType::bfloat16, 0, values.bias);
  const Tensor y = matrix(context, c.m, c.n, c.wide_output ? DType::float32 : DType::bfloat16, c.gap, values.c);
  gemm(context, {.a = rows_view(a),
                 .b = rows_view(b),
                 .transpose_a = c.a,
                 .transpose_b = c.b,
                 .bias = c.bias ? vector_view(bias) : VectorView{},
                 .c = {rows_view(y), c.mode}});
  return read_values(context, y);
}

// The exact product, and the sum of the absolute values of its terms, to which rounding errors of the sum are relative.
struct Exact {
  double value, magnitude;
};

Exact exact(const Case& c, const Values& values, int64_t i, int64_t j) {
  Exact sum{0.0, 0.0};
  const auto add = [&](double term) { sum = {sum.value + term, sum.magnitude + std::abs(term)}; };
  for (int64_t p = 0; p < c.k; ++p) add(values.a[i * c.k + p] * values.b[p * c.n + j]);
  if (c.bias) add(values.bias[j]);
  if (c.mode == GradientMode::accumulate) add(values.c[i * c.n + j]);
  return sum;
}

void expect_exact_but_for_rounding(const Case& c) {
  SCOPED_TRACE(::testing::Message() << c.m << " x " << c.n << " x " << c.k << ", transposes " << static_cast<int>(c.a)
                                    << " " << static_cast<int>(c.b) << ", mode " << static_cast<int>(c.mode)
                                    << ", wide " << c.wide_output << ", bias " << c.bias << ", gap " << c.gap);
  const Values values = random_values(c);
  const auto found = product(c, values);
  ASSERT_EQ(found.size(), values.c.size());
  for (int64_t i = 0; i < c.m; ++i) {
    for (int64_t j = 0; j < c.n; ++j) {
      const auto [value, magnitude] = exact(c, values, i, j);
      // The error of sums in float grows with the square root of the number of terms, within a factor of a few.
      const double of_the_sum = std::ldexp(magnitude, -24) * (2.0 + std::sqrt(static_cast<double>(c.k)));
      const double of_the_store = c.wide_output ? 0.0 : std::ldexp(std::abs(value) + of_the_sum, -8);
      ASSERT_NEAR(found[i * c.n + j], value, of_the_sum + of_the_store) << "element " << i << ", " << j;
    }
  }
}

constexpr Transpose kBoth[] = {Transpose::no, Transpose::yes};
constexpr GradientMode kModes[] = {GradientMode::overwrite, GradientMode::accumulate};

TEST(Bfloat16Gemm, IsRoundedOnceForAllTransposesModesAndStrides) {
  for (Transpose a : kBoth) {
    for (Transpose b : kBoth) {
      for (GradientMode mode : kModes) {
        for (bool wide : {false, true}) {
          for (int64_t gap : {0, 3, 32}) {
            expect_exact_but_for_rounding({65, 97, 130, a, b, mode, wide, gap == 3, gap});
          }
        }
      }
    }
  }
}

TEST(Bfloat16Gemm, OddAndEmptyExtents) {
  const int64_t sizes[] = {0, 1, 2, 15, 16, 17, 33};
  for (int64_t m : sizes) {
    for (int64_t n : sizes) {
      for (int64_t k : sizes) {
        const bool odd = (m + n + k) % 2 == 1;
        expect_exact_but_for_rounding({m, n, k, odd ? Transpose::yes : Transpose::no,
                                       m % 2 == 1 ? Transpose::yes : Transpose::no,
                                       odd ? GradientMode::accumulate : GradientMode::overwrite, n % 2 == 1, odd, 5});
      }
    }
  }
}

// Results of several panels, sums that are cut for the threads, and sums of several panels in one block.
TEST(Bfloat16Gemm, ManyPanelsAndLongSums) {
  expect_exact_but_for_rounding({700, 530, 65, Transpose::no, Transpose::yes, GradientMode::accumulate, false, true});
  expect_exact_but_for_rounding({300, 270, 2100, Transpose::yes, Transpose::no, GradientMode::overwrite, true, true});
  expect_exact_but_for_rounding({140, 1030, 1300, Transpose::no, Transpose::no, GradientMode::accumulate, false});
  expect_exact_but_for_rounding({40, 24, 9001, Transpose::yes, Transpose::no, GradientMode::accumulate, true, true, 1});
}

// A number that is not finite reaches its row or column, and no other element: neither do those between the rows, nor
// does 0 times one of them where oneDNN fills up its blocks.
TEST(Bfloat16Gemm, InfinitiesAndNaNsReachTheirRowsAndColumnsOnly) {
  constexpr double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (Transpose a : kBoth) {
    for (Transpose b : kBoth) {
      for (int64_t k : {31, 64, 101}) {
        const Case c{37, 45, k, a, b, GradientMode::overwrite, false, false, 1};
        const Values finite = random_values(c);
        Values values = finite;
        values.a[5 * k + k - 1] = infinity;
        values.a[9 * k + 3] = nan;
        values.b[(k - 1) * c.n + 44] = nan;
        const auto clean = product(c, finite), found = product(c, values);
        for (int64_t i = 0; i < c.m; ++i) {
          for (int64_t j = 0; j < c.n; ++j) {
            const double value = found[i * c.n + j];
            if (i == 9 || j == 44) {
              ASSERT_TRUE(std::isnan(value)) << i << ", " << j;
            } else if (i == 5) {
              const double sign = finite.b[(k - 1) * c.n + j];
              ASSERT_TRUE(sign == 0.0 ? std::isnan(value) : value == std::copysign(infinity, sign)) << i << ", " << j;
            } else {
              ASSERT_EQ(value, clean[i * c.n + j]) << i << ", " << j;
            }
          }
        }
      }
    }
  }
}

TEST(Bfloat16Gemm, AResultBeyondTheLargestNumberIsInfinite) {
  const Case c{3, 4, 2, Transpose::no, Transpose::no};
  const Values values{.a = std::vector<double>(6, std::ldexp(1.0, 100)),
                      .b = std::vector<double>(8, -std::ldexp(1.0, 100)),
                      .bias = std::vector<double>(4),
                      .c = std::vector<double>(12)};
  for (double value : product(c, values)) EXPECT_EQ(value, -std::numeric_limits<double>::infinity());
}

TEST(Bfloat16Gemm, StridedRowsGiveTheBitsOfDenseOnes) {
  for (Transpose a : kBoth) {
    for (Transpose b : kBoth) {
      for (GradientMode mode : kModes) {
        for (bool wide : {false, true}) {
          Case c{130, 75, 200, a, b, mode, wide};
          const Values values = random_values(c);
          const auto dense = product(c, values);
          for (int64_t gap : {1, 7, 56, 312}) {
            c.gap = gap;
            EXPECT_EQ(product(c, values), dense) << gap;
          }
        }
      }
    }
  }
}

TEST(Bfloat16GemmThreaded, SameBitsForAnyNumberOfThreads) {
  const Case cases[] = {
      {515, 384, 128, Transpose::no, Transpose::yes, GradientMode::overwrite, false, true, 3},
      {384, 128, 4096, Transpose::yes, Transpose::no, GradientMode::accumulate, true},
      {96, 130, 4099, Transpose::yes, Transpose::no, GradientMode::accumulate, false, false, 2},
      {300, 270, 1500, Transpose::no, Transpose::no, GradientMode::overwrite, false},
      {5, 7, 9, Transpose::no, Transpose::no},
  };
  for (const Case& c : cases) {
    const Values values = random_values(c);
    const auto one = product(c, values, 1);
    for (int threads : {1, 2, 3}) {
      for (int run = 0; run < 2; ++run) EXPECT_EQ(product(c, values, threads), one) << threads;
    }
  }
}

}  // namespace
}  // namespace heddle::kernels
