// Every extent 0 in turn: an empty result, zeros where a sum has no terms, or an error that says why.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/activation.h"
#include "layers/ops/cross_entropy.h"
#include "layers/ops/dropout.h"
#include "layers/ops/embedding.h"
#include "layers/ops/glu.h"
#include "layers/ops/linear.h"
#include "layers/ops/linear_attention.h"
#include "layers/ops/linear_cross_entropy.h"
#include "layers/ops/log_sigmoid.h"
#include "tests/error_of.h"
#include "tests/layers/on_devices.h"

namespace heddle::test::zero_extents_test {
namespace {

constexpr DType kAll[] = {DType::float64, DType::float32, DType::bfloat16, DType::float16};

class ZeroExtents : public OnDevices {
 protected:
  Tensor tensor(const Shape& shape, DType dtype) {
    Tensor result = Tensor::empty(context(), shape, dtype);
    fill_normal(context(), result, random_, 0.0, 1.0);
    return result;
  }
  Tensor indices(const Shape& shape) { return Tensor::zeros(context(), shape, DType::int32); }
  std::vector<double> read(const Tensor& values) { return read_values(context(), values); }
  // Gradients start as NaN, so that one that is not written shows.
  Variable leaf(Tape& tape, const Shape& shape, DType dtype, Gradient& gradient) {
    gradient.tensor = Tensor::empty(context(), shape, dtype);
    poison(context(), gradient.tensor);
    return tape.leaf(tensor(shape, dtype), gradient, "leaf");
  }
  void expect_zeros(const Tensor& values) {
    for (const double value : read(values)) ASSERT_EQ(value, 0.0);
  }
  Random random_{2, RandomStream::test};
};

TEST_P(ZeroExtents, Linear) {
  for (const DType dtype : kAll) {
    for (int zero = 0; zero < 4; ++zero) {
      std::array<int64_t, 4> extents = {2, 3, 5, 4};  // batch, length, in, out
      extents[zero] = 0;
      const auto& [batch, length, in, out] = extents;
      SCOPED_TRACE(::testing::Message() << name(dtype) << " extent " << zero);
      Tape tape(context());
      std::array<Gradient, 3> gradients;
      const Variable x = leaf(tape, {batch, length, in}, dtype, gradients[0]);
      const Variable weight = leaf(tape, {out, in}, dtype, gradients[1]);
      const Variable bias = leaf(tape, {out}, dtype, gradients[2]);
      const Variable y = linear(tape, x, weight, bias);
      EXPECT_EQ(y.shape(), (Shape{batch, length, out}));
      const auto wanted = read(bias.value), found = read(y.value);
      for (size_t i = 0; i < found.size(); ++i) EXPECT_EQ(found[i], wanted[i % wanted.size()]);  // in is 0
      tape.backward(y, tensor(y.shape(), dtype));
      expect_zeros(gradients[0].tensor);
      expect_zeros(gradients[1].tensor);
      if (in > 0) expect_zeros(gradients[2].tensor);
    }
  }
}

TEST_P(ZeroExtents, Embedding) {
  for (const DType dtype : kAll) {
    for (int zero = 0; zero < 3; ++zero) {
      std::array<int64_t, 3> extents = {3, 4, 5};  // tokens, vocabulary, dim
      extents[zero] = 0;
      const auto& [count, vocabulary, dim] = extents;
      if (vocabulary == 0) continue;  // below
      Tape tape(context());
      Gradient gradient;
      const Variable y = embedding(tape, indices({count}), leaf(tape, {vocabulary, dim}, dtype, gradient));
      EXPECT_EQ(y.shape(), (Shape{count, dim}));
      tape.backward(y, tensor(y.shape(), dtype));
      expect_zeros(gradient.tensor);
    }
    Tape tape(context());
    Gradient gradient;
    const Variable empty = leaf(tape, {0, 5}, dtype, gradient);
    const Variable y = embedding(tape, indices({0}), empty);
    EXPECT_EQ(y.shape(), (Shape{0, 5}));
    tape.backward(y, tensor({0, 5}, dtype));
    EXPECT_EQ(testing::error_of([&] { embedding(tape, indices({3}), empty); }),
              "[embedding] weight has shape (0, 5), expected at least one row for tokens (3)");
  }
}

// A row of no features has tokens all the same.
TEST_P(ZeroExtents, EmbeddingOfNoFeaturesChecksItsTokens) {
  if (on_gpu()) GTEST_SKIP() << "a GPU does not check tokens";
  Tape tape(context());
  const Tensor tokens = indices({2});
  write_values(context(), tokens, {0.0, 9.0});
  EXPECT_EQ(testing::error_of([&] {
              embedding(tape, tokens, tape.constant(tensor({4, 0}, DType::float32)));
            }),
            "[embedding] token 1 is 9, expected one of [0, 4): the vocabulary");
}

TEST_P(ZeroExtents, CrossEntropy) {
  for (const DType dtype : kAll) {
    for (const CrossEntropyOptions& options : {CrossEntropyOptions{}, CrossEntropyOptions{.label_smoothing = 0.1},
                                               CrossEntropyOptions{.reduction = Reduction::sum, .z_loss = 0.1},
                                               CrossEntropyOptions{.reduction = Reduction::none, .z_loss = 0.1}}) {
      for (const Shape& rows : {Shape{0, 3}, Shape{2, 0}, Shape{0}}) {
        Shape shape = rows;
        shape.append(5);
        Tape tape(context());
        Gradient gradient;
        const Variable loss = cross_entropy(tape, leaf(tape, shape, dtype, gradient), indices(rows), options);
        const bool reduces = options.reduction != Reduction::none;
        EXPECT_EQ(read(loss.value), std::vector<double>(reduces ? 1 : 0, 0.0));
        tape.backward(loss, tensor(loss.shape(), loss.dtype()));
        EXPECT_EQ(gradient.tensor.shape(), shape);
      }
    }
    Tape tape(context());
    EXPECT_EQ(testing::error_of([&] {
                cross_entropy(tape, tape.constant(tensor({2, 3, 0}, dtype)), indices({2, 3}));
              }),
              "[cross_entropy] logits have shape (2, 3, 0), expected at least one class");
  }
}

TEST_P(ZeroExtents, LinearCrossEntropy) {
  for (const DType dtype : kAll) {
    for (int zero = 0; zero < 2; ++zero) {
      std::array<int64_t, 2> extents = {3, 4};  // rows, dim
      extents[zero] = 0;
      const auto& [rows, dim] = extents;
      Tape tape(context());
      std::array<Gradient, 2> gradients;
      const Variable x = leaf(tape, {rows, dim}, dtype, gradients[0]);
      const Variable weight = leaf(tape, {5, dim}, dtype, gradients[1]);
      const Variable loss = linear_cross_entropy(tape, x, weight, indices({rows}), {.chunk = 2});
      // Without features all logits are 0, and all classes alike.
      EXPECT_NEAR(read(loss.value)[0], rows == 0 ? 0.0 : std::log(5.0), 1e-6) << name(dtype);
      tape.backward(loss, tensor({}, loss.dtype()));
      expect_zeros(gradients[0].tensor);
      expect_zeros(gradients[1].tensor);
    }
  }
}

TEST_P(ZeroExtents, LinearAttention) {
  for (const DType dtype : kAll) {
    const DType wide = accumulate_type(dtype);
    for (int zero = 0; zero < 5; ++zero) {
      std::array<int64_t, 5> extents = {2, 3, 2, 4, 5};  // batch, length, heads, dim, value dim
      extents[zero] = 0;
      const auto& [batch, length, heads, dim, value_dim] = extents;
      SCOPED_TRACE(::testing::Message() << name(dtype) << " extent " << zero);
      Tape tape(context());
      std::array<Gradient, 4> gradients;
      const Shape keys{batch, length, heads, dim}, values{batch, length, heads, value_dim};
      const Variable q = leaf(tape, keys, dtype, gradients[0]), k = leaf(tape, keys, dtype, gradients[1]);
      const Variable v = leaf(tape, values, dtype, gradients[2]);
      const Variable state = leaf(tape, {batch, heads, dim, value_dim}, wide, gradients[3]);
      const Variable decay = tape.constant(Tensor::zeros(context(), {heads}, wide));
      LinearAttention result;
      const std::string error = testing::error_of([&] {
        result = linear_attention(tape, q, k, v, {decay, state}, {.decay = Decay::constant});
      });
      if (dim == 0) {
        EXPECT_EQ(error, "[linear_attention] q has shape (2, 3, 2, 0), expected at least one feature");
      } else if (value_dim == 0) {
        EXPECT_EQ(error, "[linear_attention] v has shape (2, 3, 2, 0), expected at least one feature");
      } else {
        EXPECT_EQ(error, "no error");
        EXPECT_EQ(result.o.shape(), values);
        EXPECT_EQ(read(result.final_state.value), read(state.value));
        const Tensor upstream = tensor(state.shape(), wide);
        tape.backward({{result.o, tensor(values, dtype)}, {result.final_state, upstream}});
        EXPECT_EQ(read(gradients[3].tensor), read(upstream));
      }
    }
  }
}

TEST_P(ZeroExtents, ElementwiseOperators) {
  for (const DType dtype : kAll) {
    for (const Shape& shape : {Shape{0, 3, 4}, Shape{2, 0, 4}, Shape{2, 3, 0}, Shape{0}}) {
      Tape tape(context());
      std::array<Gradient, 2> gradients;
      const Variable a = leaf(tape, shape, dtype, gradients[0]), b = leaf(tape, shape, dtype, gradients[1]);
      const Variable inner = activation(tape, activation(tape, a, Activation::silu), Activation::gelu);
      const Variable y = dropout(tape, glu(tape, inner, b, Activation::tanh), {.p = 0.5, .seed = 1});
      const Variable logarithm = log_sigmoid(tape, a, 2.0);
      EXPECT_EQ(y.shape(), shape);
      EXPECT_EQ(logarithm.shape(), shape);
      tape.backward({{y, tensor(shape, dtype)}, {logarithm, tensor(shape, logarithm.dtype())}});
      for (const Gradient& gradient : gradients) EXPECT_EQ(gradient.tensor.shape(), shape);
    }
  }
}

HEDDLE_ON_DEVICES(ZeroExtents);

}  // namespace
}  // namespace heddle::test::zero_extents_test
