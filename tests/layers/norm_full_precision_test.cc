// Norms of 16-bit numbers whose weight and bias are float32: against the unfused formulas in long double, on the CPU
// and, where there is one, on a GPU. What is stored in 16 bits is rounded once, and the gradients of the parameters not
// at all.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tests/layers/norm_formula.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::norm_full_precision_test {
namespace {

constexpr DType k16Bits[] = {DType::bfloat16, DType::float16};

// The options that there are, each half of the time.
enum Variant { centered = 1, grouped = 2, with_residual = 4, with_bias = 8, with_gate = 16, all_variants = 32 };

// Normal numbers; those of x and residual are multiples of 1/16, so that their sum is exact.
Problem problem_of(DType dtype, int64_t rows, int64_t dim, int variant) {
  Problem problem{.name = fmt::format("{} ({}, {}) variant {}", name(dtype), rows, dim, variant),
                  .dtype = dtype,
                  .rows = rows,
                  .dim = dim};
  problem.parameters = DType::float32;
  problem.options.center = (variant & centered) != 0;
  problem.options.groups = (variant & grouped) != 0 && dim % 2 == 0 ? 2 : 1;
  problem.options.scale = 0.7;
  problem.options.gate_act = Activation::silu;
  problem.options.gate_position = dim % 3 == 0 ? GatePosition::pre : GatePosition::post;
  Random random(11, RandomStream::test);
  const auto draw = [&](const std::string& input, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      double number = random.next_normal();
      if (input == "x" || input == "residual") number = std::round(16.0 * number) / 16.0;
      problem.inputs[input].push_back(round_to(problem.dtype_of(input), number));
    }
  };
  for (const char* input : {"x", "d_y"}) draw(input, rows * dim);
  draw("weight", dim);
  if ((variant & with_bias) != 0) draw("bias", dim);
  if ((variant & with_gate) != 0) draw("gate", rows * dim);
  if ((variant & with_residual) != 0) {
    for (const char* input : {"residual", "d_r"}) draw(input, rows * dim);
  }
  return problem;
}

// Numbers of 16 bits are off by half of their last digit and what float32 loses on the way, those of float32 by the
// latter alone. `old` are the gradients that were added to.
void expect_rounded_once(const Problem& problem, const Tensors& found, const Expected& expected,
                         const Tensors& old = {}) {
  for (const auto& [name, numbers] : found) {
    const Numbers &values = expected.values.at(name), &sizes = expected.sizes.at(name);
    const double largest = *std::max_element(sizes.begin(), sizes.end());
    const DType dtype = problem.dtype_of(name);
    const double half = dtype == DType::bfloat16 ? 0x1p-9 : dtype == DType::float16 ? 0x1p-12 : 0x1p-25;
    ASSERT_EQ(numbers.size(), values.size()) << name;
    for (size_t i = 0; i < numbers.size(); ++i) {
      const double wanted = values[i] + (old.contains(name) ? old.at(name)[i] : 0.0);
      // The last digit of a number is up to twice as large, relative to it, as half of 2^-8 or 2^-11.
      const double allowed = 2.02 * half * std::abs(wanted) + 0x1p-18 * largest + 0x1p-25;
      ASSERT_NEAR(numbers[i], wanted, allowed) << problem.name << " " << name << "[" << i << "]";
    }
  }
}

void expect_right_and_added(Context& context, const Problem& problem) {
  const Expected expected = expected_results(problem);
  expect_rounded_once(problem, operator_results(context, problem), expected);
  Tensors old;
  Random random(12, RandomStream::test);
  for (const auto& [name, numbers] : expected.values) {
    for (size_t i = 0; name.starts_with("d_") && i < numbers.size(); ++i) {
      old[name].push_back(round_to(problem.dtype_of(name), random.next_normal()));
    }
  }
  expect_rounded_once(problem, operator_results(context, problem, old), expected, old);
}

