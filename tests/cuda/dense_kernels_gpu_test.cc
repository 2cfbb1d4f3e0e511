// Products, column sums, elementwise kernels, log_sigmoid and dropout against the CPU: aligned, odd and strided rows,
// both modes of writing, and the same bits from run to run.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/dense/dropout.h"
#include "kernels/dense/elementwise.h"
#include "kernels/dense/gemm.h"
#include "kernels/dense/gemm_algorithms.h"
#include "kernels/dense/log_sigmoid.h"
#include "tests/cuda/gpu_test.h"

namespace heddle::kernels {
namespace {

class GemmGpu : public GpuTest {};
class ColumnSumGpu : public GpuTest {};
class ElementwiseGpu : public GpuTest {};
class LogSigmoidGpu : public GpuTest {};
class DropoutGpu : public GpuTest {};

struct GemmCase {
  int64_t m, n, k;
  Transpose a = Transpose::no, b = Transpose::no;
  bool bias = false;
  GradientMode mode = GradientMode::overwrite;
  bool wide_output = false;
  Place place = {};
};

Results run_gemm(Context& context, DType dtype, const GemmCase& c) {
  Random random(11, RandomStream::test);
  const bool across = c.a == Transpose::yes, down = c.b == Transpose::yes;
  const auto values = [&](int64_t rows, int64_t cols) {
    return placed_values(context, rows, cols, dtype, c.place, random);
  };
  const Tensor a = across ? values(c.k, c.m) : values(c.m, c.k);
  const Tensor b = down ? values(c.n, c.k) : values(c.k, c.n);
  const Tensor bias = values(1, c.n).reshape({c.n});
  const DType result = c.wide_output ? accumulate_type(dtype) : dtype;
  const Tensor y = c.mode == GradientMode::accumulate ? placed_values(context, c.m, c.n, result, c.place, random)
                                                      : placed(context, c.m, c.n, result, c.place);
  gemm(context, {.a = rows_view(a),
                 .b = rows_view(b),
                 .transpose_a = c.a,
                 .transpose_b = c.b,
                 .bias = c.bias ? vector_view(bias) : VectorView{},
                 .c = {rows_view(y), c.mode}});
  return {read_values(context, y)};
}

TEST_F(GemmGpu, AllTransposesModesAndTypes) {
  for (const DType dtype : kFloating) {
    for (const Transpose a : {Transpose::no, Transpose::yes}) {
      for (const Transpose b : {Transpose::no, Transpose::yes}) {
        for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
          for (const bool wide : {false, true}) {
            for (const bool bias : {false, true}) {
              const GemmCase c = {64, 48, 96, a, b, bias, mode, wide};
              expect_same_as_cpu(dtype, [&](Context& context, DType type) { return run_gemm(context, type, c); });
            }
          }
        }
      }
    }
  }
}

TEST_F(GemmGpu, OddSizesGapsAndUnalignedRows) {
  for (const DType dtype : kFloating) {
    for (const GemmCase& c :
         {GemmCase{1, 1, 1}, GemmCase{7, 13, 5, Transpose::yes, Transpose::no, true},
          GemmCase{33, 65, 129, Transpose::no, Transpose::yes, true, GradientMode::accumulate, true},
          GemmCase{16, 24, 32, Transpose::no, Transpose::no, true, GradientMode::accumulate, false, {8, 0}},
          GemmCase{16, 24, 32, Transpose::no, Transpose::yes, true, GradientMode::accumulate, true, {3, 1}},
          GemmCase{5, 9, 0, Transpose::no, Transpose::no, true},
          GemmCase{5, 9, 0, Transpose::no, Transpose::no, false, GradientMode::accumulate}, GemmCase{5, 9, 0}}) {
      expect_same_as_cpu(dtype, [&](Context& context, DType type) { return run_gemm(context, type, c); });
    }
  }
}

// The gradient of a weight: few outputs, long sums, which the library splits.
TEST_F(GemmGpu, LongSums) {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    const GemmCase c = {64, 96, 8192, Transpose::yes, Transpose::no, false, GradientMode::accumulate, true};
    expect_same_as_cpu(dtype, [&](Context& context, DType type) { return run_gemm(context, type, c); });
  }
}

