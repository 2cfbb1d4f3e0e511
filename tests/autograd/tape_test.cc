#include "core/autograd/tape.h"

#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/autograd/test_nodes.h"
#include "tests/error_of.h"

namespace heddle {
namespace {

using ::testing::HasSubstr;

class TapeTest : public ::testing::Test {
 protected:
  Variable leaf(Tape& tape, const Values& values, Gradient& gradient, std::string_view name = "x") {
    return tape.leaf(make_tensor(context_, {static_cast<int64_t>(values.size())}, values), gradient, name);
  }
  Values read(const Gradient& gradient) { return read_values(context_, gradient.tensor); }
  Tensor ones(const Variable& of) {
    return make_tensor(context_, of.shape(), Values(static_cast<size_t>(of.value.numel()), 1.0));
  }

  Context context_;
  Gradient gx_, gy_;
};

TEST_F(TapeTest, ChainsAndScalesTheUpstreamGradient) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1, 2, 3}, gx_);
  const Variable y = scale(tape, scale(tape, x, 3.0), 2.0);
  tape.backward(y, make_tensor(context_, {3}, {1, 10, 100}));
  EXPECT_EQ(read_values(context_, y.value), (Values{6, 12, 18}));
  EXPECT_EQ(read(gx_), (Values{6, 60, 600}));
  EXPECT_TRUE(gx_.written);
}

// Every operator forward, then every node backward, with what each has made.
TEST_F(TapeTest, AWatchSeesWhatEachOperatorMakes) {
  std::vector<std::string> seen;
  Tape tape(context_);
  tape.watch([&](const Tape::Made& made) {
    std::string text = fmt::format("{}{} in '{}' of [{}]:", made.is_gradient ? "d " : "", made.op, made.scope,
                                   fmt::join(made.leaves, " "));
    for (const Tensor& numbers : made.numbers) text += fmt::format(" {}", read_values(context_, numbers));
    seen.push_back(text);
  });
  Variable sum;
  {
    const MemoryScope scope(context_, "outer");
    const Variable x = leaf(tape, {1, 2}, gx_, "x"), y = leaf(tape, {10, 20}, gy_, "y");
    const MemoryScope inner(context_, "inner");
    sum = add(tape, scale(tape, x, 3.0), y);
    scale(tape, tape.constant(x.value), 5.0);  // is not recorded
  }
  tape.backward(scale(tape, sum, 2.0), make_tensor(context_, {2}, {1, 1}));
  EXPECT_THAT(seen, ::testing::ElementsAre(
                        "scale in 'outer.inner' of [x]: [3, 6]", "add in 'outer.inner' of [y]: [13, 26]",
                        "scale in '' of []: [26, 52]", "d scale in '' of []: [2, 2]",
                        "d add in 'outer.inner' of [y]: [2, 2] [2, 2]", "d scale in 'outer.inner' of [x]: [6, 6]"));
}

// It has an output and no node; the next operator did not make it.
TEST_F(TapeTest, AWatchSeesNothingOfAnOperatorThatThrew) {
  std::vector<Values> seen;
  Tape tape(context_);
  tape.watch([&](const Tape::Made& made) {
    for (const Tensor& numbers : made.numbers) seen.push_back(read_values(context_, numbers));
  });
  const Variable x = leaf(tape, {1, 2}, gx_);
  tape.output(make_tensor(context_, {1}, {77}), true);
  scale(tape, x, 3.0);
  EXPECT_EQ(seen, (std::vector<Values>{{3, 6}}));
}

TEST_F(TapeTest, AWatchMayEndABackwardPass) {
  Tape tape(context_);
  const Variable y = scale(tape, scale(tape, leaf(tape, {5}, gx_), 4.0), 2.0);
  tape.watch([](const Tape::Made&) { throw std::string("enough"); });
  EXPECT_THROW(tape.backward(y), std::string);
  EXPECT_FALSE(gx_.written);
}

TEST_F(TapeTest, RootOfOneElementStartsFromOne) {
  Tape tape(context_);
  tape.backward(scale(tape, leaf(tape, {5}, gx_), 4.0));
  EXPECT_EQ(read(gx_), (Values{4}));
}

TEST_F(TapeTest, AReplacedLeafIsAnotherValue) {
  Tape tape(context_);
  tape.replace_leaf(gx_, scale(tape, leaf(tape, {1, 2}, gy_), 3.0));
  const Variable y = scale(tape, leaf(tape, {0, 0}, gx_), 2.0);
  tape.backward(y, ones(y));
  EXPECT_EQ(read_values(context_, y.value), (Values{6, 12}));
  EXPECT_EQ(read(gy_), (Values{6, 6}));
  EXPECT_FALSE(gx_.written);
}

