// A tape that runs inside a node's backward, as recomputation does, and writes to leaves that the outer tape writes
// too.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "tests/autograd/test_nodes.h"

namespace heddle {
namespace {

// What recompute() has to equal.
Variable plain(Tape& tape, const Variable& x, const std::vector<Slot>&, const TapeFunction& function) {
  return function(tape, x);
}

using Block = Variable (*)(Tape&, const Variable&, const std::vector<Slot>&, const TapeFunction&);

class NestedTapeTest : public ::testing::Test {
 protected:
  Tensor tensor(const Values& values) { return make_tensor(context_, {static_cast<int64_t>(values.size())}, values); }
  Values read(const Gradient& gradient) { return read_values(context_, gradient.tensor); }
  Variable w(Tape& tape) { return tape.leaf(w_, gw_, "w"); }

  struct Gradients {
    Values x, w;
  };
  // The gradients of x and w for a program of both that uses blocks; w has uninitialized memory, or `start`.
  using Program = std::function<std::vector<Tape::Root>(Tape&, const Variable& x, Block)>;
  Gradients gradients(const Program& program, Block block, const Values& start = {}) {
    gx_ = gw_ = Gradient{};
    gw_.tensor = Tensor::empty(context_, w_.shape(), DType::float64);
    if (start.empty()) {
      poison(context_, gw_.tensor);
    } else {
      write_values(context_, gw_.tensor, start);
      gw_.written = true;
    }
    Tape tape(context_);
    tape.backward(program(tape, tape.leaf(x_, gx_, "x"), block));
    EXPECT_TRUE(gw_.written);
    return {read(gx_), read(gw_)};
  }
  // The same numbers with nested tapes as without, from nothing and onto a gradient.
  void expect_same(const Program& program) {
    for (const Values& start : {Values{}, Values(static_cast<size_t>(w_.numel()), 1000.0)}) {
      const Gradients expected = gradients(program, plain, start);
      const Gradients nested = gradients(program, recompute, start);
      EXPECT_EQ(nested.x, expected.x);
      EXPECT_EQ(nested.w, expected.w);
    }
  }
  Tape::Root root(const Variable& y, double first = 1) {
    Values upstream(static_cast<size_t>(y.value.numel()));
    for (size_t i = 0; i < upstream.size(); ++i) upstream[i] = first + static_cast<double>(i);
    return {y, tensor(upstream)};
  }

