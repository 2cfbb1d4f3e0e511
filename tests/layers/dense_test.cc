// What the table of cases does not see of linear, embedding, glu and cross_entropy: errors, modules, memory.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/config/config_load.h"
#include "core/tensor/transfer.h"
#include "layers/modules/embedding.h"
#include "layers/modules/feed_forward.h"
#include "layers/ops/cross_entropy.h"
#include "layers/ops/embedding.h"
#include "layers/ops/glu.h"
#include "layers/ops/linear.h"
#include "layers/ops/view.h"
#include "layers/registry.h"
#include "tests/autograd/test_nodes.h"
#include "tests/layers/on_devices.h"

namespace heddle::dense_test {
namespace {

constexpr DType kFloat = DType::float32;

Tensor normal(Context& context, const Shape& shape, DType dtype = kFloat) {
  const Tensor result = Tensor::empty(context, shape, dtype);
  Random random(1, RandomStream::test);
  fill_normal(context, result, random, 0.0, 1.0);
  return result;
}

Tensor indices(Context& context, const Shape& shape, const std::vector<double>& values) {
  const Tensor result = Tensor::empty(context, shape, DType::int32);
  write_values(context, result, values);
  return result;
}

class DenseTest : public ::testing::Test {
 protected:
  Tensor tensor(const Shape& shape, DType dtype = kFloat) { return normal(context_, shape, dtype); }

  Variable constant(const Shape& shape, DType dtype = kFloat) { return tape_.constant(tensor(shape, dtype)); }

  template <class Call>
  void expect_error(const Call& call, const std::string& message) {
    try {
      call();
      ADD_FAILURE() << "no error, expected: " << message;
    } catch (const Error& error) {
      EXPECT_EQ(error.what(), message);
    }
  }

