// Who holds which memory in the backward of a norm: gradients that are passed on unchanged, held by others, added to
// slices; operands whose rows lie differently. On the CPU and, where there is one, on a GPU.
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/gradient.h"
#include "layers/ops/norm.h"
#include "tests/layers/numbers.h"
#include "tests/layers/on_devices.h"

namespace heddle::norm_gradients_test {
namespace {

using test::random_numbers;
using Numbers = std::vector<double>;

constexpr int64_t kRows = 5, kDim = 16, kSize = kRows * kDim;

// A matrix of these numbers whose rows are `gap` elements of NaN apart; the first begins `shift` elements into memory.
Tensor rows_of(Context& context, const Numbers& numbers, DType dtype, int64_t gap = 0, int64_t shift = 0) {
  const Tensor memory = Tensor::empty(context, {kRows, kDim + gap + shift}, dtype);
  poison(context, memory);
  const Tensor rows = memory.slice(1, shift, shift + kDim);
  write_values(context, rows, numbers);
  return rows;
}

constexpr DType kDTypes[] = {DType::float64, DType::float32, DType::bfloat16};

// Nobody used y: the gradient of r goes to x and to the residual as it is, and is added where something is.
void only_r_is_used(Context& context) {
  for (const DType dtype : kDTypes) {
    for (const bool adds : {false, true}) {
      const Numbers upstream = random_numbers(kSize, 3), before = random_numbers(kSize, 4);
      Gradient d_x, d_residual;
      for (Gradient* gradient : {&d_x, &d_residual}) {
        gradient->tensor = rows_of(context, before, dtype);
        gradient->written = adds;
      }
      Tape tape(context);
      const Variable x = tape.leaf(rows_of(context, random_numbers(kSize, 1), dtype), d_x, "x");
      const Variable residual = tape.leaf(rows_of(context, random_numbers(kSize, 2), dtype), d_residual, "residual");
      const Normed normed = norm(tape, x, {.residual = residual, .gate = {}, .weight = {}, .bias = {}}, {});
      tape.backward(normed.r, rows_of(context, upstream, dtype));
      Numbers wanted = upstream;
      for (size_t i = 0; adds && i < wanted.size(); ++i) wanted[i] += before[i];
      EXPECT_EQ(read_values(context, d_x.tensor), wanted);
      EXPECT_EQ(read_values(context, d_residual.tensor), wanted);
    }
  }
}

// The incoming gradient of r belongs to somebody who reads it afterwards.
void upstream_gradients_stay(Context& context) {
  for (const DType dtype : kDTypes) {
    for (const bool uses_y : {false, true}) {
      const Numbers upstream = random_numbers(kSize, 3);
      const Tensor d_r = rows_of(context, upstream, dtype), d_y = rows_of(context, random_numbers(kSize, 5), dtype);
      Gradient d_x, d_residual;
      Tape tape(context);
      const Variable x = tape.leaf(rows_of(context, random_numbers(kSize, 1), dtype), d_x, "x");
      const Variable residual = tape.leaf(rows_of(context, random_numbers(kSize, 2), dtype), d_residual, "residual");
      // Two norms in a row: the second passes its gradients on to the outputs of the first.
      const Normed first = norm(tape, x, {.residual = residual, .gate = {}, .weight = {}, .bias = {}}, {});
      const Normed second = norm(tape, first.y, {.residual = first.r, .gate = {}, .weight = {}, .bias = {}}, {});
      std::vector<Tape::Root> roots{{second.r, d_r}};
      if (uses_y) roots.push_back({second.y, d_y});
      tape.backward(std::move(roots));
      EXPECT_EQ(read_values(context, d_r), upstream);
      EXPECT_EQ(read_values(context, d_y), random_numbers(kSize, 5));
    }
  }
}

// All gradients of one norm whose operands lie in memory as `places` say: gap and shift of x, residual, gate, d_y, d_r
// and of the gradients of the first three.
using Places = std::array<std::array<int64_t, 2>, 8>;
std::vector<Numbers> run_placed(Context& context, DType dtype, GatePosition position, bool adds, const Places& places) {
  const auto placed = [&](size_t which, uint64_t seed) {
    return rows_of(context, random_numbers(kSize, seed), dtype, places[which][0], places[which][1]);
  };
  std::array<Gradient, 5> gradients;
  for (size_t i = 0; i < 3; ++i) {
    gradients[i].tensor = placed(5 + i, 20 + i);
    gradients[i].written = adds;
  }
  NormOptions options;
  options.center = true;
  options.gate_act = Activation::silu;
  options.gate_position = position;
  Tape tape(context);
  const auto vector = [&](uint64_t seed) {
    const Tensor tensor = Tensor::empty(context, {kDim}, dtype);
    write_values(context, tensor, random_numbers(kDim, seed));
    return tensor;
  };
  const NormInputs inputs{tape.leaf(placed(1, 2), gradients[1], "residual"),
                          tape.leaf(placed(2, 3), gradients[2], "gate"), tape.leaf(vector(6), gradients[3], "weight"),
                          tape.leaf(vector(7), gradients[4], "bias")};
  const Normed normed = norm(tape, tape.leaf(placed(0, 1), gradients[0], "x"), inputs, options);
  std::vector<Numbers> results{read_values(context, normed.y.value), read_values(context, normed.r.value)};
  tape.backward({{normed.y, placed(3, 4)}, {normed.r, placed(4, 5)}});
  for (const Gradient& gradient : gradients) results.push_back(read_values(context, gradient.tensor));
  return results;
}

// One operand at a time lies differently from its fellows.
void operands_have_their_own_strides(Context& context) {
  for (const DType dtype : kDTypes) {
    for (const GatePosition position : {GatePosition::pre, GatePosition::post}) {
      for (const bool adds : {false, true}) {
        const std::vector<Numbers> dense = run_placed(context, dtype, position, adds, {});
        for (size_t other = 0; other < Places{}.size(); ++other) {
          // Whole vectors of 16 bytes further, which the GPU's fast kernels take, and less.
          for (const std::array<int64_t, 2>& place : {std::array<int64_t, 2>{16, 0}, {0, 8}, {3, 1}}) {
            Places places{};
            places[other] = place;
            const std::vector<Numbers> found = run_placed(context, dtype, position, adds, places);
            for (size_t i = 0; i < dense.size(); ++i) {
              for (size_t k = 0; k < dense[i].size(); ++k) {
                // Other kernels of a GPU add in another order.
                const double room = dtype == DType::float64 ? 1e-12 : dtype == DType::float32 ? 1e-4 : 6e-2;
                ASSERT_NEAR(found[i][k], dense[i][k], room) << "operand " << other << " result " << i << " " << k;
              }
            }
          }
        }
      }
    }
  }
}

// kernels::accumulate between matrices whose rows lie differently: what is between the rows stays.
void slices_are_added_to(Context& context) {
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      for (const GradientMode mode : {GradientMode::overwrite, GradientMode::accumulate}) {
        for (const int64_t from_gap : {0, 3, 16}) {
          for (const int64_t to_gap : {0, 5, 16}) {
            const Numbers source = random_numbers(kSize, 1), before = random_numbers(kRows * (kDim + to_gap), 2);
            const Tensor whole = Tensor::empty(context, {kRows, kDim + to_gap}, to);
            write_values(context, whole, before);
            const Tensor part = whole.slice(1, to_gap / 2, to_gap / 2 + kDim);
            kernels::accumulate(
                context,
                {kernels::rows_view(rows_of(context, source, from, from_gap)), {kernels::rows_view(part), mode}, 1.0});
            Numbers wanted = before;
            for (int64_t row = 0; row < kRows; ++row) {
              for (int64_t i = 0; i < kDim; ++i) {
                double& element = wanted[static_cast<size_t>(row * (kDim + to_gap) + to_gap / 2 + i)];
                element =
                    source[static_cast<size_t>(row * kDim + i)] + (mode == GradientMode::accumulate ? element : 0.0);
              }
            }
            EXPECT_EQ(read_values(context, whole), wanted) << from_gap << " " << to_gap;
          }
        }
      }
    }
  }
}

class NormGradients : public test::OnDevices {};

TEST_P(NormGradients, OfRAloneArePassedOn) { only_r_is_used(context()); }
TEST_P(NormGradients, LeaveTheUpstreamGradientsAlone) { upstream_gradients_stay(context()); }
TEST_P(NormGradients, TakeOperandsWithStridesOfTheirOwn) { operands_have_their_own_strides(context()); }
TEST_P(NormGradients, AreAddedToSlices) { slices_are_added_to(context()); }
HEDDLE_ON_DEVICES(NormGradients);

}  // namespace
}  // namespace heddle::norm_gradients_test