TEST_F(TapeTest, FanOutAddsUp) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1, 2}, gx_);
  const Variable h = scale(tape, x, 2.0);
  const Variable sum = add(tape, scale(tape, h, 3.0), add(tape, scale(tape, h, 5.0), h));
  tape.backward(sum, ones(sum));
  EXPECT_EQ(read(gx_), (Values{18, 18}));
}

TEST_F(TapeTest, FirstWriteOverwritesPoisonedMemory) {
  gx_.tensor = Tensor::empty(context_, {2}, DType::float64);
  poison(context_, gx_.tensor);
  Tape tape(context_);
  const Variable x = leaf(tape, {1, 2}, gx_);
  const Variable y = add(tape, scale(tape, x, 2.0), scale(tape, x, 3.0));
  tape.backward(y, ones(y));
  EXPECT_EQ(read(gx_), (Values{5, 5}));
}

TEST_F(TapeTest, LeafGradientsAccumulateOverTapesUntilTheyAreCleared) {
  for (int step = 1; step <= 3; ++step) {
    Tape tape(context_);
    const Variable y = scale(tape, leaf(tape, {1, 2}, gx_), 2.0);
    tape.backward(y, ones(y));
    EXPECT_EQ(read(gx_), Values(2, 2.0 * step));
  }
  gx_.written = false;
  Tape tape(context_);
  const Variable y = scale(tape, leaf(tape, {1, 2}, gx_), 7.0);
  tape.backward(y, ones(y));
  EXPECT_EQ(read(gx_), (Values{7, 7}));
}

TEST_F(TapeTest, GradientsClearedBetweenForwardAndBackwardAreOverwritten) {
  gx_.tensor = make_tensor(context_, {1}, {100});
  gx_.written = true;
  Tape tape(context_);
  const Variable y = scale(tape, leaf(tape, {1}, gx_), 2.0);
  gx_.written = false;
  tape.backward(y);
  EXPECT_EQ(read(gx_), (Values{2}));
}

TEST_F(TapeTest, LeavesWriteIntoTheFlatBufferTheyAreBoundTo) {
  const Tensor flat = make_tensor(context_, {5}, {9, 9, 9, 9, 9});
  gx_.tensor = flat.slice(0, 0, 2);
  gy_.tensor = flat.slice(0, 3, 5);
  Tape tape(context_);
  const Variable product = multiply(tape, leaf(tape, {1, 2}, gx_), leaf(tape, {3, 4}, gy_, "y"));
  tape.backward(product, ones(product));
  EXPECT_EQ(read_values(context_, flat), (Values{3, 4, 9, 1, 2}));
}

TEST_F(TapeTest, LeafGradientHasTheDtypeItIsBoundTo) {
  gx_.tensor = Tensor::empty(context_, {2}, DType::float32);
  Tape tape(context_);
  const Variable x = tape.leaf(make_tensor(context_, {2}, {1, 2}, DType::bfloat16), gx_, "x");
  const Variable y = scale(tape, x, 2.0);
  tape.backward(y, make_tensor(context_, {2}, {1, 1}, DType::bfloat16));
  EXPECT_EQ(gx_.tensor.dtype(), DType::float32);
  EXPECT_EQ(read(gx_), (Values{2, 2}));
}

TEST_F(TapeTest, SameLeafTwiceIsOneSlot) {
  Tape tape(context_);
  const Tensor value = make_tensor(context_, {2}, {3, 4});
  const Variable a = tape.leaf(value, gx_, "x"), b = tape.leaf(value, gx_, "x");
  EXPECT_EQ(a.slot.id, b.slot.id);
  const Variable y = multiply(tape, a, b);
  tape.backward(y, ones(y));
  EXPECT_EQ(read(gx_), (Values{6, 8}));
}

TEST_F(TapeTest, LeafAndItsGradientMustAgreeInShape) {
  gx_.tensor = Tensor::empty(context_, {3}, DType::float64);
  Tape tape(context_);
  EXPECT_EQ(testing::error_of([&] {
              leaf(tape, {1, 2}, gx_, "weight");
            }),
            "leaf weight has shape (2), its gradient (3)");
  Gradient row;
  row.tensor = Tensor::empty(context_, {1, 2}, DType::float64);
  EXPECT_EQ(testing::error_of([&] {
              leaf(tape, {1, 2}, row, "weight");
            }),
            "leaf weight has shape (2), its gradient (1, 2)");
}

