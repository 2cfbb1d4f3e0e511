// The table of docs/memory.md, "What an operator keeps for backward": its formulas, held against the allocator.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/autograd/tape.h"
#include "layers/ops/activation.h"
#include "layers/ops/cross_entropy.h"
#include "layers/ops/dropout.h"
#include "layers/ops/embedding.h"
#include "layers/ops/glu.h"
#include "layers/ops/guarded_divide.h"
#include "layers/ops/linear.h"
#include "layers/ops/linear_attention.h"
#include "layers/ops/linear_cross_entropy.h"
#include "layers/ops/log_sigmoid.h"
#include "layers/ops/lrpe_cosine.h"
#include "layers/ops/lrpe_rotate.h"
#include "layers/ops/norm.h"
#include "layers/ops/softmax.h"
#include "layers/ops/softmax_attention.h"
#include "tests/trainers/test_config.h"
#include "tools/training_memory.h"

namespace heddle {
namespace {

using kernels::Activation;

// What the allocator counts for tensors of these many bytes.
size_t counted(const std::vector<int64_t>& tensors) {
  size_t sum = 0;
  for (const int64_t bytes : tensors) sum += (static_cast<size_t>(bytes) + 511) / 512 * 512;
  return sum;
}

// Runs an operator on inputs that nobody else holds, and keeps its outputs.
class Forward {
 public:
  explicit Forward(DType dtype) : dtype_(dtype), context_(Device{DeviceType::meta}), tape_(context_) {}

  Variable input(const Shape& shape) { return input(shape, dtype_); }
  Variable input(const Shape& shape, DType dtype) {
    const MemoryScope scope(context_, "inputs", MemoryCategory::data);
    return tape_.leaf(Tensor::empty(context_, shape, dtype), gradients_.emplace_back(), "input");
  }
  Variable constant(const Shape& shape, DType dtype) {
    const MemoryScope scope(context_, "inputs", MemoryCategory::data);
    return tape_.constant(Tensor::empty(context_, shape, dtype));
  }
  void run(const std::function<std::vector<Variable>(Tape&)>& op) {
    const MemoryScope scope(context_, "op", MemoryCategory::activation);
    outputs_ = op(tape_);
  }

  size_t e() const { return size_of(dtype_); }                   // bytes of a value
  size_t a() const { return size_of(accumulate_type(dtype_)); }  // bytes of a number in the accumulate type
  DType exact() const { return accumulate_type(dtype_); }
  size_t made() const { return current("op"); }
  size_t held() const { return current("op.inputs"); }

 private:
  size_t current(const std::string& name) const {
    for (const ScopeBytes& scope : context_.allocator().scopes()) {
      if (scope.scope == name) return scope.allocated.current;
    }
    return 0;
  }

