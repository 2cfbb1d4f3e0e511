// What linear attention promises beyond one call: a state handed over, steps of one token, and inputs of any form.
#include "layers/ops/linear_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::linear_attention_test {
namespace {

using ::testing::DoubleNear;
using ::testing::HasSubstr;
using ::testing::Pointwise;
using ::testing::ThrowsMessage;

constexpr int64_t kBatch = 2, kLength = 150, kHeads = 3, kDim = 5, kValueDim = 7;
constexpr LinearAttentionOptions kConstant{.decay = Decay::constant, .scale = 0.5};

class LinearAttentionTest : public OnDevices {
 protected:
  Tensor normal(const Shape& shape, DType dtype = DType::float64) {
    Tensor tensor = Tensor::empty(context(), shape, dtype);
    fill_normal(context(), tensor, random_, 0.0, 1.0);
    return tensor;
  }
  Tensor log_decay(const std::vector<double>& values, DType dtype = DType::float64) {
    Tensor tensor = Tensor::empty(context(), {static_cast<int64_t>(values.size())}, dtype);
    write_values(context(), tensor, values);
    return tensor;
  }
  std::vector<double> values(const Variable& variable) { return read_values(context(), variable.value); }

  Random random_{7, RandomStream::test};
};

void append(std::vector<double>& to, const std::vector<double>& values) {
  to.insert(to.end(), values.begin(), values.end());
}

Variable tokens(Tape& tape, const Variable& x, int64_t begin, int64_t end) {
  return tape.view(x, [=](const Tensor& whole) { return whole.slice(1, begin, end); });
}

TEST_P(LinearAttentionTest, TwoHalvesWithTheStateHandedOverAreTheWhole) {
  const std::vector<Tensor> inputs = {normal({kBatch, kLength, kHeads, kDim}), normal({kBatch, kLength, kHeads, kDim}),
                                      normal({kBatch, kLength, kHeads, kValueDim}),
                                      normal({kBatch, kHeads, kDim, kValueDim})};
  const Tensor decay = log_decay({0.0, -0.05, -7.75});
  const Tensor d_o = normal({kBatch, kLength, kHeads, kValueDim});
  const Tensor d_state = normal({kBatch, kHeads, kDim, kValueDim});

  // Outputs, final state and all gradients, with the sequence cut at `cut`.
  const auto run = [&](int64_t cut) {
    Tape tape(context());
    std::vector<Gradient> gradients(inputs.size());
    std::vector<Variable> x;
    for (size_t i = 0; i < inputs.size(); ++i) x.push_back(tape.leaf(inputs[i], gradients[i], "input"));
    std::vector<Tape::Root> roots;
    const Tensor o = Tensor::empty(context(), d_o.shape(), DType::float64);
    Variable state = x[3];
    for (const auto& [begin, end] : {std::pair{int64_t{0}, cut}, std::pair{cut, kLength}}) {
      const LinearAttention part =
          linear_attention(tape, tokens(tape, x[0], begin, end), tokens(tape, x[1], begin, end),
                           tokens(tape, x[2], begin, end), {tape.constant(decay), state}, kConstant);
      state = part.final_state;
      if (begin == end) continue;
      const Tensor upstream = Tensor::empty(context(), part.o.shape(), DType::float64);
      write_values(context(), upstream, read_values(context(), d_o.slice(1, begin, end)));
      roots.push_back({part.o, upstream});
      write_values(context(), o.slice(1, begin, end), values(part.o));
    }
    roots.push_back({state, d_state});
    tape.backward(roots);
    std::vector<double> results = read_values(context(), o);
    append(results, values(state));
    for (const Gradient& gradient : gradients) append(results, read_values(context(), gradient.tensor));
    return results;
  };
  const std::vector<double> whole = run(kLength);
  for (int64_t cut : {1, 64, 77}) EXPECT_THAT(run(cut), Pointwise(DoubleNear(1e-10), whole)) << "cut at " << cut;
}

TEST_P(LinearAttentionTest, StepsOfOneTokenAreTheWhole) {
  const Variable q{normal({kBatch, kLength, kHeads, kDim}), {}}, k{normal({kBatch, kLength, kHeads, kDim}), {}};
  const Variable v{normal({kBatch, kLength, kHeads, kValueDim}), {}};
  const Variable decay{log_decay({-0.01, -0.5, -7.75}), {}};
  Tape tape(context(), Tape::Mode::inference);
  const LinearAttention whole = linear_attention(tape, q, k, v, {decay, {}}, kConstant);
  Variable state;
  for (int64_t token = 0; token < kLength; ++token) {
    const auto one = [&](const Variable& x) { return tokens(tape, x, token, token + 1); };
    const LinearAttention step = linear_attention(tape, one(q), one(k), one(v), {decay, state}, kConstant);
    state = step.final_state;
    EXPECT_THAT(values(step.o), Pointwise(DoubleNear(1e-12), values(one(whole.o)))) << "token " << token;
  }
  EXPECT_THAT(values(state), Pointwise(DoubleNear(1e-12), values(whole.final_state)));
}

// Also where a head has one feature, which a sum of a vector would show.
TEST_P(LinearAttentionTest, TheSameBitsWhereverHeadsLie) {
  for (const DType dtype : {DType::float32, DType::float64}) {
    std::vector<Tensor> dense, strided;
    for (int i = 0; i < 3; ++i) {
      const Tensor wide = Tensor::empty(context(), {2, 100, 6, 1}, dtype);
      Random random(static_cast<uint64_t>(i), RandomStream::test);
      fill_normal(context(), wide, random, 0.0, 1.0);
      strided.push_back(wide.slice(2, 1, 3));
      dense.push_back(clone(context(), strided.back()));
    }
    const auto gradients = [&](const std::vector<Tensor>& x) {
      std::vector<Gradient> of_inputs(3);
      Tape tape(context());
      std::vector<Variable> in;
      for (size_t i = 0; i < 3; ++i) in.push_back(tape.leaf(x[i], of_inputs[i], "x"));
      const Variable decay{log_decay({-0.01, -0.5}, dtype), {}};
      const Variable o = linear_attention(tape, in[0], in[1], in[2], {decay, {}}, kConstant).o;
      tape.backward(o, dense[0]);
      std::vector<std::vector<double>> numbers = {read_values(context(), o.value)};
      for (const Gradient& gradient : of_inputs) numbers.push_back(read_values(context(), gradient.tensor));
      return numbers;
    };
    EXPECT_EQ(gradients(strided), gradients(dense)) << name(dtype);
  }
}

TEST_P(LinearAttentionTest, GradientsThroughTheStatesAlone) {
  const GradcheckFunction function = [&](Tape& tape, const std::vector<Variable>& x) {
    const LinearAttention result = linear_attention(tape, x[0], x[1], x[2], {x[3], x[4]}, kConstant);
    return std::vector<Variable>{result.final_state};
  };
  const std::vector<GradcheckInput> inputs = {{"q", normal({1, 3, 2, 2}), false},
                                              {"k", normal({1, 3, 2, 2})},
                                              {"v", normal({1, 3, 2, 3})},
                                              {"log_decay", log_decay({-0.3, 0.0}), false},
                                              {"initial_state", normal({1, 2, 2, 3})}};
  EXPECT_GRADIENTS_MATCH(context(), function, inputs);
}

TEST_P(LinearAttentionTest, OneValueMayBeEveryInput) {
  const GradcheckFunction function = [&](Tape& tape, const std::vector<Variable>& x) {
    return std::vector<Variable>{linear_attention(tape, x[0], x[0], x[0]).o};
  };
  const std::vector<GradcheckInput> inputs = {{"x", normal({1, 4, 2, 3})}};
  EXPECT_GRADIENTS_MATCH(context(), function, inputs);
}

TEST_P(LinearAttentionTest, AnEmptySequenceHandsTheStateOn) {
  const Tensor start = normal({1, 2, 3, 4});
  Tape tape(context());
  Gradient gradient;
  const Variable q{normal({1, 0, 2, 3}), {}}, v{normal({1, 0, 2, 4}), {}};
  const LinearAttention result =
      linear_attention(tape, q, q, v, {{log_decay({-1.0, -2.0}), {}}, tape.leaf(start, gradient, "state")}, kConstant);
  EXPECT_EQ(values(result.final_state), read_values(context(), start));
  const Tensor upstream = normal({1, 2, 3, 4});
  tape.backward(result.final_state, upstream);
  EXPECT_EQ(read_values(context(), gradient.tensor), read_values(context(), upstream));
}

// float32 with slopes whose powers over a chunk are far below the smallest number: nothing overflows.
TEST_P(LinearAttentionTest, StrongDecayStaysFinite) {
  Tape tape(context());
  std::vector<Gradient> gradients(3);
  std::vector<Variable> x;
  for (Gradient& gradient : gradients) {
    x.push_back(tape.leaf(normal({1, 130, 2, 4}, DType::float32), gradient, "input"));
  }
  const Variable decay{log_decay({-7.75, -1e4}, DType::float32), {}};
  const LinearAttention result = linear_attention(tape, x[0], x[1], x[2], {decay, {}}, kConstant);
  tape.backward({{result.o, normal({1, 130, 2, 4}, DType::float32)}});
  for (double value : values(result.o)) EXPECT_TRUE(std::isfinite(value));
  for (const Gradient& gradient : gradients) {
    for (double value : read_values(context(), gradient.tensor)) EXPECT_TRUE(std::isfinite(value));
  }
}

// lambda^N for a lambda that is 1 in float32, or nearly: every power that is taken over 1e5 tokens is right to a few
// roundings, and so is a sum of as many equal terms.
TEST_P(LinearAttentionTest, WeakDecayOverManyTokensKeepsItsDigits) {
  const int64_t length = 100003;
  const std::vector<double> decays = {-4e-10, -1e-9, -3e-8, -1e-6, -2e-5};
  const auto heads = static_cast<int64_t>(decays.size());
  const Tensor decay = log_decay(decays, DType::float32);
  const std::vector<double> rounded = read_values(context(), decay);
  const auto filled = [&](const Shape& shape, double value) {
    const Tensor result = Tensor::empty(context(), shape, DType::float32);
    write_values(context(), result, std::vector<double>(static_cast<size_t>(numel(shape)), value));
    return result;
  };
  const Shape tokens_shape{1, length, heads, 1};
  const Tensor ones = filled(tokens_shape, 1.0), values_of_tokens = filled(tokens_shape, 0.01);
  const double value = read_values(context(), values_of_tokens.slice(1, 0, 1))[0];
  for (const bool has_tokens : {false, true}) {
    Tape tape(context());
    Gradient d_state, d_v;
    const Variable state = tape.leaf(filled({1, heads, 1, 1}, 0.7), d_state, "state");
    const Variable v = tape.leaf(has_tokens ? values_of_tokens : filled(tokens_shape, 0.0), d_v, "v");
    const Variable q = tape.constant(ones);
    const LinearAttention result =
        linear_attention(tape, q, q, v, {tape.constant(decay), state}, {.decay = Decay::constant});
    tape.backward(result.o, ones);
    const auto o = values(result.o), last = values(result.final_state);
    const auto state_gradient = read_values(context(), d_state.tensor), v_gradient = read_values(context(), d_v.tensor);
    for (int64_t h = 0; h < heads; ++h) {
      const double n = static_cast<double>(length), slope = rounded[h], lambda = std::exp(slope);
      const double all = std::exp(n * slope), sum = std::expm1(n * slope) / std::expm1(slope);  // of lambda^0 ..
      const double wanted = static_cast<double>(0.7f) * all + (has_tokens ? value * sum : 0.0);
      // A sum over the 64 tokens of a chunk is one in float32. On a GPU so is the state that each chunk hands on, and
      // where all terms are equal each is rounded to the same side.
      const double handovers = on_gpu() ? n / 64.0 / 2.0 : 0.0;
      const double roundings = (has_tokens ? 16.0 : 3.0) + handovers;
      EXPECT_NEAR(last[h], wanted, roundings * 0x1p-24 * wanted) << "log_decay " << slope;
      EXPECT_NEAR(o[(length - 1) * heads + h], wanted, (roundings + 2) * 0x1p-24 * wanted) << "log_decay " << slope;
      EXPECT_NEAR(state_gradient[h], lambda * sum, (18 + handovers) * 0x1p-24 * sum) << "log_decay " << slope;
      EXPECT_NEAR(v_gradient[h], sum, (18 + handovers) * 0x1p-24 * sum) << "log_decay " << slope;
    }
  }
}

TEST_P(LinearAttentionTest, ErrorsNameTheArgument) {
  Tape tape(context());
  const Variable q{normal({2, 3, 4, 5}), {}};
  const auto message = [&](const char* text) { return ThrowsMessage<Error>(HasSubstr(text)); };
  const auto run = [&](const Variable& k, const Variable& v, const LinearAttentionInputs& inputs = {},
                       Decay decay = Decay::none) {
    return [&, k, v, inputs, decay] { linear_attention(tape, q, k, v, inputs, {.decay = decay}); };
  };
  const auto given = [&](const Shape& shape, DType dtype = DType::float64) {
    return Variable{normal(shape, dtype), {}};
  };
  EXPECT_THAT(run(given({2, 3, 4, 6}), q), message("[linear_attention] k is float64 (2, 3, 4, 6), expected float64 "
                                                   "(2, 3, 4, 5): that of q"));
  EXPECT_THAT(run(q, given({2, 3, 3, 5})), message("[linear_attention] v is float64 (2, 3, 3, 5)"));
  EXPECT_THAT(run(q, given({2, 3, 20})), message("expected real numbers (batch, length, heads, dim)"));
  EXPECT_THAT(run(q, q, {}, Decay::constant), message("decay is constant, but log_decay is missing"));
  EXPECT_THAT(run(q, q, {given({4}), {}}), message("decay is none, but log_decay is given"));
  EXPECT_THAT(run(q, q, {given({4}, DType::float32), {}}, Decay::constant), message("log_decay is float32 (4)"));
  EXPECT_THAT(run(q, q, {{}, given({2, 4, 5, 6})}), message("initial_state is float64 (2, 4, 5, 6)"));
  const Variable gaps{normal({2, 4, 5, 7}).slice(3, 0, 5), {}};
  EXPECT_THAT(run(q, q, {{}, gaps}), message("[linear_attention] initial_state is not contiguous"));
  const Variable sparse{normal({4, 2}).slice(1, 0, 1).reshape({4}), {}};
  EXPECT_THAT(run(q, q, {sparse, {}}, Decay::constant),
              message("[linear_attention] log_decay is not contiguous: (4) has strides (2), expected (1)"));
  EXPECT_THAT(run(q, {normal({2, 3, 5, 4}).transpose(2, 3), {}}), message("[linear_attention] v: heads: the last"));
  if (on_gpu()) return;  // numbers on a GPU are not looked at
  EXPECT_THAT(run(q, q, {{log_decay({0, 0, 0.5, 0}), {}}, {}}, Decay::constant),
              message("log_decay[2] is 0.5, expected a number <= 0"));
}

// Any number of threads gives the same bits.
TEST(LinearAttentionThreaded, SameBitsForAnyNumberOfThreads) {
  const auto run = [](int threads) {
    ContextOptions options;
    options.threads = threads;
    Context context(Device{}, options);
    Random random(3, RandomStream::test);
    std::vector<Gradient> gradients(3);
    Tape tape(context);
    std::vector<Variable> x;
    for (Gradient& gradient : gradients) {
      Tensor tensor = Tensor::empty(context, {2, 70, 3, 40}, DType::float32);
      fill_normal(context, tensor, random, 0.0, 1.0);
      x.push_back(tape.leaf(tensor, gradient, "input"));
    }
    const Variable o = linear_attention(tape, x[0], x[1], x[2]).o;
    std::vector<double> results = read_values(context, o.value);
    tape.backward({{o, x[0].value}});
    for (const Gradient& gradient : gradients) append(results, read_values(context, gradient.tensor));
    return results;
  };
  EXPECT_EQ(run(1), run(4));
}

HEDDLE_ON_DEVICES(LinearAttentionTest);

}  // namespace
}  // namespace heddle::test::linear_attention_test