TEST_F(TapeTest, LeafAndItsGradientMustAgreeInDtype) {
  Tape tape(context_);
  const auto refusal = [&](DType value, DType gradient) {
    gx_.tensor = Tensor::empty(context_, {1}, gradient);
    return testing::error_of([&] { tape.leaf(make_tensor(context_, {1}, {1}, value), gx_, "x"); });
  };
  EXPECT_EQ(refusal(DType::float64, DType::float32), "leaf x is float64, its gradient float32, expected float64");
  EXPECT_EQ(refusal(DType::float32, DType::float64), "leaf x is float32, its gradient float64, expected float32");
  EXPECT_EQ(refusal(DType::bfloat16, DType::float16),
            "leaf x is bfloat16, its gradient float16, expected bfloat16 or float32");
  EXPECT_EQ(refusal(DType::float32, DType::int32), "leaf x is float32, its gradient int32, expected float32");
}

TEST_F(TapeTest, OneGradientIsThatOfOneValue) {
  Tape tape(context_);
  leaf(tape, {1, 2}, gx_, "a");
  EXPECT_EQ(testing::error_of([&] {
              leaf(tape, {1, 2, 3}, gx_, "b");
            }),
            "leaf b is float64 (3), its gradient is that of leaf a, float64 (2)");
  EXPECT_EQ(testing::error_of([&] {
              tape.leaf(make_tensor(context_, {2}, {1, 2}, DType::float32), gx_, "b");
            }),
            "leaf b is float32 (2), its gradient is that of leaf a, float64 (2)");
}

TEST_F(TapeTest, AValueOfAnotherDeviceIsRefused) {
  Context meta(Device{DeviceType::meta});
  const Tensor far = Tensor::empty(meta, {2}, DType::float64);
  Tape tape(context_);
  EXPECT_EQ(testing::error_of([&] { tape.leaf(far, gx_, "x"); }), "x is on device meta, the tape on cpu");
  EXPECT_EQ(testing::error_of([&] { tape.constant(far); }), "a value is on device meta, the tape on cpu");
  Tape counting(meta);
  EXPECT_EQ(testing::error_of([&] { leaf(counting, {1, 2}, gx_); }), "no error");

  const Variable x = leaf(tape, {1, 2}, gx_), y = scale(tape, x, 2.0);
  EXPECT_EQ(testing::error_of([&] {
              multiply(tape, x, {far, {}});
            }),
            "an input of shape (2) is on device meta, the tape on cpu");
  const Variable elsewhere{far, {}};
  EXPECT_EQ(testing::error_of([&] {
              tape.records("multiply", {{"a", x}, {"b", elsewhere}});
            }),
            "[multiply] b is on device meta, the tape on cpu");
  EXPECT_EQ(testing::error_of([&] { tape.backward(y, far); }),
            "the upstream gradient is on device meta, the tape on cpu");
  gy_.tensor = far;
  EXPECT_EQ(testing::error_of([&] {
              leaf(tape, {1, 2}, gy_, "y");
            }),
            "the gradient of leaf y is on device meta, the tape on cpu");
}

TEST_F(TapeTest, ALeafHasAValue) {
  for (const auto mode : {Tape::Mode::record, Tape::Mode::inference}) {
    Tape tape(context_, mode);
    EXPECT_EQ(testing::error_of([&] { tape.leaf({}, gx_, "bias"); }), "leaf bias has no value");
  }
}

// Also of one that is gone, whose place in memory and whose ids the next tape may have.
TEST_F(TapeTest, AValueOfAnotherTapeIsRefused) {
  Variable other;
  {
    Tape before(context_);
    other = scale(before, leaf(before, {1, 2}, gy_, "y"), 2.0);
  }
  Tape tape(context_);
  const Variable x = scale(tape, leaf(tape, {3, 4}, gx_), 1.0);
  ASSERT_EQ(x.slot.id, other.slot.id);
  EXPECT_EQ(testing::error_of([&] { multiply(tape, x, other); }),
            "multiply was given a value of another tape: what is computed on a tape can be used on that one alone");
  const std::string refusal = "a value of another tape: what is computed on a tape can be used on that one alone";
  EXPECT_EQ(testing::error_of([&] { tape.view(other, [](const Tensor& whole) { return whole; }); }), refusal);
  EXPECT_EQ(testing::error_of([&] { tape.split(other, 0, {1, 1}); }), refusal);
  EXPECT_EQ(testing::error_of([&] { tape.backward(other, ones(other)); }), refusal);
  Tape inference(context_, Tape::Mode::inference);
  EXPECT_EQ(read_values(context_, scale(inference, other, 3.0).value), (Values{6, 12})) << "it is but a number there";
}

