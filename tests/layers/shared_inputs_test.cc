// One value in several places of one operator: its gradients meet in one memory, in whatever order the operator writes
// them. And gradients that are handed on, shared and written over along a residual stream.
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/activation.h"
#include "layers/ops/glu.h"
#include "layers/ops/guarded_divide.h"
#include "layers/ops/linear.h"
#include "layers/ops/linear_attention.h"
#include "layers/ops/log_sigmoid.h"
#include "layers/ops/lrpe_cosine.h"
#include "layers/ops/lrpe_rotate.h"
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

// Part `part` of `count` elements along one dimension of a value, `step` elements behind the part before it.
Variable shifted(Tape& tape, const Variable& whole, int dim, int64_t part, int64_t step, int64_t count) {
  return tape.view(whole, [=](const Tensor& all) { return all.slice(dim, part * step, part * step + count); });
}

// Each token beside the one before it: whichever row a kernel begins with, it is also one of the other input. Rows with
// gaps are computed one after the other.
TEST_F(SharedInputsTest, GluOfTokensAndTheNextOnes) {
  for (const int64_t columns : {6, 8}) {
    for (const int first : {0, 1}) {
      expect_right({{9, 8}}, [&](Tape& tape, const Variables& in) {
        const Variable x = shifted(tape, in[0], 1, 0, 0, columns);
        const Variable a = shifted(tape, x, 0, first, 1, 8), b = shifted(tape, x, 0, 1 - first, 1, 8);
        return Variables{glu(tape, a, b, Activation::silu)};
      });
    }
  }
}

TEST_F(SharedInputsTest, OperatorsOnColumnsThatOverlap) {
  for (const int64_t step : {1, 5}) {
    for (const int first : {0, 1}) {
      expect_right({{7, 6 + step}}, [&](Tape& tape, const Variables& in) {
        const Variable positive = activation(tape, in[0], Activation::elu1);
        const Variable a = shifted(tape, positive, 1, first, step, 6),
                       b = shifted(tape, positive, 1, 1 - first, step, 6);
        return Variables{glu(tape, a, b, Activation::tanh), guarded_divide(tape, a, b, 1e-12),
                         norm(tape, a, {.residual = b, .gate = {}, .weight = {}, .bias = {}}, {}).y};
      });
    }
  }
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

// Tokens, and the same tokens moved on, with all heads of a value or with two of them: the rows of several batches are
// not evenly spaced.
TEST_F(SharedInputsTest, AttentionOfTokensAndTheNextOnes) {
  for (const int64_t all_heads : {2, 3}) {
    for (const int first : {0, 1}) {
      const auto tokens = [](Tape& tape, const Variable& all, int64_t from) {
        return shifted(tape, shifted(tape, all, 2, 0, 0, 2), 1, from, 1, 9);
      };
      expect_right({{2, 10, all_heads, 3}}, [&](Tape& tape, const Variables& in) {
        const Variable q = tokens(tape, in[0], first), k = tokens(tape, in[0], 1 - first);
        return Variables{linear_attention(tape, q, k, q, {}, {.scale = 0.1}).o};
      });
      expect_right({{2, 10, all_heads, 3}}, [&](Tape& tape, const Variables& in) {
        const Variable q = tokens(tape, in[0], first), k = tokens(tape, in[0], 1 - first);
        return Variables{softmax_attention(tape, q, k, k)};
      });
    }
  }
}

// Heads outside of tokens in memory, and parts of them that overlap.
TEST_F(SharedInputsTest, AttentionOfOverlappingHeadsThatLieOneAfterTheOther) {
  expect_right({{2, 3, 5, 4}}, [](Tape& tape, const Variables& in) {
    const auto heads = [&](int64_t first) {
      return tape.view(in[0], [first](const Tensor& all) { return all.slice(1, first, first + 2).transpose(1, 2); });
    };
    return Variables{linear_attention(tape, heads(0), heads(1), heads(1), {}, {.scale = 0.1}).o};
  });
}

// States and log decays are inputs as others are. (batch, length, heads, dim) and (batch, heads, dim, dim) are alike
// where all extents but the batch are.
TEST_F(SharedInputsTest, LinearAttentionOfOneValueAsQueryKeyOrValueAndInitialState) {
  for (const int which : {0, 1, 2}) {
    expect_right({{2, 4, 4, 4}, {2, 4, 4, 4}}, [&](Tape& tape, const Variables& in) {
      const auto input = [&](int place) { return place == which ? in[0] : in[1]; };
      const LinearAttention both = linear_attention(tape, input(0), input(1), input(2),
                                                    {.log_decay = {}, .initial_state = in[0]}, {.scale = 0.1});
      return Variables{both.o, both.final_state};
    });
  }
}

TEST_F(SharedInputsTest, LinearAttentionOfOneValueAsQueryOrKeyAndLogDecay) {
  for (const bool is_query : {false, true}) {
    expect_right({{2, 9, 3}, {2, 9, 3, 1}}, [&](Tape& tape, const Variables& in) {
      const Variable decay = log_sigmoid(tape, in[0], 1.0), same = reshape(tape, decay, {2, 9, 3, 1});
      const Variable q = is_query ? same : in[1], k = is_query ? in[1] : same;
      const LinearAttentionInputs inputs{.log_decay = decay, .initial_state = {}};
      return Variables{linear_attention(tape, q, k, in[1], inputs, {.decay = Decay::data}).o};
    });
  }
  // Each head of the one is the next head of the other.
  for (const int first : {0, 1}) {
    expect_right({{1, 1, 4}, {1, 1, 3, 1}, {1, 3, 1, 1}}, [&](Tape& tape, const Variables& in) {
      const Variable all = log_sigmoid(tape, in[0], 1.0);
      const Variable q = reshape(tape, shifted(tape, all, 2, first, 1, 3), {1, 1, 3, 1});
      const LinearAttentionInputs inputs{.log_decay = shifted(tape, all, 2, 1 - first, 1, 3), .initial_state = in[2]};
      return Variables{linear_attention(tape, q, in[1], in[1], inputs, {.decay = Decay::data}).o};
    });
  }
}

TEST_F(SharedInputsTest, LrpeOfXAndAThetaThatIsAPartOfIt) {
  const auto part = [](Tape& tape, const Variable& x, int64_t begin, int64_t end) {
    return tape.view(x, [=](const Tensor& all) { return all.select(0, 0).slice(0, 0, 1).slice(1, begin, end); });
  };
  expect_right({{2, 3, 8}}, [&](Tape& tape, const Variables& in) {
    LrpeRotateOptions options;
    options.act = Activation::silu;
    options.offset = 2;
    return Variables{lrpe_rotate(tape, in[0], part(tape, in[0], 2, 6), options)};
  });
  expect_right({{2, 3, 8}}, [&](Tape& tape, const Variables& in) {
    return Variables{lrpe_cosine(tape, in[0], part(tape, in[0], 0, 8), {.act = Activation::silu, .offset = 2})};
  });
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