// The fastest of the algorithms computes the same product, is found once, and gives the same bits where it is known.
TEST_F(GemmGpu, SearchedAlgorithms) {
  const GemmCase large = {1024, 1024, 1024, Transpose::no, Transpose::yes, true};
  GemmCase adding = large;
  adding.mode = GradientMode::accumulate;
  expect_same_as_cpu(DType::bfloat16, [&](Context& context, DType type) {
    context.resource<GemmAlgorithms>().search = true;
    return run_gemm(context, type, large);
  });

  Context first({DeviceType::cuda, 0});
  auto& found = first.resource<GemmAlgorithms>();
  found.search = true;
  run_gemm(first, DType::bfloat16, {64, 48, 96});
  run_gemm(first, DType::bfloat16, adding);
  EXPECT_TRUE(found.known.empty()) << "small products and those that add are not timed";
  const Results result = run_gemm(first, DType::bfloat16, large);
  ASSERT_EQ(found.known.size(), 1u);
  const auto [problem, algorithm] = *found.known.begin();
  EXPECT_EQ(problem.find(' '), std::string::npos);
  run_gemm(first, DType::bfloat16, large);
  EXPECT_EQ(found.known.size(), 1u);

  for (const std::string& known : {algorithm, std::string("not an algorithm"), std::string(algorithm.size(), 'f')}) {
    Context second({DeviceType::cuda, 0});
    auto& algorithms = second.resource<GemmAlgorithms>();
    algorithms.search = true;
    algorithms.known[problem] = known;
    const Results again = run_gemm(second, DType::bfloat16, large);
    if (known == algorithm) {
      EXPECT_EQ(again, result);
      EXPECT_EQ(algorithms.known.at(problem), algorithm);
    } else {
      EXPECT_NE(algorithms.known.at(problem), known) << "what is no algorithm of the library is found anew";
    }
  }
}

// Sums that the library is not given whole: those of a vector, and very long ones.
// Sums that are cut into parts, with a bias, added to what is there; the vector is a column of a wider matrix.
TEST_F(GemmGpu, PartsOfSumsAndColumnsAsVectors) {
  for (const DType dtype : kFloating) {
    for (const auto& [m, n, k] : {std::array<int64_t, 3>{6, 8, 70001}, {70, 1, 9001}, {1, 70, 9001}}) {
      const GemmCase c = {m, n, k, Transpose::no, Transpose::no, true, GradientMode::accumulate, true, Place{3, 1}};
      expect_same_as_cpu(dtype, [&](Context& context, DType type) { return run_gemm(context, type, c); });
    }
  }
}

// An infinite term makes an infinite sum, in every way in which sums are computed.
TEST_F(GemmGpu, AnInfiniteTermMakesAnInfiniteSum) {
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  Context context({DeviceType::cuda, 0});
  for (const DType dtype : kFloating) {
    for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 3, 300}, {70, 1, 9001}, {1, 70, 9001}, {6, 8, 70001}}) {
      const Tensor a = Tensor::empty(context, {m, k}, dtype), b = Tensor::empty(context, {k, n}, dtype);
      const Tensor y = Tensor::empty(context, {m, n}, dtype);
      std::vector<double> numbers(static_cast<size_t>(m * k), 0.0);
      for (int64_t row = 0; row < m; ++row) numbers[static_cast<size_t>(row * k + k / 2)] = kInfinite;
      write_values(context, a, numbers);
      write_values(context, b, std::vector<double>(static_cast<size_t>(k * n), 1.0));
      gemm(context, {.a = rows_view(a), .b = rows_view(b), .bias = {}, .c = {rows_view(y), GradientMode::overwrite}});
      EXPECT_EQ(read_values(context, y), std::vector<double>(static_cast<size_t>(m * n), kInfinite))
          << name(dtype) << " " << m << " " << n << " " << k;
    }
  }
}

TEST_F(GemmGpu, VectorsAndVeryLongSums) {
  const int64_t sizes[][3] = {{1, 1, 9001},   {1, 70, 9001},   {70, 1, 9001}, {1, 3, 100003},
                              {3, 1, 100003}, {24, 40, 70001}, {5, 3, 131072}};
  for (const DType dtype : kFloating) {
    for (const auto& [m, n, k] : sizes) {
      for (const Transpose a : {Transpose::no, Transpose::yes}) {
        for (const Transpose b : {Transpose::no, Transpose::yes}) {
          for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
            const bool adds = mode == GradientMode::accumulate;
            const GemmCase c = {m, n, k, a, b, adds, mode, adds, adds ? Place{3, 1} : Place{}};
            expect_same_as_cpu(dtype, [&](Context& context, DType type) { return run_gemm(context, type, c); });
          }
        }
      }
    }
  }
}

struct RowsCase {
  int64_t rows, cols;
  Place place = {};
};
constexpr RowsCase kRows[] = {{64, 256},         {1, 1}, {7, 13}, {33, 40, {8, 0}}, {33, 40, {3, 1}},
                              {5, 1000, {0, 1}}, {0, 8}};