  Context context_;
  Tape tape_{context_};
};

TEST_F(DenseTest, LinearNamesWhatDoesNotFit) {
  const Variable x = constant({4, 3, 8}), weight = constant({5, 8});
  expect_error(
      [&] {
        linear(tape_, x, constant({8, 5}));
      },
      "[linear] weight has shape (8, 5), expected (out, 8): the last dimension of x (4, 3, 8)");
  expect_error([&] { linear(tape_, x, weight, constant({8})); },
               "[linear] bias has shape (8), expected (5): the first dimension of weight (5, 8)");
  expect_error(
      [&] {
        linear(tape_, x, constant({5, 8}, DType::bfloat16));
      },
      "[linear] weight is bfloat16, expected float32: the dtype of x");
  expect_error([&] { linear(tape_, {}, weight); }, "[linear] x is missing");
  const Variable sliced = tape_.constant(tensor({4, 3, 8}).slice(1, 0, 2));
  expect_error([&] { linear(tape_, sliced, weight); },
               "[linear] x: cannot view (4, 2, 8) with strides (24, 8, 1) as (8, 8) without a copy");
}

TEST_F(DenseTest, LinearTakesAVectorAndASliceOfTheLastDimension) {
  const Tensor wide = tensor({4, 3, 10}), weight = tensor({5, 6});
  const Variable y = linear(tape_, tape_.constant(wide.slice(-1, 2, 8)), tape_.constant(weight));
  const Tensor row = wide.select(0, 1).select(0, 2).slice(0, 2, 8);
  const Variable of_row = linear(tape_, tape_.constant(row), tape_.constant(weight));
  EXPECT_EQ(y.shape(), (Shape{4, 3, 5}));
  EXPECT_EQ(of_row.shape(), Shape{5});
  const auto found = read_values(context_, of_row.value);
  const auto wanted = read_values(context_, y.value.select(0, 1).select(0, 2));
  for (size_t i = 0; i < wanted.size(); ++i) EXPECT_NEAR(found[i], wanted[i], 1e-5);
}

// The weight's gradient does not need one of the bias.
TEST_F(DenseTest, LinearOfAConstantBias) {
  const Tensor x = tensor({4, 6}), weight = tensor({5, 6}), upstream = tensor({4, 5});
  std::vector<double> gradients[2];
  for (const bool biased : {false, true}) {
    Gradient d_weight;
    Tape tape(context_);
    const Variable bias = biased ? tape.constant(tensor({5})) : Variable{};
    tape.backward(linear(tape, tape.constant(x), tape.leaf(weight, d_weight, "weight"), bias), upstream);
    gradients[biased] = read_values(context_, d_weight.tensor);
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

// The gradient of x takes the memory of x where nothing else holds that.
TEST_F(DenseTest, LinearBackwardGivesBackItsInput) {
  for (const DeviceType device : {DeviceType::cpu, DeviceType::meta}) {
    Context context({device});
    Gradient d_first, d_second;
    Tape tape(context);
    const Tensor upstream = normal(context, {64, 4});
    const Variable first = tape.leaf(normal(context, {512, 8}), d_first, "first");
    const Variable second = tape.leaf(normal(context, {4, 512}), d_second, "second");
    const Variable y = linear(tape, linear(tape, tape.constant(normal(context, {64, 8})), first), second);
    const size_t before = context.allocator().stats().allocated.current;
    context.allocator().reset_peaks();
    tape.backward(y, upstream);
    EXPECT_LT(context.allocator().stats().allocated.peak - before, size_t{64} * 512 * 4 / 2);
  }
}

TEST_F(DenseTest, LinearModuleHasNamedParametersOfTheRightSize) {
  ParameterSet parameters;
  const ModuleBuilder builder(parameters, "blocks.0");
  const Linear layer({.bias = true}, builder.child("out"), 400, 30);
  parameters.materialize(context_, kFloat, 1);
  ASSERT_EQ(parameters.all().size(), 2u);
  EXPECT_EQ(parameters.all()[0].name, "blocks.0.out.weight");
  EXPECT_EQ(parameters.all()[0].shape, (Shape{30, 400}));
  EXPECT_TRUE(parameters.all()[0].weight_decay);
  EXPECT_EQ(parameters.all()[1].name, "blocks.0.out.bias");
  EXPECT_FALSE(parameters.all()[1].weight_decay);
  double square = 0.0;
  for (double value : read_values(context_, parameters.all()[0].value)) square += value * value;
  EXPECT_NEAR(std::sqrt(square / (30 * 400)), 1.0 / 20.0, 1e-3);
}

TEST_F(DenseTest, EmbeddingNamesTheTokenAndTheVocabulary) {
  const Variable weight = constant({7, 3});
  expect_error(
      [&] {
        embedding(tape_, indices(context_, {2, 2}, {0, 6, 7, 1}), weight);
      },
      "[embedding] token 2 is 7, expected one of [0, 7): the vocabulary");
  expect_error([&] { embedding(tape_, indices(context_, {1}, {-1}), weight); },
               "[embedding] token 0 is -1, expected one of [0, 7): the vocabulary");
  expect_error([&] { embedding(tape_, tensor({2}), weight); },
               "[embedding] tokens are float32 (2) of strides (1), expected dense int32");
  expect_error([&] { embedding(tape_, indices(context_, {1}, {0}), weight, {.padding_idx = 7}); },
               "[embedding] padding_idx is 7, expected one of [0, 7): the vocabulary");
}

class EmbeddingPadding : public test::OnDevices {};

// The row of padding_idx is read as others are, and what arrives at its places is left out.
TEST_P(EmbeddingPadding, HasNoGradient) {
  const Tensor tokens = indices(context(), {2, 3}, {2, 0, 2, 1, 0, 2}), table = normal(context(), {3, 5});
  const std::vector<double> old(15, 0.25);
  for (const bool adds : {false, true}) {
    const auto run = [&](const EmbeddingOptions& options) {
      Gradient gradient;
      gradient.tensor = Tensor::empty(context(), {3, 5}, kFloat);
      write_values(context(), gradient.tensor, old);
      gradient.written = adds;
      Tape tape(context());
      const Variable y = embedding(tape, tokens, tape.leaf(table, gradient, "weight"), options);
      const Tensor d_y = Tensor::empty(context(), {2, 3, 5}, kFloat);
      std::vector<double> numbers(30);
      for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = static_cast<double>(i) - 11.0;
      write_values(context(), d_y, numbers);
      tape.backward(y, d_y);
      return std::pair(read_values(context(), y.value), read_values(context(), gradient.tensor));
    };
    const auto [y, gradient] = run({});
    for (const int64_t padding : {0, 1, 2}) {
      const auto [padded_y, found] = run({.padding_idx = padding});
      EXPECT_EQ(padded_y, y);
      for (int64_t i = 0; i < 15; ++i) {
        const auto at = static_cast<size_t>(i);
        EXPECT_EQ(found[at], i / 5 == padding ? (adds ? 0.25 : 0.0) : gradient[at]) << padding << " " << i;
      }
    }
  }
}
HEDDLE_ON_DEVICES(EmbeddingPadding);

TEST_F(DenseTest, AHeadCanShareTheEmbedding) {
  ParameterSet parameters;
  const Embedding table({}, ModuleBuilder(parameters, "embedding"), 5, 4);
  parameters.materialize(context_, DType::float64, 1);
  Parameter& weight = parameters.all()[0];
  poison(context_, weight.gradient.tensor);
  const Tensor tokens = indices(context_, {3}, {4, 1, 4}), upstream = tensor({3, 5}, DType::float64);
  const Variable x = table.forward(tape_, tokens);
  const auto rows = read_values(context_, x.value), d_y = read_values(context_, upstream);
  const auto values = read_values(context_, weight.value);
  tape_.backward(linear(tape_, x, table.weight(tape_)), upstream);
  std::vector<double> wanted(20, 0.0);
  const int64_t places[] = {4, 1, 4};
  for (int64_t i = 0; i < 3; ++i) {
    for (int64_t c = 0; c < 5; ++c) {
      for (int64_t p = 0; p < 4; ++p) {
        wanted[c * 4 + p] += d_y[i * 5 + c] * rows[i * 4 + p];            // as the head's weight
        wanted[places[i] * 4 + p] += d_y[i * 5 + c] * values[c * 4 + p];  // as the row of the token
      }
    }
  }
  const auto found = read_values(context_, weight.gradient.tensor);
  for (size_t i = 0; i < 20; ++i) EXPECT_NEAR(found[i], wanted[i], 1e-14);
}

TEST_F(DenseTest, GluNamesWhatDoesNotFit) {
  expect_error(
      [&] {
        glu(tape_, constant({4, 8}), constant({4, 7}));
      },
      "[glu] b has shape (4, 7), expected (4, 8): that of a");
  expect_error(
      [&] {
        glu(tape_, constant({4, 8}), constant({4, 8}, DType::bfloat16));
      },
      "[glu] b is bfloat16, expected float32: the dtype of a");
}

// d_product and one buffer for both halves of the projection; weights' gradients are where they belong.
TEST_F(DenseTest, GluBackwardAllocatesTwoTensors) {
  ParameterSet parameters;
  const FeedForward layer({.hidden = 6}, ModuleBuilder(parameters), 4);
  parameters.materialize(context_, kFloat, 1);
  const Variable y = layer.forward(tape_, tape_.constant(tensor({2, 3, 4})));
  const Tensor upstream = tensor({2, 3, 4});
  const int64_t before = context_.allocator().stats().allocations;
  tape_.backward(y, upstream);
  EXPECT_EQ(context_.allocator().stats().allocations - before, 2);
}

TEST_F(DenseTest, SplitAndReshapedPartsShareOneGradient) {
  Gradient d_x;
  const Variable x = tape_.leaf(tensor({2, 3, 12}, DType::float64), d_x, "x");
  const std::vector<Variable> parts = split_last(tape_, x, {8, 4});
  const Variable rows = reshape(tape_, parts[0], {6, 8});
  const Variable a = activation(tape_, rows, Activation::silu), b = activation(tape_, parts[1], Activation::sigmoid);
  const Tensor d_a = tensor({6, 8}, DType::float64), d_b = tensor({2, 3, 4}, DType::float64);
  const int64_t before = context_.allocator().stats().allocations;
  tape_.backward({{a, d_a}, {b, d_b}});
  EXPECT_EQ(context_.allocator().stats().allocations - before, 1);
  EXPECT_EQ(d_x.tensor.shape(), (Shape{2, 3, 12}));
  const auto values = read_values(context_, x.value), gradient = read_values(context_, d_x.tensor);
  const auto left = read_values(context_, d_a), right = read_values(context_, d_b);
  for (int64_t i = 0; i < 6; ++i) {
    for (int64_t j = 0; j < 12; ++j) {
      const double s = 1.0 / (1.0 + std::exp(-values[i * 12 + j]));
      const double wanted =
          j < 8 ? left[i * 8 + j] * s * (1.0 + values[i * 12 + j] * (1.0 - s)) : right[i * 4 + j - 8] * s * (1.0 - s);
      EXPECT_NEAR(gradient[i * 12 + j], wanted, 1e-14);
    }
  }
}

// A chain of operators names its own inputs, not those of the operators that it is made of.
TEST_F(DenseTest, ChainsNameTheirOwnInputs) {
  const auto run = [&](const std::string& op, const std::string& options, const NamedVariables& inputs) {
    bind_operator(built_in_registry().find(op), parse_config(options))(tape_, inputs);
  };
  const Variable x = constant({2, 3, 4});
  const auto glu_of = [&](const Shape& w12, const Shape& w3, const std::string& options = "{}") {
    return [=, this] { run("glu", options, {{"x", x}, {"w12", constant(w12)}, {"w3", constant(w3)}}); };
  };
  glu_of({10, 4}, {4, 5})();
  expect_error(glu_of({10, 7}, {4, 5}),
               "[glu] w12 has shape (10, 7), expected (10, 4): (2 * hidden, last dimension of x)");
  expect_error(glu_of({10, 4}, {4, 6}),
               "[glu] w12 has shape (10, 4), expected (12, 4): (2 * hidden, last dimension of x)");
  expect_error(glu_of({10, 4}, {4}), "[glu] w3 has shape (4), expected (dim, hidden)");
  expect_error(glu_of({10, 4}, {4, 5}, "{hidden: 6}"), "[glu] w3 has shape (4, 5), expected (4, 6): (dim, hidden)");
  expect_error(glu_of({10, 4}, {4, 5}, "{hidden: 0}"),
               "config:1:10: hidden: found '0', expected an integer in [1, 2147483647]");
  const auto ffn_of = [&](const Shape& w1, const Variable& w2) {
    return [=, this] { run("ffn", "{}", {{"x", x}, {"w1", constant(w1)}, {"w2", w2}}); };
  };
  ffn_of({5, 4}, constant({4, 5}))();
  expect_error(ffn_of({5, 3}, constant({4, 5})),
               "[ffn] w1 has shape (5, 3), expected (5, 4): (hidden, last dimension of x)");
  expect_error(ffn_of({5, 4}, constant({4, 6})),
               "[ffn] w1 has shape (5, 4), expected (6, 4): (hidden, last dimension of x)");
  expect_error(ffn_of({5, 4}, tape_.constant(tensor({4, 5}, DType::float64))),
               "[ffn] w2 is float64, expected float32: the dtype of x");

  ParameterSet set;
  const FeedForward channel({FeedForwardType::ffn, 5, Activation::relu}, ModuleBuilder(set), 3);
  set.materialize(context_, DType::float32, 1);
  expect_error([&] { channel.forward(tape_, x); }, "[ffn] x has shape (2, 3, 4), expected (..., 3)");
  expect_error([&] { FeedForward({.hidden = -2}, ModuleBuilder(set, "negative"), 3); },
               "[glu] hidden is -2, expected at least 1");
  expect_error(
      [&] {
        FeedForward({FeedForwardType::ffn, 0}, ModuleBuilder(set, "none"), 3);
      },
      "[ffn] hidden is 0, expected at least 1");
}

TEST_F(DenseTest, LinearNamesABiasThatIsNotContiguous) {
  const Variable bias = tape_.constant(tensor({5, 2}).slice(1, 0, 1).reshape({5}));
  expect_error(
      [&] {
        linear(tape_, constant({3, 4}), constant({5, 4}), bias);
      },
      "[linear] bias is not contiguous: (5) has strides (2), expected (1)");
}

TEST_F(DenseTest, NamesThatAreNotThereAreNamed) {
  const NamedVariables some{{"weight", {}}, {"x", {}}};
  expect_error([&] { some.at("gate"); }, "found no tensor 'gate', only weight, x");
  expect_error([] { ReferenceTensors().at("x"); }, "found no tensor 'x', only an empty list");
}

TEST_F(DenseTest, CrossEntropyNamesWhatDoesNotFit) {
  const Variable logits = constant({2, 3, 5});
  expect_error(
      [&] {
        cross_entropy(tape_, logits, indices(context_, {6}, {0, 1, 2, 3, 4, 0}));
      },
      "[cross_entropy] targets are int32 (6), expected dense int32 (2, 3): one for each row of logits "
      "(2, 3, 5)");
  expect_error(
      [&] {
        cross_entropy(tape_, logits, indices(context_, {2, 3}, {0, 1, 2, 5, 4, 0}));
      },
      "[cross_entropy] target 3 is 5, expected one of [0, 5) or ignore_index -100");
  expect_error(
      [&] {
        cross_entropy(tape_, logits, indices(context_, {2, 3}, {0, 1, 2, 3, 4, 0}), {-100, 1.5});
      },
      "[cross_entropy] label_smoothing is 1.5, expected a number from 0 to 1");
  expect_error(
      [&] {
        cross_entropy(tape_, logits, indices(context_, {2, 3}, {0, 1, 2, 3, 4, 0}), {.z_loss = -0.5});
      },
      "[cross_entropy] z_loss is -0.5, expected a number of at least 0");
}

TEST_F(DenseTest, CrossEntropyIsStableForLargeLogits) {
  const Tensor logits = Tensor::empty(context_, {2, 3}, kFloat);
  write_values(context_, logits, {1e4, 0.0, -1e4, -1e30, -2e30, -1e30});
  const Variable loss = cross_entropy(tape_, tape_.constant(logits), indices(context_, {2}, {1, 0}));
  EXPECT_NEAR(read_values(context_, loss.value)[0], (1e4 + std::log(2.0)) / 2.0, 1e-3);
}

// When nobody else holds the logits, their gradient takes their place. The same on every device.
TEST_F(DenseTest, CrossEntropyBackwardWritesOverTheLogits) {
  const int64_t rows = 64, classes = 512, bytes = rows * classes * 4;
  std::vector<double> gradients[2];
  for (const DeviceType device : {DeviceType::cpu, DeviceType::meta}) {
    for (const bool keep : {false, true}) {
      Context context({device});
      ParameterSet parameters;
      const Linear head({}, ModuleBuilder(parameters), 8, classes);
      parameters.materialize(context, kFloat, 1);
      const Tensor targets = Tensor::zeros(context, {rows}, DType::int32), x = normal(context, {rows, 8});
      Tape tape(context);
      Variable logits = head.forward(tape, tape.constant(x));
      const Variable loss = cross_entropy(tape, logits, targets);
      if (!keep) logits = {};
      const auto before = static_cast<int64_t>(context.allocator().stats().allocated.current);
      context.allocator().reset_peaks();
      tape.backward(loss);
      const int64_t more = static_cast<int64_t>(context.allocator().stats().allocated.peak) - before;
      EXPECT_EQ(more >= bytes, keep);
      if (device == DeviceType::cpu) gradients[keep] = read_values(context, parameters.gradient());
    }
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

// Logits with gaps are not written over: a gradient without a place of its own has none.
TEST_F(DenseTest, CrossEntropyBackwardOfLogitsWithGaps) {
  const Tensor numbers = tensor({3, 5}, DType::float64), targets = indices(context_, {3}, {1, 4, 0});
  std::vector<double> gradients[2];
  for (const bool gaps : {false, true}) {
    Gradient d_x;
    Tape tape(context_);
    const Variable x = tape.leaf(numbers, d_x, "x");
    Variable logits;
    if (gaps) {
      logits = tape.output(Tensor::empty(context_, {3, 8}, DType::float64).slice(1, 0, 5), true);
      write_values(context_, logits.value, read_values(context_, numbers));
      tape.record(ScaleNode{x.slot, logits.slot, 1.0}, {x}, {logits});
    } else {
      logits = scale(tape, x, 1.0);
    }
    const Variable loss = cross_entropy(tape, logits, targets);
    logits = {};
    tape.backward(loss);
    gradients[gaps] = read_values(context_, d_x.tensor);
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

TEST_F(DenseTest, ActivationBackwardWritesOverTheIncomingGradient) {
  Gradient d_x;
  const Variable x = tape_.leaf(tensor({4, 6}), d_x, "x");
  const Variable y = activation(tape_, linear(tape_, x, constant({9, 6})), Activation::silu);
  const Variable loss = linear(tape_, y, constant({1, 9}));
  const Tensor upstream = tensor({4, 1});
  const int64_t before = context_.allocator().stats().allocations;
  tape_.backward(loss, upstream);
  EXPECT_EQ(context_.allocator().stats().allocations - before, 2);  // d_y, which becomes that of its input, and d_x
}

// Several weights at once. Where they lie side by side, as parameters do, it is one product in each pass, whose sums
// are rounded once; where they do not, it is one each.
class LinearOfSeveral : public test::OnDevices {};

TEST_P(LinearOfSeveral, IsLinearOfEach) {
  const int64_t rows = 10, in = 64;
  const std::vector<int64_t> out = {32, 2, 64};
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    for (const bool side_by_side : {false, true}) {
      for (const int added_to : {0, 1, 3}) {  // of the three: none, the second, all
        const auto adds = [added_to](size_t i) { return added_to == 3 || (added_to == 1 && i == 1); };
        const Tensor x = normal(context(), {rows, in}, dtype), all = normal(context(), {98, in}, dtype);
        const Tensor upstream = normal(context(), {rows, 98}, dtype);
        const Tensor d_all = Tensor::empty(context(), {98, in}, dtype);
        write_values(context(), d_all, std::vector<double>(98 * in, std::nan("")));
        std::vector<Gradient> gradients(3);
        Gradient d_x;
        Tape tape(context());
        std::vector<Variable> weights;
        int64_t begin = 0;
        for (size_t i = 0; i < out.size(); ++i) {
          const Tensor weight = all.slice(0, begin, begin + out[i]), d_weight = d_all.slice(0, begin, begin + out[i]);
          gradients[i].tensor = side_by_side ? d_weight : clone(context(), d_weight);
          gradients[i].written = adds(i);
          if (adds(i)) write_values(context(), gradients[i].tensor, std::vector<double>(out[i] * in, 0.5));
          weights.push_back(
              tape.leaf(side_by_side ? weight : clone(context(), weight), gradients[i], fmt::format("w{}", i)));
          begin += out[i];
        }
        const std::vector<Variable> y = linear(tape, tape.leaf(x, d_x, "x"), weights);
        std::vector<Tape::Root> roots;
        begin = 0;
        for (const Variable& part : y) {
          roots.push_back({part, upstream.slice(1, begin, begin + part.shape()[1])});
          begin += part.shape()[1];
        }
        tape.backward(roots);

        const std::vector<double> x_values = read_values(context(), x), w = read_values(context(), all);
        const std::vector<double> d_y = read_values(context(), upstream), d = read_values(context(), d_x.tensor);
        const double rounding = dtype == DType::float64   ? 0x1p-50
                                : dtype == DType::float32 ? 0x1p-21
                                : dtype == DType::float16 ? 0x1p-11
                                                          : 0x1p-8;
        const bool rounded_once = size_of(dtype) == 2 && side_by_side;
        double worst = 0.0;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < in; ++c) {
            double sum = 0.0;
            for (int64_t o = 0; o < 98; ++o) sum += d_y[r * 98 + o] * w[o * in + c];
            const double error = std::abs(d[r * in + c] - sum);
            worst = std::max(worst, error / (std::abs(sum) + (rounded_once ? 1e-3 : 30.0)));
          }
        }
        EXPECT_LE(worst, rounding) << name(dtype) << side_by_side << added_to;
        begin = 0;
        for (size_t i = 0; i < out.size(); ++i) {
          const std::vector<double> found = read_values(context(), y[i].value);
          const std::vector<double> d_w = read_values(context(), gradients[i].tensor);
          for (int64_t o = 0; o < out[i]; ++o) {
            for (int64_t r = 0; r < rows; ++r) {
              double sum = 0.0;
              for (int64_t c = 0; c < in; ++c) sum += x_values[r * in + c] * w[(begin + o) * in + c];
              EXPECT_NEAR(found[r * out[i] + o], sum, rounding * (std::abs(sum) + 30.0));
            }
            for (int64_t c = 0; c < in; ++c) {
              double sum = adds(i) ? 0.5 : 0.0;
              for (int64_t r = 0; r < rows; ++r) sum += d_y[r * 98 + begin + o] * x_values[r * in + c];
              EXPECT_NEAR(d_w[o * in + c], sum, rounding * (std::abs(sum) + 10.0));
            }
          }
          begin += out[i];
        }
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(LinearOfSeveral, NeedsWeightsThatFit) {
  Tape tape(context());
  const Variable x = tape.constant(normal(context(), {2, 3}));
  EXPECT_THROW(linear(tape, x, std::vector<Variable>{}), Error);
  const Variable fits = tape.constant(normal(context(), {4, 3})), other = tape.constant(normal(context(), {4, 2}));
  EXPECT_THROW(linear(tape, x, std::vector<Variable>{fits, other}), Error);
  EXPECT_EQ(linear(tape, x, std::vector<Variable>{fits, fits})[1].shape(), (Shape{2, 4}));
}
HEDDLE_ON_DEVICES(LinearOfSeveral);

}  // namespace
}  // namespace heddle::dense_test