TEST_F(TapeTest, ConstantsAndInferenceRecordNothing) {
  Tape tape(context_);
  EXPECT_FALSE(scale(tape, tape.constant(make_tensor(context_, {1}, {1})), 2.0).requires_grad());
  Tape inference(context_, Tape::Mode::inference);
  const Variable x = leaf(inference, {1, 2}, gx_);
  const std::vector<Variable> parts = inference.split(x, 0, {1, 1});
  const Variable y = scale(inference, parts[1], 2.0);
  EXPECT_FALSE(x.requires_grad());
  EXPECT_FALSE(y.requires_grad());
  EXPECT_EQ(read_values(context_, y.value), (Values{4}));
  EXPECT_THAT(testing::error_of([&] { inference.backward(y); }), HasSubstr("depends on no leaf"));
}

TEST_F(TapeTest, InferenceKeepsNoMemory) {
  Tape tape(context_, Tape::Mode::inference);
  Variable h = leaf(tape, {1, 2}, gx_);
  for (int i = 0; i < 4; ++i) h = multiply(tape, h, scale(tape, h, 2.0));
  EXPECT_EQ(context_.allocator().stats().allocated.current, 512u) << "the last value and nothing else";
  EXPECT_FALSE(gx_.tensor.defined());
}

TEST_F(TapeTest, OneConstantInputGetsNoGradient) {
  Tape tape(context_);
  const Variable y = multiply(tape, leaf(tape, {2}, gx_), tape.constant(make_tensor(context_, {1}, {5})));
  tape.backward(y);
  EXPECT_EQ(read(gx_), (Values{5}));
}

TEST_F(TapeTest, SecondBackwardIsAnError) {
  Tape tape(context_);
  const Variable y = scale(tape, leaf(tape, {1}, gx_), 2.0);
  tape.backward(y);
  EXPECT_THAT(testing::error_of([&] { tape.backward(y); }), HasSubstr("backward was called twice"));
  EXPECT_EQ(read(gx_), (Values{2}));
}

TEST_F(TapeTest, LeavesThatNothingReachedAreNamed) {
  Gradient gz;
  Tape tape(context_);
  const Variable x = leaf(tape, {1}, gx_, "used");
  const Variable unused = leaf(tape, {1}, gy_, "blocks.0.weight");
  scale(tape, leaf(tape, {1}, gz, "blocks.1.weight"), 2.0);
  EXPECT_EQ(testing::error_of([&] { tape.backward(scale(tape, x, 2.0)); }),
            "no gradient reached: blocks.0.weight, blocks.1.weight; the result does not depend on it");
  EXPECT_EQ(read(gx_), (Values{2})) << "the error comes after the others have their gradients";
}

TEST_F(TapeTest, UnusedLeavesMayBeAllowedAndStayAsTheyWere) {
  gy_.tensor = make_tensor(context_, {1}, {42});
  Tape tape(context_);
  tape.allow_unused_leaves();
  leaf(tape, {1}, gy_, "unused");
  tape.backward(scale(tape, leaf(tape, {1}, gx_), 2.0));
  EXPECT_FALSE(gy_.written);
  EXPECT_EQ(read(gy_), (Values{42}));
}

TEST_F(TapeTest, NodesThatGetNoGradientAreSkipped) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1}, gx_);
  bool ran = false;
  const Variable unused = tape.output(make_tensor(context_, {1}, {1}), true);
  const Variable y = scale(tape, x, 2.0);
  tape.record(CallNode{[&](Tape&) { ran = true; }}, {x}, {unused});
  tape.backward(y);
  EXPECT_FALSE(ran);
}

TEST_F(TapeTest, ANodeRunsWhenOneOfItsOutputsIsUsed) {
  for (const bool use_y : {true, false}) {
    Gradient gradient;
    Tape tape(context_);
    const Residual both = residual(tape, leaf(tape, {1}, gradient), tape.constant(make_tensor(context_, {1}, {1})));
    tape.backward(use_y ? both.y : both.r);
    EXPECT_EQ(read(gradient), (Values{use_y ? 2.0 : 1.0}));
  }
}

TEST_F(TapeTest, UpstreamIsChecked) {
  Tape tape(context_);
  const Variable y = scale(tape, leaf(tape, {1, 2}, gx_), 2.0);
  EXPECT_EQ(testing::error_of([&] { tape.backward(y); }),
            "backward from a value of shape (2) needs an upstream gradient");
  EXPECT_EQ(testing::error_of([&] {
              tape.backward(y, make_tensor(context_, {3}, {1, 2, 3}));
            }),
            "backward: upstream gradient float64 (3), expected float64 (2)");
  EXPECT_EQ(testing::error_of([&] {
              tape.backward(y, make_tensor(context_, {2}, {1, 2}, DType::float32));
            }),
            "backward: upstream gradient float32 (2), expected float64 (2)");
  tape.backward(y, ones(y));
  EXPECT_EQ(read(gx_), (Values{2, 2})) << "a refused call leaves the tape as it was";
}

