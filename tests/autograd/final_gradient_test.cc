// The hook that is called when the gradient of a leaf is final.
#include <gtest/gtest.h>

#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "tests/autograd/test_nodes.h"

namespace heddle {
namespace {

using Events = std::vector<std::string>;

class FinalGradientTest : public ::testing::Test {
 protected:
  // A leaf {1, 2} that bears this name.
  Variable leaf(Tape& tape, const std::string& name) {
    return tape.leaf(make_tensor(context_, {2}, {1, 2}), gradients_[name], name);
  }
  // The identity, whose node writes down that it ran.
  Variable watched(Tape& tape, const Variable& x, const std::string& name) {
    const Variable y = tape.output(clone(context_, x.value), true);
    const auto call = [this, x = x.slot, y = y.slot, name](Tape& running) {
      const Tensor d_y = running.take_gradient(y);
      write_gradient(running, running.destination(x), read_values(context_, d_y));
      events_.push_back("node " + name);
    };
    tape.record(CallNode{call}, {x}, {y});
    return y;
  }
  // Writes down the name of each final gradient and its first element.
  void watch(Tape& tape) {
    tape.on_gradient_final([this](Gradient& gradient, std::string_view name) {
      EXPECT_EQ(&gradient, &gradients_[std::string(name)]);
      EXPECT_TRUE(gradient.written);
      values_[std::string(name)] = read_values(context_, gradient.tensor);
      events_.push_back(std::string(name));
    });
  }
  Tape::Root root(const Variable& y) {
    return {y, make_tensor(context_, y.shape(), Values(static_cast<size_t>(y.value.numel()), 1.0))};
  }
  // What the hook saw is what the gradients are in the end.
  void expect_final() {
    for (const auto& [name, values] : values_) {
      EXPECT_EQ(values, read_values(context_, gradients_[name].tensor)) << name;
    }
  }

