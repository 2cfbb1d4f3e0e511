// Views of values: their consumers write into the gradient memory of the whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "tests/autograd/test_nodes.h"
#include "tests/error_of.h"

namespace heddle {
namespace {

class TapeViewTest : public ::testing::Test {
 protected:
  Tensor tensor(const Shape& shape, const Values& values) { return make_tensor(context_, shape, values); }
  Tensor filled(const Shape& shape, double value) {
    return tensor(shape, Values(static_cast<size_t>(numel(shape)), value));
  }
  Values read(const Gradient& gradient) { return read_values(context_, gradient.tensor); }
  int64_t fills() const { return backend_->fills; }

  // Counts fills, which is how zeros are written.
  struct CountingBackend : HostBackend {
    int64_t fills = 0;
    void fill_bytes(void* data, int byte, size_t bytes, StreamHandle stream) override {
      ++fills;
      HostBackend::fill_bytes(data, byte, bytes, stream);
    }
  };
  std::unique_ptr<CountingBackend> owned_ = std::make_unique<CountingBackend>();
  CountingBackend* backend_ = owned_.get();
  Context context_{std::move(owned_)};
  Gradient gx_;
};

Tape::View slice(int dim, int64_t begin, int64_t end) {
  return [=](const Tensor& whole) { return whole.slice(dim, begin, end); };
}

TEST_F(TapeViewTest, PartsOfASplitShareOneBufferWithoutZeros) {
  Tape tape(context_);
  const Variable h = scale(tape, tape.leaf(tensor({2, 3}, {1, 2, 3, 4, 5, 6}), gx_, "x"), 1.0);
  const std::vector<Variable> parts = tape.split(h, 1, {1, 2});
  EXPECT_EQ(read_values(context_, parts[1].value), (Values{2, 3, 5, 6}));
  const Variable a = scale(tape, parts[0], 10.0), b = scale(tape, parts[1], 100.0);
  const std::vector<Tape::Root> roots{{a, filled({2, 1}, 1)}, {b, filled({2, 2}, 1)}};
  context_.allocator().reset_peaks();
  tape.backward(roots);
  EXPECT_EQ(context_.allocator().stats().allocations, 2) << "the gradient of h and that of x";
  EXPECT_EQ(fills(), 0);
  EXPECT_EQ(read(gx_), (Values{10, 100, 100, 10, 100, 100}));
}

TEST_F(TapeViewTest, PartsThatNothingReachedAreZero) {
  Tape tape(context_);
  const Variable h = scale(tape, tape.leaf(tensor({3}, {1, 2, 3}), gx_, "x"), 1.0);
  const std::vector<Variable> parts = tape.split(h, 0, {1, 1, 1});
  poison(context_, Tensor::empty(context_, {3}, DType::float64));  // what the buffer will find
  const Variable y = scale(tape, parts[1], 5.0);
  tape.backward(y);
  EXPECT_EQ(read(gx_), (Values{0, 5, 0}));
}

TEST_F(TapeViewTest, APartialViewLeavesZerosAround) {
  Tape tape(context_);
  const Variable h = scale(tape, tape.leaf(tensor({2, 2}, {1, 2, 3, 4}), gx_, "x"), 1.0);
  const Variable y = scale(tape, tape.view(h, slice(1, 1, 2)), 5.0);
  tape.backward(y, filled({2, 1}, 1));
  EXPECT_EQ(read(gx_), (Values{0, 5, 0, 5}));
}

TEST_F(TapeViewTest, APartUsedTwiceAdds) {
  Tape tape(context_);
  const Variable h = scale(tape, tape.leaf(tensor({2}, {1, 2}), gx_, "x"), 1.0);
  const std::vector<Variable> parts = tape.split(h, 0, {1, 1});
  const Variable y = multiply(tape, parts[0], add(tape, parts[0], parts[1]));  // p (p + q)
  tape.backward(y);
  EXPECT_EQ(read(gx_), (Values{4, 1}));
}

// Two views that overlap add up to the size of the whole: nothing but the rule that they are no partition tells.
TEST_F(TapeViewTest, OverlappingViewsAdd) {
  Tape tape(context_);
  const Variable h = scale(tape, tape.leaf(tensor({4}, {1, 2, 3, 4}), gx_, "x"), 1.0);
  const Variable a = tape.view(h, slice(0, 0, 2)), b = tape.view(h, slice(0, 1, 3));
  const Variable y = add(tape, scale(tape, a, 10.0), scale(tape, b, 1.0));
  tape.backward(y, filled({2}, 1));
  EXPECT_EQ(read(gx_), (Values{10, 11, 1, 0}));
}

TEST_F(TapeViewTest, TwoSplitsOfOneValueAdd) {
  Tape tape(context_);
  const Variable h = scale(tape, tape.leaf(tensor({4}, {1, 2, 3, 4}), gx_, "x"), 1.0);
  const std::vector<Variable> halves = tape.split(h, 0, {2, 2}), others = tape.split(h, 0, {1, 3});
  const Variable a = scale(tape, halves[1], 10.0);
  const Variable b = scale(tape, others[1], 1.0);
  tape.backward({{a, filled({2}, 1)}, {b, filled({3}, 1)}});
  EXPECT_EQ(read(gx_), (Values{0, 1, 11, 11}));
}

TEST_F(TapeViewTest, ViewOfAViewIsAPartOfAPart) {
  for (const bool with_second_half : {false, true}) {
    Gradient gradient;
    Tape tape(context_);
    const Variable h = scale(tape, tape.leaf(tensor({2, 4}, {1, 2, 3, 4, 5, 6, 7, 8}), gradient, "x"), 1.0);
    const std::vector<Variable> halves = tape.split(h, 1, {2, 2});
    // The way of q in a fused qkv: a part, seen as heads.
    const Variable heads = tape.view(halves[0], [](const Tensor& part) { return part.reshape({2, 2, 1}); });
    const Variable a = scale(tape, heads, 3.0);
    const Variable b = scale(tape, halves[1], 5.0);
    const int64_t before = fills();
    std::vector<Tape::Root> roots;
    roots.push_back({a, filled({2, 2, 1}, 1)});
    if (with_second_half) roots.push_back({b, filled({2, 2}, 1)});
    tape.backward(roots);
    EXPECT_EQ(fills() == before, with_second_half) << "zeros only where nothing was written";
    const double second = with_second_half ? 5 : 0;
    EXPECT_EQ(read(gradient), (Values{3, 3, second, second, 3, 3, second, second}));
  }
}

TEST_F(TapeViewTest, AReshapeOfTheWholeNeedsNoZeros) {
  Tape tape(context_);
  const Variable h = scale(tape, tape.leaf(tensor({2, 2}, {1, 2, 3, 4}), gx_, "x"), 1.0);
  const auto flat = [](const Tensor& whole) { return whole.reshape({4}); };
  const Variable a = scale(tape, tape.view(h, flat), 2.0), b = scale(tape, tape.view(h, flat), 3.0);
  tape.backward({{a, filled({4}, 1)}, {b, filled({4}, 1)}});
  EXPECT_EQ(fills(), 0);
  EXPECT_EQ(read(gx_), (Values{5, 5, 5, 5}));
}

TEST_F(TapeViewTest, TransposedViewWritesTransposed) {
  Tape tape(context_);
  const Variable h = scale(tape, tape.leaf(tensor({2, 2}, {1, 2, 3, 4}), gx_, "x"), 1.0);
  const Variable y = scale(tape, tape.view(h, [](const Tensor& t) { return t.transpose(0, 1); }), 1.0);
  tape.backward(y, tensor({2, 2}, {1, 2, 3, 4}));
  EXPECT_EQ(read(gx_), (Values{1, 3, 2, 4}));
}

// The whole and a part, in both orders of consumption.
TEST_F(TapeViewTest, TheWholeMayBeUsedBesideItsViews) {
  for (const bool whole_last : {false, true}) {
    for (const bool partition : {false, true}) {
      Gradient gradient;
      Tape tape(context_);
      const Variable h = scale(tape, tape.leaf(tensor({2}, {1, 2}), gradient, "x"), 1.0);
      const Variable part = partition ? tape.split(h, 0, {1, 1})[0] : tape.view(h, slice(0, 0, 1));
      Variable a, b;
      if (whole_last) {
        a = scale(tape, part, 10.0);
        b = scale(tape, h, 1.0);
      } else {
        b = scale(tape, h, 1.0);
        a = scale(tape, part, 10.0);
      }
      tape.backward({{a, filled({1}, 1)}, {b, filled({2}, 1)}});
      EXPECT_EQ(read(gradient), (Values{11, 1})) << whole_last << partition;
    }
  }
}

// The gradient of the whole is shared with another value: a view that adds to it must not reach the other holder.
TEST_F(TapeViewTest, AViewAddsToACopyOfASharedGradient) {
  Tape tape(context_);
  Gradient other;
  const Variable h = scale(tape, tape.leaf(tensor({2}, {1, 2}), gx_, "x"), 1.0);
  const Variable g = scale(tape, tape.leaf(tensor({2}, {1, 2}), other, "y"), 1.0);
  const Variable a = scale(tape, tape.view(h, slice(0, 0, 1)), 10.0);
  const Variable sum = add(tape, h, g);
  const Tensor upstream = filled({2}, 1);
  tape.backward({{sum, upstream}, {a, filled({1}, 1)}});
  EXPECT_EQ(read_values(context_, upstream), (Values{1, 1}));
  EXPECT_EQ(read(gx_), (Values{11, 1}));
  EXPECT_EQ(read(other), (Values{1, 1}));
}

TEST_F(TapeViewTest, ANodeCannotShareWithAView) {
  Tape tape(context_);
  const Variable h = scale(tape, tape.leaf(tensor({2}, {1, 2}), gx_, "x"), 1.0);
  const std::vector<Variable> parts = tape.split(h, 0, {1, 1});
  const Variable sum = add(tape, parts[0], parts[1]);
  tape.backward(sum);
  EXPECT_EQ(read(gx_), (Values{1, 1}));
}

// The two parts are inputs of one node that asks for both destinations before it writes.
TEST_F(TapeViewTest, OneNodeConsumesAllParts) {
  Tape tape(context_);
  const Variable h = scale(tape, tape.leaf(tensor({2}, {3, 5}), gx_, "x"), 1.0);
  const std::vector<Variable> parts = tape.split(h, 0, {1, 1});
  tape.backward(multiply(tape, parts[0], parts[1]));
  EXPECT_EQ(read(gx_), (Values{5, 3}));
}

TEST_F(TapeViewTest, ViewsOfALeafAccumulateOverTapes) {
  gx_.tensor = Tensor::empty(context_, {4}, DType::float64);
  poison(context_, gx_.tensor);
  for (int step = 1; step <= 2; ++step) {
    Tape tape(context_);
    const Variable x = tape.leaf(tensor({4}, {1, 2, 3, 4}), gx_, "x");
    const std::vector<Variable> parts = tape.split(x, 0, {1, 2, 1});
    const Variable a = scale(tape, parts[1], 10.0);
    const Variable b = scale(tape, tape.view(x, slice(0, 0, 2)), 1.0);
    tape.backward({{a, filled({2}, 1)}, {b, filled({2}, 1)}});
    EXPECT_EQ(read(gx_), (Values{1.0 * step, 11.0 * step, 10.0 * step, 0}));
  }
}

TEST_F(TapeViewTest, AViewReachesItsLeafAlsoWhenItOnlyAdds) {
  gx_.tensor = tensor({2}, {7, 7});
  gx_.written = true;
  Tape tape(context_);
  const Variable x = tape.leaf(tensor({2}, {1, 2}), gx_, "x");
  tape.backward(scale(tape, tape.view(x, slice(0, 1, 2)), 1.0));
  EXPECT_EQ(read(gx_), (Values{7, 8}));
}

TEST_F(TapeViewTest, SplitsThatDoNotCoverAreErrors) {
  Tape tape(context_);
  const Variable x = tape.leaf(tensor({4}, {1, 2, 3, 4}), gx_, "x");
  EXPECT_THROW(tape.split(x, 0, {1, 2}), Error);
  EXPECT_THROW(tape.split(x, 0, {3, 2}), Error);
  EXPECT_THROW(tape.split(x, 1, {4}), Error);
}

// So that what is contiguous in a view of the value is contiguous in its gradient.
TEST_F(TapeViewTest, AGradientLiesInMemoryAsItsValue) {
  const Tensor dense = tensor({2, 3}, {1, 2, 3, 4, 5, 6});
  const auto transposed = [](const Tensor& whole) { return whole.transpose(0, 1); };
  Tape tape(context_);
  const Variable x = tape.leaf(transposed(dense), gx_, "x");
  Shape strides;
  const Variable rows = tape.view(x, transposed), y = tape.output(rows.value, true);
  const auto call = [&, from = rows.slot, to = y.slot](Tape& running) {
    const GradientDestination destination = running.destination(from);
    strides = destination.tensor.strides();
    write_gradient(running, destination, read_values(context_, running.take_gradient(to)));
  };
  tape.record(CallNode{call}, {rows}, {y});
  tape.backward(y, dense);
  EXPECT_EQ(strides, dense.strides());
  EXPECT_EQ(gx_.tensor.shape(), (Shape{3, 2}));
  EXPECT_EQ(read(gx_), (Values{1, 4, 2, 5, 3, 6}));
}

TEST_F(TapeViewTest, ABoundGradientMustHaveTheViewsOfItsValue) {
  const Tensor value = tensor({2, 3}, {1, 2, 3, 4, 5, 6});
  gx_.tensor = Tensor::empty(context_, {3, 2}, DType::float64).transpose(0, 1);
  Tape tape(context_);
  EXPECT_EQ(testing::error_of([&] { tape.leaf(value, gx_, "x"); }),
            "leaf x of shape (2, 3) has strides (3, 1), its gradient (1, 2), expected 1 in dimension 1 of both");
  Gradient rows;
  rows.tensor = Tensor::empty(context_, {2, 4}, DType::float64).slice(1, 0, 3);
  const Variable x = tape.leaf(value, rows, "x");
  EXPECT_EQ(testing::error_of([&] { tape.view(x, [](const Tensor& whole) { return whole.reshape({6}); }); }),
            "the gradient of leaf x has strides (4, 1), unlike its value, which allows a view that it does not: cannot "
            "view (2, 3) with strides (4, 1) as (6) without a copy");
}

// Random programs of scales, adds, products, splits, views, residuals and nested tapes over vectors, against
// derivatives carried forward beside each value (a Jacobian per value).
class RandomProgramTest : public TapeViewTest, public ::testing::WithParamInterface<int> {};

TEST_P(RandomProgramTest, EqualsForwardMode) {
  constexpr int kInputs = 6;
  struct Value {
    Variable variable;
    std::vector<Values> jacobian;  // of each element: derivatives with respect to the inputs
  };
  Random random(static_cast<uint64_t>(GetParam()), RandomStream::test);
  Tape tape(context_);
  tape.allow_unused_leaves();
  gx_.tensor = Tensor::empty(context_, {kInputs}, DType::float64);
  poison(context_, gx_.tensor);
  const Tensor x_value = tensor({kInputs}, {0.5, -1, 2, 0.25, 1, -0.5});
  Value start{tape.leaf(x_value, gx_, "x"), {}};
  for (int i = 0; i < kInputs; ++i) {
    start.jacobian.emplace_back(kInputs, 0.0);
    start.jacobian.back()[static_cast<size_t>(i)] = 1.0;
  }
  std::vector<Value> values{start};
  const auto any = [&]() -> const Value& { return values[random.next_below(values.size())]; };
  const auto cut = [](const Value& from, int64_t begin, int64_t end) {
    return std::vector<Values>(from.jacobian.begin() + begin, from.jacobian.begin() + end);
  };
  const auto combine = [](const Values& a, double by_a, const Values& b, double by_b) {
    return zip(a, b, [=](double x, double y) { return by_a * x + by_b * y; });
  };
  for (int step = 0; step < 30; ++step) {
    const Value a = any();
    const int64_t size = a.variable.value.numel();
    // A partner of the same size, often a itself.
    Value b = a;
    for (int attempt = 0; attempt < 4; ++attempt) {
      const Value& candidate = any();
      if (candidate.variable.value.numel() == size) b = candidate;
    }
    switch (random.next_below(7)) {
      case 0: {
        Value result{scale(tape, a.variable, 0.5), a.jacobian};
        for (Values& row : result.jacobian) row = combine(row, 0.5, row, 0.0);
        values.push_back(result);
        break;
      }
      case 1: {
        Value result{add(tape, a.variable, b.variable), {}};
        for (size_t i = 0; i < a.jacobian.size(); ++i) {
          result.jacobian.push_back(combine(a.jacobian[i], 1, b.jacobian[i], 1));
        }
        values.push_back(result);
        break;
      }
      case 2: {
        const Values va = read_values(context_, a.variable.value), vb = read_values(context_, b.variable.value);
        Value result{multiply(tape, a.variable, b.variable), {}};
        for (size_t i = 0; i < a.jacobian.size(); ++i) {
          result.jacobian.push_back(combine(a.jacobian[i], vb[i], b.jacobian[i], va[i]));
        }
        values.push_back(result);
        break;
      }
      case 3: {
        const Residual both = residual(tape, a.variable, b.variable);
        Value y{both.y, {}}, r{both.r, {}};
        for (size_t i = 0; i < a.jacobian.size(); ++i) {
          r.jacobian.push_back(combine(a.jacobian[i], 1, b.jacobian[i], 1));
          y.jacobian.push_back(combine(a.jacobian[i], 2, b.jacobian[i], 2));
        }
        values.push_back(y);
        values.push_back(r);
        break;
      }
      case 4: {
        if (size < 2) break;
        const auto middle = static_cast<int64_t>(1 + random.next_below(static_cast<uint64_t>(size - 1)));
        const std::vector<Variable> parts = tape.split(a.variable, 0, {middle, size - middle});
        values.push_back({parts[0], cut(a, 0, middle)});
        values.push_back({parts[1], cut(a, middle, size)});
        break;
      }
      case 5: {  // a times a part of x, which a nested tape writes through a split or a view of its own
        const auto begin = static_cast<int64_t>(random.next_below(static_cast<uint64_t>(kInputs - size + 1)));
        const bool split = random.next_below(2) == 0;
        const auto times_part = [=, this](Tape& t, const Variable& in) {
          const Variable x = t.leaf(x_value, gx_, "x");
          return multiply(t, in,
                          split ? t.split(x, 0, {begin, size, kInputs - begin - size})[1]
                                : t.view(x, slice(0, begin, begin + size)));
        };
        const Values va = read_values(context_, a.variable.value), vx = read_values(context_, x_value);
        Value result{recompute(tape, a.variable, {start.variable}, times_part), {}};
        for (size_t i = 0; i < a.jacobian.size(); ++i) {
          const size_t j = static_cast<size_t>(begin) + i;
          result.jacobian.push_back(combine(a.jacobian[i], vx[j], start.jacobian[j], va[i]));
        }
        values.push_back(result);
        break;
      }
      default: {
        const auto begin = static_cast<int64_t>(random.next_below(static_cast<uint64_t>(size)));
        const auto end = begin + 1 + static_cast<int64_t>(random.next_below(static_cast<uint64_t>(size - begin)));
        values.push_back({tape.view(a.variable, slice(0, begin, end)), cut(a, begin, end)});
      }
    }
  }
  Values expected(kInputs, 0.0);
  std::vector<Tape::Root> roots;
  for (int root = 0; root < 4; ++root) {
    const Value& value = any();
    Values upstream(value.jacobian.size());
    for (double& u : upstream) u = random.next_normal();
    for (size_t i = 0; i < upstream.size(); ++i) expected = combine(expected, 1, value.jacobian[i], upstream[i]);
    roots.push_back({value.variable, tensor(value.variable.shape(), upstream)});
  }
  Values when_final;
  tape.on_gradient_final([&](Gradient& gradient, std::string_view) {
    EXPECT_TRUE(when_final.empty());
    when_final = read(gradient);
  });
  if (GetParam() % 2 == 0) {
    const std::vector<Tape::Root> kept = roots;
    tape.backward(roots);
  } else {
    tape.backward(std::move(roots));
  }
  const Values found = read(gx_);
  EXPECT_EQ(found, when_final);
  for (size_t i = 0; i < kInputs; ++i) {
    EXPECT_NEAR(found[i], expected[i], 1e-9 * std::max(1.0, std::abs(expected[i]))) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Programs, RandomProgramTest, ::testing::Range(0, 300));

}  // namespace
}  // namespace heddle