TEST_F(TapeTest, ARefusedRootLeavesTheOthersUnwritten) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1}, gx_);
  const Variable y = scale(tape, x, 2.0);
  EXPECT_THROW(tape.backward({{y, {}}, {x, {}}, {y, make_tensor(context_, {2}, {1, 2})}}), Error);
  EXPECT_FALSE(gx_.written);
  tape.backward(y);
  EXPECT_EQ(read(gx_), (Values{2}));
}

TEST_F(TapeTest, RootsGivenTwiceAndRootsThatAreLeavesAddUp) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1}, gx_);
  const Variable y = scale(tape, x, 2.0);
  const Tensor upstream = make_tensor(context_, {1}, {10});
  tape.backward({{y, {}}, {y, upstream}, {x, upstream}});
  EXPECT_EQ(read_values(context_, upstream), (Values{10}));
  EXPECT_EQ(read(gx_), (Values{32}));
  Tape again(context_);
  again.backward(leaf(again, {1}, gx_));
  EXPECT_EQ(read(gx_), (Values{33}));
}

TEST_F(TapeTest, ARootMayBeAViewOrHaveAStridedUpstream) {
  Tape tape(context_);
  const Variable x = tape.leaf(make_tensor(context_, {2, 2}, {1, 2, 3, 4}), gx_, "x");
  const Variable y = scale(tape, x, 2.0);
  const Variable column = tape.view(y, [](const Tensor& whole) { return whole.slice(1, 1, 2); });
  const Tensor upstream = make_tensor(context_, {1, 2}, {10, 20}).transpose(0, 1);
  tape.backward({{column, upstream}, {y, make_tensor(context_, {2, 2}, {1, 2, 3, 4}).transpose(0, 1)}});
  EXPECT_EQ(read(gx_), (Values{2, 26, 4, 48}));
}

TEST_F(TapeTest, GradientsThatPassUnchangedAreSharedNotCopied) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1, 2}, gx_), y = leaf(tape, {3, 4}, gy_, "y");
  const Variable a = scale(tape, x, 2.0), b = scale(tape, y, 3.0);
  const Variable sum = add(tape, a, b);
  const Tensor upstream = ones(sum);
  context_.allocator().reset_peaks();
  tape.backward(sum, upstream);
  EXPECT_EQ(context_.allocator().stats().allocations, 2) << "the two leaf gradients and nothing else";
  EXPECT_EQ(read(gx_), (Values{2, 2}));
  EXPECT_EQ(read(gy_), (Values{3, 3}));
}

// h gets the shared gradient of `sum` first and a second one later: adding must not reach the other holder.
TEST_F(TapeTest, AddingToASharedGradientCopiesIt) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1, 2}, gx_), y = leaf(tape, {3, 4}, gy_, "y");
  const Variable h = scale(tape, x, 1.0), other = scale(tape, y, 1.0);
  const Variable extra = scale(tape, h, 10.0);
  const Variable sum = add(tape, h, other);
  const Tensor upstream = ones(sum);
  tape.backward({{sum, upstream}, {extra, ones(extra)}});
  EXPECT_EQ(read_values(context_, upstream), (Values{1, 1})) << "the caller's tensor";
  EXPECT_EQ(read(gx_), (Values{11, 11}));
  EXPECT_EQ(read(gy_), (Values{1, 1}));
}

TEST_F(TapeTest, OneValueInBothInputsOfANodeThatShares) {
  Tape tape(context_);
  const Variable h = scale(tape, leaf(tape, {1, 2}, gx_), 1.0);
  const Variable y = add(tape, h, h);
  tape.backward(y, ones(y));
  EXPECT_EQ(read(gx_), (Values{2, 2}));
}

// The node holds the first destination while it asks for the second, which must be the same memory.
TEST_F(TapeTest, OneValueInBothInputsOfANodeThatAsksBeforeItWrites) {
  Tape tape(context_);
  const Variable h = scale(tape, leaf(tape, {3, 5}, gx_), 1.0);
  const Variable y = multiply(tape, h, h);
  const Variable z = add(tape, y, scale(tape, h, 100.0));
  tape.backward(z, ones(z));
  EXPECT_EQ(read(gx_), (Values{106, 110}));
}