  Context context_;
  std::map<std::string, Gradient> gradients_;
  std::map<std::string, Values> values_;
  Events events_;
};

TEST_F(FinalGradientTest, IsCalledWhileTheRestOfBackwardIsStillToCome) {
  Tape tape(context_);
  watch(tape);
  Variable h = watched(tape, leaf(tape, "x"), "0");
  for (const std::string layer : {"1", "2", "3"}) {
    h = watched(tape, multiply(tape, h, leaf(tape, "w" + layer)), layer);
  }
  tape.backward({root(h)});
  EXPECT_EQ(events_, (Events{"node 3", "w3", "node 2", "w2", "node 1", "w1", "node 0", "x"}));
  expect_final();
}

TEST_F(FinalGradientTest, ASharedLeafIsFinalAfterTheNodeThatWasRecordedFirst) {
  Tape tape(context_);
  watch(tape);
  Variable h = watched(tape, leaf(tape, "x"), "0");
  for (const std::string layer : {"1", "2", "3"}) h = watched(tape, multiply(tape, h, leaf(tape, "w")), layer);
  tape.backward({root(h)});
  EXPECT_EQ(events_, (Events{"node 3", "node 2", "node 1", "w", "node 0", "x"}));
  expect_final();
}

TEST_F(FinalGradientTest, OneValueInSeveralInputsOfANodeIsFinalOnce) {
  Tape tape(context_);
  watch(tape);
  const Variable x = leaf(tape, "x");
  tape.backward({root(multiply(tape, x, x))});
  EXPECT_EQ(events_, (Events{"x"}));
  expect_final();
}

// The first node of w is one whose output is not used; another one has written w.
TEST_F(FinalGradientTest, ANodeThatIsSkippedCountsAsRun) {
  Tape tape(context_);
  watch(tape);
  const Variable w = leaf(tape, "w");
  const Variable x = watched(tape, leaf(tape, "x"), "first");
  watched(tape, w, "unused");
  tape.backward({root(multiply(tape, x, w))});
  EXPECT_EQ(events_, (Events{"w", "node first", "x"}));
  expect_final();
}

TEST_F(FinalGradientTest, LeavesThatNothingReachedAreNotCalledFinal) {
  {
    Tape earlier(context_);
    earlier.backward({root(leaf(earlier, "unused")), root(leaf(earlier, "alone"))});
  }
  Tape tape(context_);
  watch(tape);
  tape.allow_unused_leaves();
  leaf(tape, "alone");
  watched(tape, leaf(tape, "unused"), "unused");
  tape.backward({root(watched(tape, leaf(tape, "x"), "x"))});
  EXPECT_EQ(events_, (Events{"node x", "x"}));
}

TEST_F(FinalGradientTest, AnEarlierTapeDoesNotReachALeafOfThisOne) {
  {
    Tape earlier(context_);
    earlier.backward({root(leaf(earlier, "w"))});
  }
  Tape tape(context_);
  leaf(tape, "w");
  EXPECT_THROW(tape.backward({root(watched(tape, leaf(tape, "x"), "x"))}), Error);
}

TEST_F(FinalGradientTest, LeavesThatAreRootsAreWrittenBeforeAllNodes) {
  Tape tape(context_);
  watch(tape);
  const Variable alone = leaf(tape, "alone"), used = leaf(tape, "used");
  const Variable y = watched(tape, used, "1");
  tape.backward({root(alone), root(used), root(y)});
  EXPECT_EQ(events_, (Events{"alone", "node 1", "used"}));
  EXPECT_EQ(values_["used"], (Values{2, 2}));
  expect_final();
}

TEST_F(FinalGradientTest, ViewsAreWritesToTheirLeaf) {
  Tape tape(context_);
  watch(tape);
  const Variable w = leaf(tape, "w");
  const Variable first = watched(tape, leaf(tape, "x"), "0");
  const auto tail = [](const Tensor& whole) { return whole.slice(0, 1, 2); };
  const Variable a = watched(tape, tape.view(w, tail), "view");
  const Variable b = watched(tape, w, "whole");
  const Variable c = watched(tape,
                             tape.view(tape.view(w, tail),
                                       [](const Tensor& t) {
                                         return t.reshape({1, 1});
                                       }),
                             "view of view");
  tape.backward({root(first), root(a), root(b), root(c)});
  EXPECT_EQ(events_, (Events{"node view of view", "node whole", "node view", "w", "node 0", "x"}));
  EXPECT_EQ(values_["w"], (Values{1, 3}));
  expect_final();
}

// Only one part is ever written: the other one is zero when the hook sees it.
TEST_F(FinalGradientTest, PartsOfASplitAreWholeWhenTheyAreFinal) {
  gradients_["w"].tensor = Tensor::empty(context_, {2}, DType::float64);
  poison(context_, gradients_["w"].tensor);
  Tape tape(context_);
  watch(tape);
  const std::vector<Variable> parts = tape.split(leaf(tape, "w"), 0, {1, 1});
  const Variable x = watched(tape, leaf(tape, "x"), "0");
  const Variable y = watched(tape, parts[1], "part");
  tape.backward({root(x), root(y)});
  EXPECT_EQ(events_, (Events{"node part", "w", "node 0", "x"}));
  EXPECT_EQ(values_["w"], (Values{0, 1}));
  expect_final();
}

TEST_F(FinalGradientTest, MicroBatchesAccumulateAndOnlyTheTapeWithTheHookCallsIt) {
  for (int batch = 1; batch <= 3; ++batch) {
    Tape tape(context_);
    if (batch == 3) watch(tape);
    tape.backward({root(multiply(tape, leaf(tape, "x"), leaf(tape, "w")))});
    EXPECT_EQ(events_, batch == 3 ? (Events{"x", "w"}) : Events{});
  }
  EXPECT_EQ(values_["w"], (Values{3, 6}));
  expect_final();
}

TEST_F(FinalGradientTest, ReplacedLeavesAreTheOtherLeaf) {
  Tape tape(context_);
  watch(tape);
  tape.replace_leaf(gradients_["w"], scale(tape, leaf(tape, "values"), 3.0));
  tape.backward({root(scale(tape, leaf(tape, "w"), 2.0))});
  EXPECT_EQ(events_, (Events{"values"}));
  EXPECT_EQ(values_["values"], (Values{6, 6}));
}

// w is written by two nodes that run a tape inside, and by one of the outer tape between them.
TEST_F(FinalGradientTest, NestedTapesWriteBeforeTheirNodeHasRun) {
  Tape tape(context_);
  watch(tape);
  const auto nested = [&](const Variable& x, const std::string& name) {
    const Variable w = leaf(tape, "w");
    const Variable y = tape.output(clone(context_, x.value), true);
    const auto call = [this, x, y = y.slot, name](Tape& running) {
      Tape inner(context_);
      Gradient d_x;
      const Variable product = multiply(inner, inner.leaf(x.value, d_x, "x"), leaf(inner, "w"));
      inner.backward(product, running.take_gradient(y));
      write_gradient(running, running.destination(x), read_values(context_, d_x.tensor));
      events_.push_back("node " + name);
    };
    tape.record(CallNode{call}, {x, w}, {y});
    return y;
  };
  Variable h = nested(watched(tape, leaf(tape, "x"), "0"), "1");
  h = nested(watched(tape, multiply(tape, h, leaf(tape, "w")), "2"), "3");
  tape.backward({root(h)});
  EXPECT_EQ(events_, (Events{"node 3", "node 2", "node 1", "w", "node 0", "x"}));
  EXPECT_EQ(values_["w"], (Values{3, 16})) << "d_w of node 3, of the product and of node 1: {1, 4} + {1, 4} + {1, 8}";
  expect_final();
}

TEST_F(FinalGradientTest, TheHookRunsWhenTheNodeIsGone) {
  Tape tape(context_);
  const auto allocated = [&] { return context_.allocator().stats().allocated.current; };
  Variable y;
  size_t kept = 0;
  {
    const Variable x = leaf(tape, "x");
    y = tape.output(clone(context_, x.value), true);
    const Tensor saved = Tensor::empty(context_, {1 << 16}, DType::float64);
    const auto call = [saved, x = x.slot, y = y.slot](Tape& running) {
      (void)running.take_gradient(y);
      write_gradient(running, running.destination(x), {1, 1});
    };
    tape.record(CallNode{call}, {x}, {y});
    kept = static_cast<size_t>(saved.numel()) * sizeof(double);
  }
  const size_t before = allocated();
  size_t in_hook = 0;
  tape.on_gradient_final([&](Gradient&, std::string_view) { in_hook = allocated(); });
  tape.backward({root(y)});
  EXPECT_LT(in_hook, before - kept + 2048);
}

TEST_F(FinalGradientTest, AHookThatThrowsEndsTheBackwardPass) {
  Tape tape(context_);
  tape.on_gradient_final([](Gradient&, std::string_view) { fail("no network"); });
  const Variable x = watched(tape, leaf(tape, "x"), "0");
  EXPECT_THROW(tape.backward({root(multiply(tape, x, leaf(tape, "w")))}), Error);
  EXPECT_EQ(events_, Events{});
  EXPECT_FALSE(gradients_["w"].written);
}

}  // namespace
}  // namespace heddle