  DType dtype_;
  mutable Context context_;
  std::deque<Gradient> gradients_;
  Tape tape_;
  std::vector<Variable> outputs_;
};

class SavedBytesTest : public ::testing::TestWithParam<DType> {
 protected:
  // The sizes of the formulas: T tokens, D and F features, G groups, H heads.
  static constexpr int64_t B = 3, N = 37, T = B * N, D = 24, F = 40, G = 4, H = 2, V = 50;
  Forward forward_{GetParam()};
  const int64_t e = static_cast<int64_t>(forward_.e()), a = static_cast<int64_t>(forward_.a());
};

TEST_P(SavedBytesTest, Linear) {
  forward_.run([&](Tape& tape) {
    return std::vector{linear(tape, forward_.input({B, N, D}), forward_.input({F, D}), forward_.input({F}))};
  });
  EXPECT_EQ(forward_.made(), counted({T * F * e}));
  EXPECT_EQ(forward_.held(), counted({T * D * e, F * D * e}));
}

TEST_P(SavedBytesTest, Norm) {
  NormOptions options;
  options.groups = G;
  forward_.run([&](Tape& tape) { return std::vector{norm(tape, forward_.input({B, N, D}), {}, options).y}; });
  EXPECT_EQ(forward_.made(), counted({T * D * e, T * G * a}));
  EXPECT_EQ(forward_.held(), counted({T * D * e}));
}

TEST_P(SavedBytesTest, NormWithEverything) {
  NormOptions options;
  options.groups = G;
  options.center = true;
  options.gate_act = Activation::silu;
  forward_.run([&](Tape& tape) {
    const NormInputs inputs{forward_.input({B, N, D}), forward_.input({B, N, D}), forward_.input({D}), {}};
    const Normed normed = norm(tape, forward_.input({B, N, D}), inputs, options);
    return std::vector{normed.y, normed.r};
  });
  EXPECT_EQ(forward_.made(), counted({T * D * e, T * D * e, T * G * a, T * G * a}));
  EXPECT_EQ(forward_.held(), counted({T * D * e, D * e})) << "the gate and the weight; not x, not the residual";
}

TEST_P(SavedBytesTest, NormThatDoesNotReturnTheResidual) {
  NormOptions options;
  options.return_residual = false;
  forward_.run([&](Tape& tape) {
    return std::vector{norm(tape, forward_.input({B, N, D}), {forward_.input({B, N, D}), {}, {}, {}}, options).y};
  });
  EXPECT_EQ(forward_.made(), counted({T * D * e, T * a}));
  EXPECT_EQ(forward_.held(), counted({T * D * e, T * D * e})) << "x and the residual";
}

TEST_P(SavedBytesTest, Activation) {
  forward_.run([&](Tape& tape) { return std::vector{activation(tape, forward_.input({B, N, F}), Activation::silu)}; });
  EXPECT_EQ(forward_.made(), counted({T * F * e}));
  EXPECT_EQ(forward_.held(), counted({T * F * e}));
}

TEST_P(SavedBytesTest, GluOfHalves) {
  forward_.run([&](Tape& tape) {
    return std::vector{glu_of_halves(tape, forward_.input({B, N, 2 * F}), Activation::silu)};
  });
  EXPECT_EQ(forward_.made(), counted({T * F * e}));
  EXPECT_EQ(forward_.held(), counted({T * 2 * F * e}));
}

TEST_P(SavedBytesTest, Embedding) {
  forward_.run([&](Tape& tape) {
    return std::vector{embedding(tape, forward_.constant({B, N}, DType::int32).value, forward_.input({V, D}))};
  });
  EXPECT_EQ(forward_.made(), counted({T * D * e}));
  EXPECT_EQ(forward_.held(), counted({T * 4}));
}

TEST_P(SavedBytesTest, LrpeRotate) {
  const auto run = [&](Activation act, kernels::Softmax softmax) {
    Forward forward(GetParam());
    forward.run([&](Tape& tape) {
      LrpeRotateOptions options;
      options.act = act;
      options.softmax = softmax;
      return std::vector{
          lrpe_rotate(tape, forward.input({B, N, H, D}), forward.constant({H, D / 2}, forward.exact()), options)};
    });
    return std::pair(forward.made(), forward.held());
  };
  const int64_t x = T * H * D * e, theta = H * (D / 2) * a, column = B * H * D * a;
  EXPECT_EQ(run(Activation::none, kernels::Softmax::none), std::pair(counted({x}), counted({theta})));
  EXPECT_EQ(run(Activation::silu, kernels::Softmax::none), std::pair(counted({x}), counted({x, theta})));
  EXPECT_EQ(run(Activation::none, kernels::Softmax::feature), std::pair(counted({x}), counted({x, theta})));
  EXPECT_EQ(run(Activation::none, kernels::Softmax::sequence),
            std::pair(counted({x, column, column}), counted({x, theta})));
}

TEST_P(SavedBytesTest, LrpeCosine) {
  forward_.run([&](Tape& tape) {
    return std::vector{lrpe_cosine(tape, forward_.input({B, N, H, D}), forward_.input({H, D}, forward_.exact()), {})};
  });
  EXPECT_EQ(forward_.made(), counted({2 * T * H * D * e}));
  EXPECT_EQ(forward_.held(), counted({T * H * D * e, H * D * a})) << "a learned theta needs x";
}

TEST_P(SavedBytesTest, LinearAttention) {
  constexpr int64_t kValueDim = 32;
  forward_.run([&](Tape& tape) {
    const Variable q = forward_.input({B, N, H, D}), k = forward_.input({B, N, H, D});
    const Variable v = forward_.input({B, N, H, kValueDim});
    const LinearAttention attention =
        linear_attention(tape, q, k, v, {forward_.constant({H}, forward_.exact()), {}}, {Decay::constant, 1.0, true});
    return std::vector{attention.o, attention.final_state};
  });
  EXPECT_EQ(forward_.made(), counted({T * H * kValueDim * e, B * H * D * kValueDim * a}));
  EXPECT_EQ(forward_.held(), counted({T * H * D * e, T * H * D * e, T * H * kValueDim * e, H * a}));
}

TEST_P(SavedBytesTest, LinearAttentionOfEverything) {
  constexpr int64_t kValueDim = 32, kKeyHeads = 1;
  forward_.run([&](Tape& tape) {
    const Variable q = forward_.input({B, N, H, D}), k = forward_.input({B, N, kKeyHeads, D});
    const Variable v = forward_.input({B, N, kKeyHeads, kValueDim});
    const LinearAttentionInputs inputs{forward_.input({B, N, H}, forward_.exact()),
                                       forward_.input({B, H, D, kValueDim}, forward_.exact()),
                                       forward_.constant({B, N}, DType::int32).value};
    return std::vector{linear_attention(tape, q, k, v, inputs, {Decay::data, 1.0, false}).o};
  });
  EXPECT_EQ(forward_.made(), counted({T * H * kValueDim * e}));
  EXPECT_EQ(forward_.held(), counted({T * H * D * e, T * kKeyHeads * D * e, T * kKeyHeads * kValueDim * e, T * H * a,
                                      T * 4, B * H * D * kValueDim * a}));
}

TEST_P(SavedBytesTest, LogSigmoid) {
  forward_.run([&](Tape& tape) { return std::vector{log_sigmoid(tape, forward_.input({B, N, F}))}; });
  EXPECT_EQ(forward_.made(), counted({T * F * a}));
  EXPECT_EQ(forward_.held(), counted({T * F * e}));
}

TEST_P(SavedBytesTest, Softmax) {
  forward_.run([&](Tape& tape) { return std::vector{softmax(tape, forward_.input({B, N, F}))}; });
  EXPECT_EQ(forward_.made(), counted({T * F * e}));
  EXPECT_EQ(forward_.held(), counted({T * F * e}));
}

TEST_P(SavedBytesTest, GuardedDivide) {
  constexpr int64_t kGroups = 1;
  forward_.run([&](Tape& tape) {
    return std::vector{guarded_divide(tape, forward_.input({B, N, F}), forward_.input({B, N, kGroups}), 1e-6)};
  });
  EXPECT_EQ(forward_.made(), counted({T * F * e}));
  EXPECT_EQ(forward_.held(), counted({T * kGroups * e})) << "not x";
}

TEST_P(SavedBytesTest, SoftmaxAttention) {
  constexpr int64_t kValueDim = 32, kKeyHeads = 1;
  forward_.run([&](Tape& tape) {
    const Variable q = forward_.input({B, N, H, D}), k = forward_.input({B, N, kKeyHeads, D});
    const Variable v = forward_.input({B, N, kKeyHeads, kValueDim});
    return std::vector{softmax_attention(tape, q, k, v, forward_.constant({B, N}, DType::int32))};
  });
  EXPECT_EQ(forward_.made(), counted({T * H * kValueDim * e, T * H * a})) << "o and one number a row";
  EXPECT_EQ(forward_.held(), counted({T * H * D * e, T * kKeyHeads * D * e, T * kKeyHeads * kValueDim * e, T * 4}));
}

TEST_P(SavedBytesTest, CrossEntropy) {
  forward_.run([&](Tape& tape) {
    return std::vector{
        cross_entropy(tape, forward_.input({B, N, V}), forward_.constant({B, N}, DType::int32).value, {})};
  });
  EXPECT_EQ(forward_.made(), counted({T * a, T * a, a, a}));
  EXPECT_EQ(forward_.held(), counted({T * V * e, T * 4}));
}

TEST_P(SavedBytesTest, CrossEntropyOfEachRow) {
  forward_.run([&](Tape& tape) {
    return std::vector{cross_entropy(tape, forward_.input({B, N, V}), forward_.constant({B, N}, DType::int32).value,
                                     {.reduction = Reduction::none})};
  });
  EXPECT_EQ(forward_.made(), counted({T * a, T * a, T * a}));
  EXPECT_EQ(forward_.held(), counted({T * V * e, T * 4}));
}

TEST_P(SavedBytesTest, Dropout) {
  forward_.run([&](Tape& tape) { return std::vector{dropout(tape, forward_.input({B, N, D}), {.p = 0.5})}; });
  EXPECT_EQ(forward_.made(), counted({T * D * e}));
  EXPECT_EQ(forward_.held(), 0u);
}

TEST_P(SavedBytesTest, LinearCrossEntropy) {
  forward_.run([&](Tape& tape) {
    return std::vector{linear_cross_entropy(tape, forward_.input({B, N, D}), forward_.input({V, D}),
                                            forward_.constant({B, N}, DType::int32).value, {.chunk = 8})};
  });
  EXPECT_EQ(forward_.made(), counted({T * D * a, V * D * a, a, a}));
  EXPECT_EQ(forward_.held(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, SavedBytesTest,
                         ::testing::Values(DType::float32, DType::bfloat16, DType::float16, DType::float64));

// The parts of a model, as the page adds them up.
TEST(SavedBytesOfAModelTest, AreTheSumsOfTheirOperators) {
  const TrainConfig config = testing::tiny_train_config(
      {"trainer.dtype=bfloat16", "model.channel.hidden=40", "trainer.batch_size=5", "trainer.sequence_length=23"});
  constexpr int64_t T = 5 * 23, D = 16, F = 40, H = 2, R = 4, V = 8, e = 2, a = 4;
  const LayerBytes kept = measure_training({DeviceType::meta}, config).kept;
  const auto bytes = [&](const char* layer) { return total(kept.at(layer)); };
  EXPECT_EQ(bytes("embedding"), counted({T * D * e}));
  EXPECT_EQ(bytes("blocks.0.mixer_norm"), counted({T * D * e, T * a})) << "y and s: there is no residual yet";
  EXPECT_EQ(bytes("blocks.1.mixer_norm"), counted({T * D * e, T * D * e, T * a})) << "y, r and s";
  EXPECT_EQ(bytes("blocks.1.channel"), counted({T * 2 * F * e, T * F * e})) << "w1 x beside w2 x; the product";
  const std::vector<int64_t> mixer = {T * 3 * D * e, T * 3 * D * e,  // q, k, v before and after the activation
                                      T * D * e,                     // o
                                      T * R * e,     T * D * e,      // the gate, by way of its rank
                                      T * D * e,     T * H * a};     // the gated norm and its statistics
  EXPECT_EQ(bytes("blocks.1.mixer"), counted(mixer));
  EXPECT_EQ(bytes("blocks.0.mixer"), counted(mixer) + counted({T * D * e, T * D * e})) << "q and k with positions";
  EXPECT_EQ(bytes("head"), counted({T * V * e}));
  EXPECT_EQ(bytes("loss"), counted({T * a, T * a, a, a}));
}

TEST(SavedBytesOfAModelTest, MixersAreTheSumsOfTheirOperators) {
  constexpr int64_t T = 5 * 23, D = 24, H = 4, e = 2, a = 4;
  const auto bytes = [&](const std::string& mixer) {
    const TrainConfig config =
        testing::tiny_train_config({"trainer.dtype=bfloat16", "trainer.batch_size=5", "trainer.sequence_length=23",
                                    "model.dim=24", "model.mixer={" + mixer + ", heads: 4}"});
    return total(measure_training({DeviceType::meta}, config).kept.at("blocks.1.mixer"));
  };
  // Half as many heads of k and v, C features each.
  constexpr int64_t C = D / 2;
  const size_t linear = counted({T * (D + 2 * C) * e,   // q, k, v
                                 T * D * e, T * C * e,  // the features of q and k
                                 T * D * e,             // o
                                 T * D * e, T * H * a});
  EXPECT_EQ(bytes("type: linear_attention, kv_heads: 2"), linear);
  EXPECT_EQ(bytes("type: linear_attention, kv_heads: 2, lrpe: {type: lrpe_rotate}"), linear);
  EXPECT_EQ(bytes("type: linear_attention, kv_heads: 2, act: softmax"), linear);
  const std::vector<int64_t> normalized = {T * (D + 2 * C) * e, T * D * e,    T * C * e,  // q, k, v, the features
                                           T * D * e,                                     // o, divided
                                           T * H * e,           T * H / 2 * e};           // q . z, ones
  EXPECT_EQ(bytes("type: linear_attention, kv_heads: 2, normalizer: true"), counted(normalized));
  EXPECT_EQ(bytes("type: linear_attention, kv_heads: 2, normalizer: true, lrpe: {type: lrpe_rotate}"),
            counted(normalized) + counted({T * D * e, T * C * e}))
      << "the features before and after the encoding";
  constexpr int64_t K = 2 * D, V = 3 * D;
  const std::vector<int64_t> retention = {T * K * e, T * K * e, T * V * e,  // q, k, v
                                          T * V * e, T * V * e,             // the gate, o
                                          T * V * e, T * H * a};            // the gated norm and its statistics
  EXPECT_EQ(bytes("type: retention, expand_k: 2.0, expand_v: 3.0"), counted(retention));
  EXPECT_EQ(bytes("type: simple_gla, expand_k: 2.0, expand_v: 3.0"),
            counted({T * (2 * K + V) * e, T * V * e, T * V * e, T * V * e, T * H * a,  // q, k and v are one tensor
                     T * H * e, T * H * a}));                                          // the decays
  EXPECT_EQ(bytes("type: softmax_attention, kv_heads: 2"),
            counted({T * (D + 2 * C) * e, T * D * e, T * C * e,  // q, k, v; q and k after the rotation
                     T * D * e, T * H * a}));
}

}  // namespace
}  // namespace heddle