// A node may share the memory of a destination it has just written.
TEST_F(TapeTest, ADestinationMayBeSharedToo) {
  Tape tape(context_);
  const Variable a = scale(tape, leaf(tape, {1}, gx_), 1.0), b = scale(tape, leaf(tape, {1}, gy_, "y"), 1.0);
  const Variable extra = scale(tape, a, 10.0);
  const Variable y = tape.output(make_tensor(context_, {1}, {0}), true);
  const auto call = [&](Tape& running) {
    const GradientDestination d_a = running.destination(a.slot);
    write_gradient(running, d_a, read_values(context_, running.take_gradient(y.slot)));
    EXPECT_TRUE(running.share_gradient(b.slot, d_a.tensor));
  };
  tape.record(CallNode{call}, {a, b}, {y});
  tape.backward({{y, ones(y)}, {extra, ones(extra)}});
  EXPECT_EQ(read(gx_), (Values{11}));
  EXPECT_EQ(read(gy_), (Values{1}));
}

TEST_F(TapeTest, ShareGradientRefusesWhatDoesNotFit) {
  Tape tape(context_);
  const Variable x = tape.leaf(make_tensor(context_, {2, 2}, {1, 2, 3, 4}), gx_, "x");
  const Variable h = scale(tape, x, 1.0);
  EXPECT_FALSE(tape.can_share_gradient(x.slot)) << "a leaf has a place of its own";
  EXPECT_TRUE(tape.can_share_gradient(h.slot));
  EXPECT_FALSE(tape.can_share_gradient(Slot{}));
  EXPECT_TRUE(tape.share_gradient(Slot{}, {})) << "not wanted: done";
  EXPECT_THAT(testing::error_of([&] {
                (void)tape.share_gradient(h.slot, make_tensor(context_, {4}, {1, 2, 3, 4}));
              }),
              HasSubstr("share_gradient: gradient float64 (4)"));
  EXPECT_THAT(testing::error_of([&] {
                (void)tape.share_gradient(h.slot, make_tensor(context_, {2, 2}, {1, 2, 3, 4}, DType::float32));
              }),
              HasSubstr("float32"));
  EXPECT_THAT(testing::error_of([&] {
                (void)tape.share_gradient(h.slot, make_tensor(context_, {2, 2}, {1, 2, 3, 4}).transpose(0, 1));
              }),
              HasSubstr("of strides (1, 2)"));
}

// --- What nodes declare

class DeclaredInputsTest : public TapeTest {
 protected:
  // The error of a backward pass through a node that was recorded with `inputs` and does `work`.
  std::string error_of_node(Tape& tape, std::vector<Slot> inputs, const std::function<void(Tape&)>& work) {
    const Variable y = tape.output(make_tensor(context_, {1}, {0}), true);
    {
      const MemoryScope scope(context_, "block");
      tape.record(CallNode{work}, std::move(inputs), {y});
    }
    tape.allow_unused_leaves();
    return testing::error_of([&] { tape.backward(y); });
  }
};

TEST_F(DeclaredInputsTest, ALeafThatIsNoInputIsRefused) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1, 2}, gx_), y = leaf(tape, {3, 4}, gy_, "weight");
  EXPECT_EQ(
      error_of_node(tape, {x}, [&](Tape& running) { running.destination(y); }),
      "heddle::CallNode, recorded in block, asks for the gradient of leaf weight, which is not among the inputs it "
      "was recorded with");
  EXPECT_FALSE(gy_.tensor.defined());
}

TEST_F(DeclaredInputsTest, AValueThatIsNoInputIsRefused) {
  for (const bool share : {true, false}) {
    Tape tape(context_);
    const Variable x = leaf(tape, {1, 2}, gx_);
    const Variable h = scale(tape, x, 2.0);
    EXPECT_THAT(error_of_node(tape, {x},
                              [&](Tape& running) {
                                if (!share) running.destination(h);
                                if (share) (void)running.share_gradient(h, ones(h));
                              }),
                HasSubstr("asks for the gradient of a value float64 (2), which is not among the inputs"));
  }
}

TEST_F(DeclaredInputsTest, ViewsOfInputsAndTheirWholesAreInputs) {
  for (const bool ask_for_view : {true, false}) {
    Tape tape(context_);
    const Variable x = leaf(tape, {1, 2}, gx_);
    const Variable part = tape.split(tape.split(x, 0, {1, 1})[1], 0, {1})[0];
    const Variable input = ask_for_view ? x : part, asked = ask_for_view ? part : x;
    EXPECT_EQ(error_of_node(tape, {input}, [&](Tape& running) { running.destination(asked); }), "no error");
  }
}