TEST_F(ColumnSumGpu, MatchesTheCpu) {
  for (const DType dtype : kFloating) {
    for (const RowsCase& c : {RowsCase{64, 256}, RowsCase{1, 1}, RowsCase{3000, 13}, RowsCase{777, 40, {3, 1}},
                              RowsCase{20000, 64}, RowsCase{16, 5000}, RowsCase{0, 9}}) {
      for (const bool wide : {false, true}) {
        for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
          expect_same_as_cpu(dtype, [&](Context& context, DType type) -> Results {
            Random random(12, RandomStream::test);
            const Tensor x = placed_values(context, c.rows, c.cols, type, c.place, random);
            const DType result = wide ? accumulate_type(type) : type;
            const Tensor sums = mode == GradientMode::accumulate ? placed_values(context, 1, c.cols, result, {}, random)
                                                                 : placed(context, 1, c.cols, result, {});
            column_sum(context, {.x = rows_view(x), .sums = {vector_view(sums), mode}});
            return {read_values(context, sums)};
          });
        }
      }
    }
  }
}

TEST_F(ElementwiseGpu, ActivationsAndGatedUnits) {
  for (const DType dtype : kFloating) {
    for (const ActivationName& one : kElementwiseActivations) {
      SCOPED_TRACE(one.name);
      const Activation act = one.activation;
      for (const RowsCase& c : kRows) {
        for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
          expect_same_as_cpu(
              dtype,
              [&](Context& context, DType type) -> Results {
                Random random(13, RandomStream::test);
                const auto values = [&] { return placed_values(context, c.rows, c.cols, type, c.place, random); };
                const auto output = [&] {
                  return mode == GradientMode::accumulate ? values() : placed(context, c.rows, c.cols, type, c.place);
                };
                const Tensor a = values(), b = values(), d_y = values();
                const Tensor y = placed(context, c.rows, c.cols, type, c.place);
                const Tensor glu = placed(context, c.rows, c.cols, type, c.place);
                const Tensor d_x = output(), d_a = output(), d_b = output(), only_b = output();
                activation_forward(context, {.x = rows_view(a), .y = rows_view(y), .act = act});
                activation_backward(
                    context, {.x = rows_view(a), .d_y = rows_view(d_y), .d_x = {rows_view(d_x), mode}, .act = act});
                glu_forward(context, {.a = rows_view(a), .b = rows_view(b), .y = rows_view(glu), .act = act});
                glu_backward(context, {.a = rows_view(a),
                                       .b = rows_view(b),
                                       .d_y = rows_view(d_y),
                                       .d_a = {rows_view(d_a), mode},
                                       .d_b = {rows_view(d_b), mode},
                                       .act = act});
                glu_backward(context, {.a = rows_view(a),
                                       .b = rows_view(b),
                                       .d_y = rows_view(d_y),
                                       .d_a = {},
                                       .d_b = {rows_view(only_b), mode},
                                       .act = act});
                Results results;
                for (const Tensor& result : {y, d_x, glu, d_a, d_b, only_b}) {
                  results.push_back(read_values(context, result));
                }
                return results;
              },
              c.rows* c.cols == 1 ? 20.0 : 2.0);  // what is added to a single number may cancel it
        }
      }
    }
  }
}

TEST_F(ElementwiseGpu, AddsInPlace) {
  for (const DType dtype : kFloating) {
    for (const RowsCase& c : kRows) {
      expect_same_as_cpu(dtype, [&](Context& context, DType type) -> Results {
        Random random(14, RandomStream::test);
        const Tensor a = placed_values(context, c.rows, c.cols, type, c.place, random);
        const Tensor b = placed_values(context, c.rows, c.cols, type, c.place, random);
        accumulate(context, {.from = rows_view(b), .to = {rows_view(a), GradientMode::accumulate}});
        return {read_values(context, a)};
      });
    }
  }
}

TEST_F(ElementwiseGpu, ConvertsBetweenAllTypes) {
  Context cpu, gpu({DeviceType::cuda, 0});
  for (const DType from : kFloating) {
    for (const DType to : kFloating) {
      for (const RowsCase& c : kRows) {
        for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
          const auto run = [&](Context& context) {
            Random random(15, RandomStream::test);
            const Tensor source = placed_values(context, c.rows, c.cols, from, c.place, random);
            const Tensor result = mode == GradientMode::accumulate
                                      ? placed_values(context, c.rows, c.cols, to, c.place, random)
                                      : placed(context, c.rows, c.cols, to, c.place);
            accumulate(context, {.from = rows_view(source), .to = {rows_view(result), mode}, .scale = 0.3});
            return read_values(context, result);
          };
          EXPECT_LE(largest_error(run(gpu), run(cpu)), std::max(tolerance(from), tolerance(to)))
              << name(from) << " to " << name(to) << ", " << c.rows << " x " << c.cols;
        }
      }
    }
  }
}

