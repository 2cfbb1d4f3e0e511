// One value in several places of one operator: its gradients meet in one memory, in whatever order the operator writes
// them. And gradients that are handed on, shared and written over along a residual stream.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/glu.h"
#include "layers/ops/linear.h"
#include "layers/ops/linear_attention.h"
#include "layers/ops/norm.h"
#include "layers/ops/softmax_attention.h"
#include "layers/ops/view.h"

namespace heddle::shared_inputs_test {
namespace {

class SharedInputsTest : public ::testing::Test {
 protected:
  void expect_right(const std::vector<Shape>& shapes, const GradcheckFunction& function) {
    std::vector<GradcheckInput> inputs;
    Random random(1, RandomStream::test);
    for (const Shape& shape : shapes) {
      inputs.push_back({fmt::format("input {}", inputs.size()), Tensor::empty(context_, shape, DType::float64)});
      fill_normal(context_, inputs.back().value, random, 0.0, 1.0);
    }
    EXPECT_GRADIENTS_MATCH(context_, function, inputs);
  }

  Context context_;
};

using Variables = std::vector<Variable>;

TEST_F(SharedInputsTest, NormOfOneValueAsXAndResidual) {
  expect_right({{3, 8}}, [](Tape& tape, const Variables& in) {
    const Normed both = norm(tape, in[0], {.residual = in[0], .gate = {}, .weight = {}, .bias = {}}, {});
    return Variables{both.y, both.r};
  });
}

TEST_F(SharedInputsTest, NormOfOneValueAsXResidualAndGate) {
  for (const GatePosition position : {GatePosition::pre, GatePosition::post}) {
    for (const bool centered : {false, true}) {
      NormOptions options;
      options.center = centered;
      options.gate_act = Activation::silu;
      options.gate_position = position;
      expect_right({{3, 8}, {8}}, [&](Tape& tape, const Variables& in) {
        const NormInputs inputs{.residual = in[0], .gate = in[0], .weight = in[1], .bias = in[1]};
        const Normed both = norm(tape, in[0], inputs, options);
        return Variables{both.y, both.r};
      });
    }
  }
}

// Rows of one value that overlap though theirs are of different strides.
TEST_F(SharedInputsTest, NormOfRowsAndOfEverySecondRow) {
  expect_right({{6, 8}}, [](Tape& tape, const Variables& in) {
    const Variable second = tape.view(in[0], [](const Tensor& all) { return all.reshape({3, 16}).slice(1, 0, 8); });
    const Variable first = tape.view(in[0], [](const Tensor& all) { return all.slice(0, 0, 3); });
    NormOptions options;
    options.gate_act = Activation::silu;
    const NormInputs inputs{.residual = {}, .gate = first, .weight = {}, .bias = {}};
    return Variables{norm(tape, second, inputs, options).y};
  });
}

TEST_F(SharedInputsTest, GluOfOneValue) {
  expect_right({{3, 5}},
               [](Tape& tape, const Variables& in) { return Variables{glu(tape, in[0], in[0], Activation::silu)}; });
}

TEST_F(SharedInputsTest, LinearOfOneValueAsXAndWeight) {
  expect_right({{4, 4}}, [](Tape& tape, const Variables& in) { return Variables{linear(tape, in[0], in[0])}; });
}

TEST_F(SharedInputsTest, LinearAttentionOfOneValueAsQueryKeyAndValue) {
  expect_right({{2, 70, 2, 4}}, [](Tape& tape, const Variables& in) {
    return Variables{linear_attention(tape, in[0], in[0], in[0], {}, {.scale = 0.1}).o};
  });
}

// Heads of one value that overlap: what a head adds to is written whole before it adds.
TEST_F(SharedInputsTest, AttentionOfOverlappingHeads) {
  const auto heads = [](Tape& tape, const Variable& all, int64_t first) {
    return tape.view(all, [first](const Tensor& whole) { return whole.slice(2, first, first + 2); });
  };
  for (const int64_t step : {0, 1, 2}) {
    expect_right({{2, 70, 6, 4}}, [&](Tape& tape, const Variables& in) {
      const Variable q = heads(tape, in[0], 0), k = heads(tape, in[0], step), v = heads(tape, in[0], 2 * step);
      return Variables{linear_attention(tape, q, k, v, {}, {.scale = 0.1}).o};
    });
    expect_right({{2, 20, 6, 4}}, [&](Tape& tape, const Variables& in) {
      const Variable q = heads(tape, in[0], 0), k = heads(tape, in[0], step), v = heads(tape, in[0], 2 * step);
      return Variables{softmax_attention(tape, q, k, v)};
    });
  }
}

// Two blocks as a model has them: r goes on to the next norm and is also read aside; x and residual share d_r.
TEST_F(SharedInputsTest, ResidualStreamReadAside) {
  expect_right({{4, 6}, {6, 6}, {6}, {6, 6}}, [](Tape& tape, const Variables& in) {
    const NormInputs none;
    const Normed first = norm(tape, in[0], {.residual = {}, .gate = {}, .weight = in[2], .bias = {}}, {});
    const Normed second =
        norm(tape, linear(tape, first.y, in[1]), {.residual = first.r, .gate = {}, .weight = in[2], .bias = {}}, {});
    const Normed third = norm(tape, linear(tape, second.y, in[3]),
                              {.residual = second.r, .gate = first.y, .weight = {}, .bias = {}}, {});
    return Variables{third.y, third.r, linear(tape, second.r, in[1])};
  });
}

// The parts of a fused projection, one of them unused, one used twice, one seen in another shape.
TEST_F(SharedInputsTest, PartsOfAFusedProjection) {
  expect_right({{2, 3, 4}, {16, 4}}, [](Tape& tape, const Variables& in) {
    const Variables parts = split_last(tape, linear(tape, in[0], in[1]), {4, 4, 4, 4});
    const Normed normed = norm(tape, reshape(tape, parts[1], {6, 4}), {}, {});
    return Variables{glu(tape, parts[0], parts[0], Activation::sigmoid), normed.y,
                     glu(tape, parts[0], parts[1], Activation::none)};
  });
}

}  // namespace
}  // namespace heddle::shared_inputs_test