  Context context_;
  Tensor x_ = tensor({1, 2, 3, 4});
  Tensor w_ = tensor({5, -1, 2, 3});
  Gradient gx_, gw_;
};

TEST_F(NestedTapeTest, TheOuterTapeWritesASharedLeafBeforeTheInnerOne) {
  expect_same([&](Tape& tape, const Variable& x, Block block) {
    const Variable h = block(tape, x, {w(tape)}, [&](Tape& t, const Variable& in) { return multiply(t, in, w(t)); });
    return std::vector{root(multiply(tape, h, w(tape)))};
  });
}

TEST_F(NestedTapeTest, TheOuterTapeWritesASharedLeafAfterTheInnerOne) {
  expect_same([&](Tape& tape, const Variable& x, Block block) {
    const Variable h = multiply(tape, x, w(tape));
    return std::vector{
        root(block(tape, h, {w(tape)}, [&](Tape& t, const Variable& in) { return multiply(t, in, w(t)); }))};
  });
}

TEST_F(NestedTapeTest, SeveralBlocksShareALeaf) {
  expect_same([&](Tape& tape, const Variable& x, Block block) {
    Variable h = x;
    for (int i = 0; i < 3; ++i) {
      h = block(tape, h, {w(tape)}, [&](Tape& t, const Variable& in) { return multiply(t, in, w(t)); });
      if (i == 1) h = multiply(tape, h, w(tape));
    }
    return std::vector{root(h)};
  });
}

TEST_F(NestedTapeTest, ANestedTapeInANestedTape) {
  expect_same([&](Tape& tape, const Variable& x, Block block) {
    const auto times_w = [&](Tape& t, const Variable& in) { return multiply(t, in, w(t)); };
    const auto both = [=, this](Tape& t, const Variable& in) {
      // Not the block of the forward pass, which runs on a tape that records nothing.
      if (!in.requires_grad()) return times_w(t, times_w(t, in));
      return times_w(t, block(t, in, {w(t)}, times_w));
    };
    return std::vector{root(block(tape, multiply(tape, x, w(tape)), {w(tape)}, both))};
  });
}

// The outer tape has written one half of w when the inner one writes all of w, a half or another division of it, and
// writes the other half, the same one or none afterwards.
TEST_F(NestedTapeTest, PartsOfASharedLeafAreWrittenByBothTapes) {
  const auto slice = [](int64_t begin, int64_t end) {
    return [=](const Tensor& whole) { return whole.slice(0, begin, end); };
  };
  const auto half = [&](Tape& t, size_t index) { return t.split(w(t), 0, {2, 2})[index]; };
  const std::vector<std::pair<const char*, TapeFunction>> functions = {
      {"all", [&](Tape& t, const Variable& in) { return multiply(t, in, t.view(scale(t, w(t), 2.0), slice(1, 3))); }},
      {"first half", [&](Tape& t, const Variable& in) { return multiply(t, in, half(t, 0)); }},
      {"second half", [&](Tape& t, const Variable& in) { return multiply(t, in, half(t, 1)); }},
      {"other parts",
       [&](Tape& t, const Variable& in) {
         return multiply(t, in, t.split(w(t), 0, {1, 2, 1})[1]);
       }},
      {"a view", [&](Tape& t, const Variable& in) { return multiply(t, in, t.view(w(t), slice(1, 3))); }},
      {"part of a part",
       [&](Tape& t, const Variable& in) {
         return multiply(t, t.split(in, 0, {1, 1})[0], t.split(half(t, 1), 0, {1, 1})[1]);
       }},
  };
  for (const auto& [what, function] : functions) {
    for (const size_t first : {0u, 1u}) {
      for (const size_t last : {0u, 1u, 2u}) {
        SCOPED_TRACE(fmt::format("{}, half {} before and {} after", what, first, last));
        expect_same([&, &inner = function](Tape& tape, const Variable& x, Block block) {
          const std::vector<Variable> halves = tape.split(w(tape), 0, {2, 2});
          Variable h = tape.split(x, 0, {2, 2})[0];
          if (last < 2) h = multiply(tape, h, halves[last]);
          h = block(tape, h, {w(tape)}, inner);
          return std::vector{root(multiply(tape, h, tape.view(halves[first], slice(0, h.value.numel()))))};
        });
      }
    }
  }
}

// The reverse: while the inner tape has written one half of w, one of its nodes makes the outer tape write to it.
TEST_F(NestedTapeTest, TheOuterTapeWritesWhileTheInnerOneHasPartsToWrite) {
  for (const bool all : {true, false}) {
    gw_ = Gradient{};
    gw_.tensor = Tensor::empty(context_, {4}, DType::float64);
    poison(context_, gw_.tensor);
    Tape outer(context_);
    const Variable outer_w = all ? w(outer) : outer.split(w(outer), 0, {1, 3})[0];
    const Variable y = outer.output(tensor({0}), true);
    const auto call = [&](Tape&) {
      Tape inner(context_);
      const std::vector<Variable> halves = inner.split(w(inner), 0, {2, 2});
      const Variable h = inner.output(tensor({0, 0}), true);
      const auto write_both = [&](Tape&) {
        write_gradient(inner, inner.destination(halves[0]), {10, 20});
        write_gradient(outer, outer.destination(outer_w), all ? Values{1, 2, 3, 4} : Values{1});
        write_gradient(inner, inner.destination(halves[1]), {100, 200});
      };
      inner.record(CallNode{write_both}, {halves[0], halves[1]}, {h});
      inner.backward({{h, tensor({1, 1})}});
    };
    outer.record(CallNode{call}, {outer_w}, {y});
    outer.backward(y);
    EXPECT_EQ(read(gw_), all ? (Values{11, 22, 103, 204}) : (Values{11, 20, 100, 200}));
  }
}

TEST_F(NestedTapeTest, ANestedTapeAloneReachesALeaf) {
  const Gradients found = gradients(
      [&](Tape& tape, const Variable& x, Block block) {
        return std::vector{
            root(block(tape, x, {w(tape)}, [&](Tape& t, const Variable& in) { return multiply(t, in, w(t)); }))};
      },
      recompute);
  EXPECT_EQ(found.w, (Values{1, 4, 9, 16}));
  EXPECT_EQ(found.x, (Values{5, -2, 6, 12}));
}

// Parts that only one of the tapes writes need no zeros of their own if the other parts are written as well.
TEST_F(NestedTapeTest, NoMemoryIsZeroedWhereBothTapesWriteAll) {
  struct CountingBackend : HostBackend {
    int64_t fills = 0;
    void fill_bytes(void* data, int byte, size_t bytes, StreamHandle stream) override {
      ++fills;
      HostBackend::fill_bytes(data, byte, bytes, stream);
    }
  };
  auto owned = std::make_unique<CountingBackend>();
  const CountingBackend& backend = *owned;
  Context context(std::move(owned));
  const Tensor x = make_tensor(context, {2}, {1, 2}), w = make_tensor(context, {2}, {3, 4});
  Gradient gx, gw;
  Tape tape(context);
  const auto halves_of_w = [&](Tape& t, const Variable& in) {
    const std::vector<Variable> parts = t.split(t.leaf(w, gw, "w"), 0, {1, 1});
    const std::vector<Variable> of_x = t.split(in, 0, {1, 1});
    return multiply(t, multiply(t, of_x[0], parts[0]), multiply(t, of_x[1], parts[1]));
  };
  const Variable h = multiply(tape, tape.leaf(x, gx, "x"), tape.leaf(w, gw, "w"));
  const Variable y = recompute(tape, h, {tape.leaf(w, gw, "w")}, halves_of_w);
  const int64_t before = backend.fills;
  tape.backward(y);
  EXPECT_EQ(backend.fills, before);
  EXPECT_EQ(read_values(context, gw.tensor), (Values{2 * 3 * 1 * 2 * 16, 2 * 4 * 1 * 2 * 9}));
}

// --- Exceptions

TEST_F(NestedTapeTest, AfterAnExceptionLeavesAreWrittenAsTheyWereBefore) {
  for (const bool before : {false, true}) {
    gw_ = Gradient{};
    gw_.tensor = tensor({1, 1, 1, 1});
    gw_.written = before;
    Tape tape(context_);
    const Variable x = tape.leaf(x_, gx_, "x");
    const std::vector<Variable> halves = tape.split(w(tape), 0, {2, 2});
    const Variable h = recompute(tape, tape.split(x, 0, {2, 2})[0], {w(tape)}, [&](Tape& t, const Variable& in) {
      if (!in.requires_grad()) return in;
      const std::vector<Variable> inner_halves = t.split(w(t), 0, {2, 2});
      const Variable failing = t.output(in.value, true);
      t.record(CallNode{[](Tape&) { fail("inner"); }}, {in}, {failing});
      return multiply(t, failing, inner_halves[1]);
    });
    EXPECT_THROW(tape.backward({root(multiply(tape, h, halves[0]))}), Error);
    EXPECT_EQ(gw_.written, before);

    // The failed tape still lives, but has nothing open: another one does not meet it.
    gw_.written = false;
    Tape next(context_);
    const Variable y = multiply(next, next.constant(tensor({3, 4})), next.split(w(next), 0, {2, 2})[1]);
    next.backward({{y, tensor({1, 1})}});
    EXPECT_EQ(read(gw_), (Values{0, 0, 3, 4}));
  }
}

TEST_F(NestedTapeTest, ATapeThatFailedLeavesNothingBehindWhenItIsGone) {
  {
    Tape tape(context_);
    const std::vector<Variable> halves = tape.split(w(tape), 0, {2, 2});
    const Variable failing = tape.output(tensor({1, 2}), true);
    tape.record(CallNode{[](Tape&) { fail("boom"); }}, {halves[1]}, {failing});
    EXPECT_THROW(tape.backward({root(multiply(tape, failing, halves[0]))}), Error);
  }
  EXPECT_FALSE(gw_.written);
  Tape next(context_);
  next.backward({root(multiply(next, next.constant(x_), w(next)))});
  EXPECT_EQ(read(gw_), (Values{1, 4, 9, 16}));
}

// A node may catch what the tape inside it throws. What the outer tape wrote, also to parts, stays.
TEST_F(NestedTapeTest, ANodeMayCatchTheExceptionOfItsTape) {
  for (const bool writes_later : {true, false}) {
    gw_ = Gradient{};
    gw_.tensor = Tensor::empty(context_, {4}, DType::float64);
    poison(context_, gw_.tensor);
    Tape tape(context_);
    const std::vector<Variable> halves = tape.split(w(tape), 0, {2, 2});
    const Variable h = tape.output(tensor({1, 2}), true);
    const auto call = [&](Tape& running) {
      Tape inner(context_);
      const Variable failing = inner.output(tensor({1, 2}), true);
      const auto fails = [&](Tape& t) {
        write_gradient(t, t.destination(w(t)), {0, 0, 0, 0});
        fail("inner");
      };
      inner.record(CallNode{fails}, {w(inner)}, {failing});
      EXPECT_THROW(inner.backward({{failing, tensor({1, 1})}}), Error);
      if (writes_later) write_gradient(running, running.destination(halves[1]), {7, 8});
    };
    tape.record(CallNode{call}, {halves[1]}, {h});
    tape.backward({{multiply(tape, h, halves[0]), tensor({1, 1})}});
    EXPECT_TRUE(gw_.written);
    EXPECT_EQ(read(gw_), writes_later ? (Values{1, 2, 7, 8}) : (Values{1, 2, 0, 0}));
  }
}

// --- What nodes declare

TEST_F(NestedTapeTest, ALeafThatANodeWritesWithoutSayingSoIsAnError) {
  Tape tape(context_);
  const Variable x = tape.leaf(x_, gx_, "x");
  const Variable h = multiply(tape, x, w(tape));
  const Variable before = recompute(tape, x, {}, [&](Tape& t, const Variable& in) { return multiply(t, in, w(t)); });
  // The node that declares w runs last, so it is not final before: nothing is wrong.
  tape.backward({root(h), root(before)});

  Tape wrong(context_);
  const Variable y = recompute(wrong, wrong.leaf(x_, gx_, "x"), {},
                               [&](Tape& t, const Variable& in) { return multiply(t, in, w(t)); });
  const Variable z = multiply(wrong, y, w(wrong));
  try {
    wrong.backward({root(z)});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(
        error.what(),
        "leaf w was written after its gradient was final: a node that runs a tape in its backward was recorded "
        "without it among its inputs");
  }
}

}  // namespace
}  // namespace heddle