// More than 2^31 elements: indices are 64 bits wide.
TEST_F(ElementwiseGpu, MoreThanTwoBillionElements) {
  Context context({DeviceType::cuda, 0});
  if (context.properties().memory_bytes < size_t{12} << 30) GTEST_SKIP() << "takes 9 GB of device memory";
  const int64_t rows = 70000, cols = 32768;
  const Tensor x = Tensor::zeros(context, {rows, cols}, DType::bfloat16);
  const Tensor y = Tensor::empty(context, {rows, cols}, DType::bfloat16);
  poison(context, y);
  const Tensor tail = x.slice(0, rows - 1, rows);
  write_values(context, tail, std::vector<double>(static_cast<size_t>(cols), 2.0));
  accumulate(context, {.from = rows_view(x), .to = {rows_view(y)}, .scale = 2.0});
  EXPECT_EQ(read_values(context, y.slice(0, rows - 1, rows)), std::vector<double>(static_cast<size_t>(cols), 4.0));
  EXPECT_EQ(read_values(context, y.slice(0, rows / 2, rows / 2 + 1)),
            std::vector<double>(static_cast<size_t>(cols), 0.0));
}

TEST_F(LogSigmoidGpu, MatchesTheCpu) {
  for (const DType dtype : kFloating) {
    for (const RowsCase& c : kRows) {
      for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
        expect_same_as_cpu(
            dtype,
            [&](Context& context, DType type) -> Results {
              Random random(19, RandomStream::test);
              const DType wide = accumulate_type(type);
              const auto values = [&](DType of) { return placed_values(context, c.rows, c.cols, of, c.place, random); };
              const Tensor x = values(type), d_y = values(wide), y = placed(context, c.rows, c.cols, wide, c.place);
              const Tensor d_x =
                  mode == GradientMode::accumulate ? values(type) : placed(context, c.rows, c.cols, type, c.place);
              log_sigmoid_forward(context, {.x = rows_view(x), .y = rows_view(y), .divisor = 3.0});
              log_sigmoid_backward(
                  context, {.x = rows_view(x), .d_y = rows_view(d_y), .d_x = {rows_view(d_x), mode}, .divisor = 3.0});
              return {read_values(context, y), read_values(context, d_x)};
            },
            2.0);
      }
    }
  }
}

// The same elements are dropped and the others multiplied by the same number, so every bit is that of the CPU.
TEST_F(DropoutGpu, EqualsTheCpu) {
  Context cpu, gpu({DeviceType::cuda, 0});
  for (const DType dtype : kFloating) {
    for (const RowsCase& c : kRows) {
      for (const double p : {0.25, 0.3, 1.0}) {
        for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
          for (const bool in_place : {false, true}) {
            const auto run = [&](Context& context) {
              Random random(20, RandomStream::test);
              const auto values = [&] { return placed_values(context, c.rows, c.cols, dtype, c.place, random); };
              const Tensor x = values();
              const Tensor y = in_place                           ? x
                               : mode == GradientMode::accumulate ? values()
                                                                  : placed(context, c.rows, c.cols, dtype, c.place);
              dropout(context, {.x = rows_view(x), .y = {rows_view(y), mode}, .p = p, .seed = uint64_t{7} << 32 | 5});
              return read_values(context, y);
            };
            EXPECT_EQ(run(gpu), run(cpu)) << name(dtype) << ", " << c.rows << " x " << c.cols << ", p " << p;
          }
        }
      }
    }
  }
}

TEST_F(DropoutGpu, CountsMoreThanTwoBillionElements) {
  Context context({DeviceType::cuda, 0});
  if (context.properties().memory_bytes < size_t{6} << 30) GTEST_SKIP() << "takes 5 GB of device memory";
  const int64_t rows = 70000, cols = 32768;
  const Tensor x = Tensor::zeros(context, {rows, cols}, DType::bfloat16);
  const Tensor tail = x.slice(0, rows - 1, rows);
  write_values(context, tail, std::vector<double>(static_cast<size_t>(cols), 1.0));
  dropout(context, {.x = rows_view(x), .y = {rows_view(x)}, .p = 0.5, .seed = 3});
  const DropoutRule rule(0.5, 3);
  std::vector<double> wanted(static_cast<size_t>(cols));
  for (int64_t i = 0; i < cols; ++i) {
    const int64_t element = (rows - 1) * cols + i;
    wanted[i] = rule.words(element / 4).words[element % 4] < rule.dropped_below ? 0.0 : 2.0;
  }
  EXPECT_EQ(read_values(context, tail), wanted);
}

}  // namespace
}  // namespace heddle::kernels