// Lengths for each of the GPU's kernels, their ends and what lies between.
void all_lengths_are_right(Context& context) {
  for (const DType dtype : k16Bits) {
    for (const int64_t dim : {1,    2,    7,    8,    16,   24,   64,   72,   136,  256,   264,  768,
                              1000, 1024, 2048, 2056, 4088, 4096, 4097, 8192, 8200, 16384, 16392}) {
      for (int variant = 0; variant < all_variants; ++variant) {
        // With a gate, all lengths are the same kernel of a GPU.
        if (dim > 300 && ((variant & with_gate) != 0 || (variant + dim / 8) % 3 != 0)) continue;
        if (dim < 300 && (variant + dim / 8) % 3 == 0) continue;
        expect_right_and_added(context, problem_of(dtype, dim > 4000 ? 3 : 5, dim, variant));
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// More rows than there are partial sums, and than blocks take at once.
void many_rows_are_right(Context& context) {
  for (const DType dtype : k16Bits) {
    for (const int64_t dim : {5, 8, 64, 256}) {
      for (const int variant : {0, centered | with_bias, centered | with_bias | with_residual | grouped}) {
        expect_right_and_added(context, problem_of(dtype, dim > 100 ? 1003 : 4001, dim, variant));
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

// Parameters that begin in the middle of a vector of 16 bytes, and parameters without a gradient.
void placed_and_fixed_parameters_are_right(Context& context) {
  for (const DType dtype : k16Bits) {
    for (const int64_t dim : {16, 768, 4096}) {
      for (const int64_t shift : {0, 1, 4}) {
        const Problem problem = problem_of(dtype, 3, dim, centered | with_bias);
        const auto tensor = [&](const std::string& name, const Shape& shape) {
          const Tensor result = Tensor::empty(context, shape, problem.dtype_of(name));
          write_values(context, result, problem.inputs.at(name));
          return result;
        };
        const auto placed = [&](const std::string& name) {
          const Tensor memory = Tensor::empty(context, {dim + shift}, DType::float32);
          poison(context, memory);
          const Tensor result = memory.slice(0, shift, shift + dim);
          write_values(context, result, problem.inputs.at(name));
          return result;
        };
        for (const bool fixed : {false, true}) {
          std::map<std::string, Gradient> gradients;
          Tape tape(context);
          const auto parameter = [&](const std::string& name) {
            return fixed ? tape.constant(placed(name)) : tape.leaf(placed(name), gradients[name], name);
          };
          const Variable x = tape.leaf(tensor("x", {3, dim}), gradients["x"], "x");
          const NormInputs inputs{.residual = {}, .gate = {}, .weight = parameter("weight"), .bias = parameter("bias")};
          const Normed normed = norm(tape, x, inputs, problem.options);
          tape.backward(normed.y, tensor("d_y", {3, dim}));
          Tensors found{{"y", read_values(context, normed.y.value)}};
          for (const auto& [name, gradient] : gradients) found["d_" + name] = read_values(context, gradient.tensor);
          ASSERT_EQ(found.size(), fixed ? 2U : 4U);
          expect_rounded_once(problem, found, expected_results(problem));
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

class NormFullPrecision : public OnDevices {};

TEST_P(NormFullPrecision, AllLengths) { all_lengths_are_right(context()); }
TEST_P(NormFullPrecision, ManyRows) { many_rows_are_right(context()); }
TEST_P(NormFullPrecision, PlacedAndFixedParameters) { placed_and_fixed_parameters_are_right(context()); }
HEDDLE_ON_DEVICES(NormFullPrecision);

std::string refusal(DType x, DType weight, DType bias) {
  Context context{Device{DeviceType::meta}};
  Tape tape(context);
  const auto of = [&](const Shape& shape, DType dtype) { return tape.constant(Tensor::empty(context, shape, dtype)); };
  try {
    norm(tape, of({2, 4}, x), {.residual = {}, .gate = {}, .weight = of({4}, weight), .bias = of({4}, bias)}, {},
         "layer_norm");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(NormParameters, HaveOneDTypeWhichIsThatOfXOrFullPrecision) {
  const auto f64 = DType::float64, f32 = DType::float32, bf16 = DType::bfloat16, f16 = DType::float16;
  for (const DType x : {f64, f32, bf16, f16}) EXPECT_EQ(refusal(x, x, x), "") << name(x);
  for (const DType x : k16Bits) EXPECT_EQ(refusal(x, f32, f32), "") << name(x);
  EXPECT_EQ(refusal(bf16, f64, f64), "[layer_norm] weight is float64, expected bfloat16 or float32: x is bfloat16");
  EXPECT_EQ(refusal(bf16, f16, f16), "[layer_norm] weight is float16, expected bfloat16 or float32: x is bfloat16");
  EXPECT_EQ(refusal(f32, bf16, bf16), "[layer_norm] weight is bfloat16, expected float32: x is float32");
  EXPECT_EQ(refusal(f64, f32, f32), "[layer_norm] weight is float32, expected float64: x is float64");
  EXPECT_EQ(refusal(f16, f32, f16), "[layer_norm] bias is float16, expected float32: the dtype of weight");
  EXPECT_EQ(refusal(f16, f16, f32), "[layer_norm] bias is float32, expected float16: the dtype of weight");
  EXPECT_EQ(refusal(f16, f16, bf16), "[layer_norm] bias is bfloat16, expected float16 or float32: x is float16");
}

}  // namespace
}  // namespace heddle::test::norm_full_precision_test