TEST_F(DeclaredInputsTest, ValuesThatAreNotDifferentiatedAreSkipped) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1}, gx_);
  const Variable constant = tape.constant(make_tensor(context_, {1}, {1}));
  const auto work = [&](Tape& running) {
    EXPECT_FALSE(running.destination(constant));
    EXPECT_FALSE(running.can_share_gradient(Slot{}));
    write_gradient(running, running.destination(x), {1});
  };
  EXPECT_EQ(error_of_node(tape, {constant, Variable{}, x, Slot{}}, work), "no error");
  EXPECT_EQ(read(gx_), (Values{1}));
}

TEST_F(DeclaredInputsTest, NothingIsRecordedOnATapeThatHasRun) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1}, gx_);
  EXPECT_THAT(error_of_node(tape, {x}, [&](Tape& running) { scale(running, x, 2.0); }),
              HasSubstr("heddle::ScaleNode was recorded on a tape that has run backward"));
}

// --- In-place reuse: a node writes over the gradient of r when it alone holds it.

TEST_F(TapeTest, GradientThatOnlyTheNodeHoldsIsReused) {
  bool reused = false;
  Tape tape(context_);
  const Residual both = residual(tape, leaf(tape, {1, 2}, gx_), leaf(tape, {3, 4}, gy_, "y"), &reused);
  const Variable z = multiply(tape, both.y, both.r);
  tape.backward(z, ones(z));
  EXPECT_TRUE(reused);
  EXPECT_EQ(read(gx_), (Values{16, 24}));  // d/ds 2 s^2 = 4 s
  EXPECT_EQ(read(gy_), (Values{16, 24}));
}

TEST_F(TapeTest, UpstreamThatTheCallerKeepsIsNotWrittenOver) {
  bool reused = true;
  Tape tape(context_);
  const Residual both = residual(tape, leaf(tape, {1, 2}, gx_), leaf(tape, {3, 4}, gy_, "y"), &reused);
  const Tensor upstream = make_tensor(context_, {2}, {5, 6});
  tape.backward({{both.y, ones(both.y)}, {both.r, upstream}});
  EXPECT_FALSE(reused);
  EXPECT_EQ(read_values(context_, upstream), (Values{5, 6}));
  EXPECT_EQ(read(gx_), (Values{7, 8}));
}

TEST_F(TapeTest, UpstreamThatTheCallerGivesAwayMayBeWrittenOver) {
  bool reused = false;
  Tape tape(context_);
  const Residual both = residual(tape, leaf(tape, {1, 2}, gx_), leaf(tape, {3, 4}, gy_, "y"), &reused);
  tape.backward(both.r, make_tensor(context_, {2}, {5, 6}));
  EXPECT_TRUE(reused);
  EXPECT_EQ(read(gx_), (Values{5, 6}));
}

// A stack of residual blocks, as a transformer has it, with the residual stream used beside the blocks too.
// d_r of one block is shared with the block before: whoever writes over it too early spoils the sum.
TEST_F(TapeTest, ResidualStackWithSideUsesEqualsTheMatrixOfItsSums) {
  Tape tape(context_);
  const Variable x = leaf(tape, {1, -2}, gx_);
  Variable stream = scale(tape, x, 1.0), branch = scale(tape, x, 1.0);
  std::vector<Tape::Root> roots;
  double d_stream = 1, d_branch = 1;  // derivatives of stream and branch with respect to x, forward
  double expected = 0;
  for (int layer = 0; layer < 5; ++layer) {
    const Residual both = residual(tape, branch, stream);
    const double d_r = d_branch + d_stream;
    const Variable mixed = add(tape, both.y, both.r);  // shares one gradient with both outputs
    branch = scale(tape, mixed, 0.5);
    d_branch = 0.5 * (2 * d_r + d_r);
    stream = both.r;
    d_stream = d_r;
    if (layer % 2 == 0) {
      roots.push_back({stream, ones(stream)});
      expected += d_stream;
    }
  }
  roots.push_back({branch, ones(branch)});
  expected += d_branch;
  tape.backward(std::move(roots));
  EXPECT_DOUBLE_EQ(read(gx_)[0], expected);
  EXPECT_DOUBLE_EQ(read(gx_)[1], expected);
}

// --- Memory

TEST_F(TapeTest, NodesReleaseWhatTheySavedAsSoonAsTheyHaveRun) {
  constexpr size_t kUnit = 512;
  Context meta(Device{DeviceType::meta});
  const auto allocated = [&] { return meta.allocator().stats().allocated.current; };
  Gradient gradient;
  gradient.tensor = Tensor::empty(meta, {64}, DType::float64);
  Tape tape(meta);
  std::vector<size_t> seen;
  Variable h = tape.leaf(Tensor::empty(meta, {64}, DType::float64), gradient, "x");
  ASSERT_EQ(allocated(), 2 * kUnit);
  for (int i = 0; i < 4; ++i) {
    const Variable y = tape.output(Tensor::empty(meta, {64}, DType::float64), true);
    const auto call = [&, saved = h.value, x = h.slot, y = y.slot](Tape& running) {
      const Tensor d_y = running.take_gradient(y);
      running.destination(x);
      seen.push_back(allocated());
    };
    tape.record(CallNode{call}, {h}, {y});
    h = y;
  }
  ASSERT_EQ(allocated(), 6 * kUnit);
  tape.backward(h, Tensor::empty(meta, {64}, DType::float64));
  // Outside: the leaf's gradient and the last value. Node 4 runs with 4 saved values, d_y and d_x; each later one with
  // one saved value less; the last writes into the leaf's own gradient.
  EXPECT_EQ(seen, (std::vector<size_t>{8 * kUnit, 7 * kUnit, 6 * kUnit, 4 * kUnit}));
  EXPECT_EQ(allocated(), 2 * kUnit);
}

// A node need not take the gradients of all of its outputs.
TEST_F(TapeTest, GradientsOfOutputsAreReleasedWhenTheirNodeHasRun) {
  constexpr size_t kUnit = 512;
  Context meta(Device{DeviceType::meta});
  const auto allocated = [&] { return meta.allocator().stats().allocated.current; };
  const Tensor value = Tensor::empty(meta, {64}, DType::float64);
  Gradient gradient;
  gradient.tensor = Tensor::empty(meta, {64}, DType::float64);
  Tape tape(meta);
  const Variable x = tape.leaf(value, gradient, "x");
  const Variable h = tape.output(value, true), y = tape.output(value, true);
  size_t seen = 0;
  const auto first = [&, x = x.slot](Tape& running) { running.destination(x); };
  const auto second = [&, h = h.slot, y = y.slot](Tape& running) {
    running.take_gradient(y);
    running.destination(h);
  };
  const auto last = [&](Tape& running) {
    running.destination(x.slot);
    seen = allocated();
  };
  const Variable start = tape.output(value, true);
  tape.record(CallNode{last}, {x}, {start});
  tape.record(CallNode{first}, {x}, {h});
  tape.record(CallNode{second}, {h}, {y});
  std::vector<Tape::Root> roots;
  for (const Variable& root : {y, start}) roots.push_back({root, Tensor::empty(meta, {64}, DType::float64)});
  tape.backward(std::move(roots));
  EXPECT_EQ(seen, 3 * kUnit) << "the value, the gradient of the leaf and that of start";
}

TEST_F(TapeTest, GradientsCountForTheScopeTheirNodeWasRecordedIn) {
  Tape tape(context_);
  Variable y;
  {
    const MemoryScope scope(context_, "outer", MemoryCategory::activation);
    const Variable h = scale(tape, leaf(tape, {1}, gx_), 2.0);
    const MemoryScope inner(context_, "inner");
    y = scale(tape, h, 2.0);
  }
  tape.backward(y);
  const std::vector<ScopeBytes> scopes = context_.allocator().scopes();
  const auto of = [&](const std::string& name) {
    const auto found = std::find_if(scopes.begin(), scopes.end(), [&](const ScopeBytes& s) { return s.scope == name; });
    return found == scopes.end() ? ScopeBytes{} : *found;
  };
  const int gradient = static_cast<int>(MemoryCategory::gradient);
  EXPECT_EQ(of("outer").current[gradient], 512u) << "the leaf's gradient, written by the node in outer";
  EXPECT_EQ(of("outer.inner").allocated.peak, 1024u) << "y and the gradient of h, written by the node in outer.inner";
  EXPECT_EQ(context_.label().scope, 0u);
}

TEST_F(TapeTest, ANodeThatThrowsLeavesTheContextUsable) {
  Tape tape(context_);
  const Variable y = tape.output(make_tensor(context_, {1}, {0}), true);
  {
    const MemoryScope scope(context_, "layer");
    tape.record(CallNode{[](Tape&) { fail("boom"); }}, {}, {y});
  }
  EXPECT_EQ(testing::error_of([&] { tape.backward(y); }), "boom");
  EXPECT_EQ(context_.label().scope, 0u);
}

}  // namespace
}  // namespace heddle
