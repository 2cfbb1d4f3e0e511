#include "core/autograd/gradcheck.h"

#include <gmock/gmock.h>
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/tensor/element_types.h"
#include "core/tensor/random.h"
#include "tests/autograd/test_nodes.h"
#include "tests/error_of.h"

namespace heddle {
namespace {

using ::testing::HasSubstr;

// y = f(x), elementwise, with whatever derivative a test claims.
struct Elementwise {
  std::function<double(double)> value;
  std::function<double(double x, size_t i)> derivative;
  GradientMode claimed = GradientMode::accumulate;  // overwrite: the node does not add where it should
};

Variable apply(Tape& tape, const Variable& x, const Elementwise& f) {
  Context& context = tape.context();
  const Values in = read_values(context, x.value);
  const Values out = zip(in, in, [&](double v, double) { return f.value(v); });
  const bool recorded = tape.records({&x});
  const Variable y = tape.output(make_tensor(context, x.shape(), out), recorded);
  if (!recorded) return y;
  const auto call = [=, from = x.slot, to = y.slot](Tape& running) {
    Values d = read_values(running.context(), running.take_gradient(to));
    for (size_t i = 0; i < d.size(); ++i) d[i] *= f.derivative(in[i], i);
    GradientDestination destination = running.destination(from);
    if (f.claimed == GradientMode::overwrite) destination.mode = GradientMode::overwrite;
    write_gradient(running, destination, d);
  };
  tape.record(CallNode{call}, {x}, {y});
  return y;
}

const Elementwise kSin{[](double x) { return std::sin(x); }, [](double x, size_t) { return std::cos(x); }};

class GradcheckTest : public ::testing::Test {
 protected:
  GradcheckInput input(const Values& values, bool differentiate = true) {
    return {"x", make_tensor(context_, {static_cast<int64_t>(values.size())}, values), differentiate};
  }
  GradcheckReport check_of(const Elementwise& f, const Values& values, const GradcheckOptions& options = {}) {
    return gradcheck(
        context_,
        [&](Tape& tape, const std::vector<Variable>& x) { return std::vector<Variable>{apply(tape, x[0], f)}; },
        {input(values)}, options);
  }

  Context context_;
};

TEST_F(GradcheckTest, RightGradientPasses) {
  const GradcheckReport report = check_of(kSin, {-1, 0, 0.5, 2, 100});
  EXPECT_TRUE(report.passed()) << report.to_string();
  ASSERT_EQ(report.inputs.size(), 1u);
  EXPECT_EQ(report.inputs[0].checked, 5);
  EXPECT_EQ(report.inputs[0].wrong, 0);
  EXPECT_EQ(report.inputs[0].undecided, 0);
  EXPECT_LT(report.inputs[0].error, 1e-6);
  EXPECT_NEAR(report.inputs[0].analytic, report.inputs[0].numeric, 1e-7);
}

TEST_F(GradcheckTest, WrongElementIsFound) {
  Elementwise wrong = kSin;
  wrong.derivative = [](double x, size_t i) { return std::cos(x) * (i == 2 ? 1.01 : 1.0); };
  const GradcheckReport report = check_of(wrong, {0.1, 0.2, 0.3, 0.4});
  EXPECT_FALSE(report.passed());
  EXPECT_EQ(report.inputs[0].wrong, 1);
  EXPECT_EQ(report.inputs[0].worst_element, 2);
  EXPECT_NEAR(report.inputs[0].analytic / report.inputs[0].numeric, 1.01, 1e-6);
  EXPECT_LT(report.inputs[0].error, 1e-8);
  EXPECT_TRUE(report.deterministic && report.accumulates && report.composes);
  EXPECT_THAT(report.to_string(), HasSubstr("x: WRONG, 1 wrong and 0 undecided of 4; worst at 2: analytic"));
}

TEST_F(GradcheckTest, MissingGradientOfOneElementIsFoundAsNaN) {
  const GradcheckReport report = gradcheck(
      context_,
      [](Tape& tape, const std::vector<Variable>& x) {
        const bool recorded = tape.records({&x[0]});
        const Variable y = tape.output(clone(tape.context(), x[0].value), recorded);
        if (recorded) {
          const auto call = [from = x[0].slot, to = y.slot](Tape& running) {
            const Values d = read_values(running.context(), running.take_gradient(to));
            write_values(running.context(), running.destination(from).tensor.slice(0, 0, 1), {d[0]});  // not d[1]
          };
          tape.record(CallNode{call}, {x[0]}, {y});
        }
        return std::vector<Variable>{y};
      },
      {input({1, 2})});
  EXPECT_FALSE(report.passed());
  EXPECT_EQ(report.inputs[0].worst_element, 1);
  EXPECT_TRUE(std::isnan(report.inputs[0].analytic));
}

// Where the function is flat a gradient of 0 would be right, but none was written.
TEST_F(GradcheckTest, NaNIsWrongWhereTheDerivativeIsZero) {
  const Elementwise flat{[](double) { return 2.0; }, [](double, size_t i) { return i == 1 ? std::nan("") : 0.0; }};
  const GradcheckReport report = check_of(flat, {0.1, 0.2, 0.3});
  EXPECT_EQ(report.inputs[0].wrong, 1) << report.to_string();
  EXPECT_EQ(report.inputs[0].worst_element, 1);
}

// The square root of a negative number has no derivative, and NaN is all that its gradient can be.
TEST_F(GradcheckTest, NaNIsUndecidedWhereTheFunctionIsNaN) {
  const Elementwise root{[](double x) { return std::sqrt(x); }, [](double x, size_t) { return 0.5 / std::sqrt(x); }};
  const GradcheckReport report = check_of(root, {0.5, -1.0, 2.0});
  EXPECT_EQ(report.verdict(), Verdict::undecided) << report.to_string();
  EXPECT_EQ(report.inputs[0].worst_element, 1);
}

TEST_F(GradcheckTest, EachDerivativeIsTold) {
  for (const int projections : {0, 3}) {
    std::vector<int64_t> told;
    const int64_t all = projections > 0 ? projections : 5;
    check_of(kSin, {-1, 0, 0.5, 2, 100}, {.projections = projections, .progress = [&](int64_t checked, int64_t of) {
                                            told.push_back(checked);
                                            EXPECT_EQ(of, all);
                                          }});
    ASSERT_EQ(static_cast<int64_t>(told.size()), all);
    for (int64_t i = 0; i < all; ++i) EXPECT_EQ(told[static_cast<size_t>(i)], i + 1);
  }
}

TEST_F(GradcheckTest, NansAreShownWithoutTheirSign) {
  const double nan = std::copysign(std::nan(""), -1.0);
  GradcheckReport report;
  report.inputs = {{.name = "x", .analytic = nan, .numeric = nan, .error = nan}};
  EXPECT_THAT(report.to_string(), HasSubstr("analytic nan, numeric nan +- nan\n"));
}

TEST_F(GradcheckTest, ProjectionsFindErrors) {
  Elementwise wrong = kSin;
  wrong.derivative = [](double x, size_t i) { return std::cos(x) + (i == 70 ? 1e-3 : 0.0); };
  Values values(100);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.01 * static_cast<double>(i);
  GradcheckOptions options;
  options.projections = 3;
  EXPECT_TRUE(check_of(kSin, values, options).passed());
  const GradcheckReport report = check_of(wrong, values, options);
  EXPECT_FALSE(report.passed());
  EXPECT_EQ(report.inputs[0].checked, 3);
  EXPECT_GT(report.inputs[0].wrong, 0);
}

// At a kink the derivative of either side is right, and whatever else is claimed is not called right.
TEST_F(GradcheckTest, AtAKinkTheDerivativeOfOneSideIsRight) {
  Elementwise relu{[](double x) { return std::max(x, 0.0); }, {}};
  for (const double at_zero : {0.0, 1.0}) {
    relu.derivative = [=](double x, size_t) { return x == 0.0 ? at_zero : x > 0.0 ? 1.0 : 0.0; };
    const GradcheckReport report = check_of(relu, {-1, 0, 1});
    EXPECT_TRUE(report.passed()) << report.to_string();
  }
  relu.derivative = [=](double x, size_t) { return x == 0.0 ? 0.5 : x > 0.0 ? 1.0 : 0.0; };
  const GradcheckReport report = check_of(relu, {-1, 0, 1});
  EXPECT_EQ(report.verdict(), Verdict::undecided) << report.to_string();
  EXPECT_EQ(report.inputs[0].worst_element, 1);
  EXPECT_THAT(report.to_string(), HasSubstr("x: undecided, 0 wrong and 1 undecided of 3"));
}

// Along a direction each number is at a kink of its own, and the slope need not be near that of either side of the
// line.
TEST_F(GradcheckTest, SeveralKinksAtThePointDoNotMakeADirectionWrong) {
  Values values(8);
  for (size_t i = 0; i < values.size(); i += 2) values[i + 1] = static_cast<double>(i) - 3.0;
  for (const double at_zero : {0.0, 1.0}) {
    const Elementwise relu{[](double x) { return std::max(x, 0.0); },
                           [=](double x, size_t) { return x == 0.0  ? at_zero
                                                          : x > 0.0 ? 1.0
                                                                    : 0.0; }};
    Elementwise wrong = relu;
    wrong.derivative = [](double x, size_t) { return x > 0.0 ? 1.1 : 0.0; };
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      const GradcheckReport report = check_of(relu, values, {.seed = seed, .projections = 3});
      EXPECT_EQ(report.inputs[0].wrong, 0) << seed << "\n" << report.to_string();
      EXPECT_FALSE(check_of(wrong, values, {.seed = seed, .projections = 3}).passed()) << seed;
    }
  }
}

// Kinks at all distances from the point, as those of a wide layer are.
TEST_F(GradcheckTest, KinksNearThePointDoNotMakeAGradientWrong) {
  for (const double distance : {1e-9, 1e-7, 1e-5, 1e-3, 0.1}) {
    const Elementwise bent{[=](double x) { return std::sin(x) + std::abs(x - 1.0 - distance); },
                           [=](double x, size_t) { return std::cos(x) + (x > 1.0 + distance ? 1.0 : -1.0); }};
    const GradcheckReport report = check_of(bent, {1.0});
    EXPECT_TRUE(report.passed()) << distance << "\n" << report.to_string();
    Elementwise wrong = bent;
    wrong.derivative = [=](double x, size_t i) { return 1.001 * bent.derivative(x, i); };
    EXPECT_FALSE(check_of(wrong, {1.0}).passed()) << distance;
  }
}

// The curvature is so strong that only the smallest steps see the slope.
TEST_F(GradcheckTest, FastOscillationsAreFollowed) {
  for (const double speed : {1e3, 1e5, 1e7}) {
    const Elementwise fast{[=](double x) { return std::sin(speed * x); },
                           [=](double x, size_t) { return speed * std::cos(speed * x); }};
    const GradcheckReport report = check_of(fast, {0.3, 1.1, 2.7});
    EXPECT_EQ(report.inputs[0].wrong, 0) << speed << "\n" << report.to_string();
    if (speed < 1e7) {
      EXPECT_TRUE(report.passed()) << speed << "\n" << report.to_string();
    }
    Elementwise wrong = fast;
    wrong.derivative = [=](double x, size_t) { return 1.001 * speed * std::cos(speed * x); };
    EXPECT_FALSE(check_of(wrong, {0.3, 1.1, 2.7}).passed()) << speed;
  }
}

TEST_F(GradcheckTest, AFunctionWithoutDigitsIsUndecided) {
  const Elementwise coarse{[](double x) { return std::round(4096.0 * std::sin(x)) / 4096.0; },
                           [](double x, size_t) { return std::cos(x); }};
  const GradcheckReport report = check_of(coarse, {0.1, 0.7, 2.0});
  EXPECT_EQ(report.verdict(), Verdict::undecided) << report.to_string();
  const Elementwise infinite{[](double x) { return 1.0 / (x - x); }, [](double, size_t) { return 1.0; }};
  EXPECT_EQ(check_of(infinite, {1.0}).verdict(), Verdict::undecided);
}

TEST_F(GradcheckTest, BackwardThatChangesFromRunToRunIsReported) {
  int runs = 0;
  Elementwise drifting = kSin;
  drifting.derivative = [&](double x, size_t i) {
    if (i == 0) ++runs;
    return std::cos(x) * (1.0 + 1e-14 * runs);
  };
  const GradcheckReport report = check_of(drifting, {0.1, 0.2});
  EXPECT_FALSE(report.deterministic);
  EXPECT_FALSE(report.passed());
  EXPECT_EQ(report.inputs[0].wrong, 0);
  EXPECT_THAT(report.to_string(), HasSubstr("different bits"));
}

TEST_F(GradcheckTest, NodeThatOverwritesWhereItShouldAddIsReported) {
  Elementwise forgetful = kSin;
  forgetful.claimed = GradientMode::overwrite;
  const GradcheckReport report = check_of(forgetful, {0.1, 0.2});
  EXPECT_FALSE(report.accumulates);
  EXPECT_FALSE(report.passed());
  EXPECT_EQ(report.inputs[0].wrong, 0);
  EXPECT_THAT(report.to_string(), HasSubstr("did not add"));
}

// A node whose gradient is wrong only where it could be shared: leaves never see it.
TEST_F(GradcheckTest, WrongGradientOfAnInputThatIsNoLeafIsReported) {
  const auto wrong = [](Tape& tape, const std::vector<Variable>& x) {
    const bool recorded = tape.records({&x[0]});
    const Variable y = tape.output(clone(tape.context(), x[0].value), recorded);
    if (recorded) {
      const auto call = [from = x[0].slot, to = y.slot](Tape& running) {
        Values d = read_values(running.context(), running.take_gradient(to));
        if (running.can_share_gradient(from)) d[0] += 1.0;
        write_gradient(running, running.destination(from), d);
      };
      tape.record(CallNode{call}, {x[0]}, {y});
    }
    return std::vector<Variable>{y};
  };
  const GradcheckReport report = gradcheck(context_, wrong, {input({1, 2})});
  EXPECT_FALSE(report.composes);
  EXPECT_FALSE(report.passed());
  EXPECT_THAT(report.to_string(), HasSubstr("instead of leaves"));
}

// Two steps see a slope to 2e-5 of the largest: to that an element of 1e-4 could be anything.
TEST_F(GradcheckTest, ElementsThatAreSmallBesideOthersAreHeldToTheirOwnDigits) {
  const Values values = {0.3, -1.2, 0.8, 0.5, -0.4, 1.7};
  constexpr size_t kSmall = 4;
  for (const double small : {1e-2, 1e-4, 1e-6}) {
    for (const double claimed : {1.0, 0.0, 2.0, -1.0}) {
      const auto function = [&](Tape& tape, const std::vector<Variable>& in) {
        const Tensor factors = make_tensor(tape.context(), in[0].shape(), {1, 1, 1, 1, small, 1});
        Elementwise sine = kSin;
        sine.derivative = [&](double x, size_t i) { return std::cos(x) * (i == kSmall ? claimed : 1.0); };
        return std::vector<Variable>{multiply(tape, apply(tape, in[0], sine), tape.constant(factors))};
      };
      const GradcheckReport report = gradcheck(context_, function, {input(values)});
      EXPECT_EQ(report.verdict(), claimed == 1.0 ? Verdict::ok : Verdict::wrong) << small << " " << claimed << "\n"
                                                                                 << report.to_string();
      EXPECT_EQ(report.inputs[0].wrong, claimed == 1.0 ? 0 : 1);
    }
  }
}

TEST_F(GradcheckTest, WrongGradientsBesideALargeConstantAreFound) {
  for (const double factor : {1.0, 1.01}) {
    const Elementwise f{[](double x) { return 1e9 + std::sin(x); },
                        [=](double x, size_t) { return factor * std::cos(x); }};
    EXPECT_EQ(check_of(f, {0.1, 0.7, 2.0, -0.3}).passed(), factor == 1.0);
  }
}

// y = 2 x, whose gradient does not depend on x, so that nothing else shows what its node writes over.
GradcheckReport check_of_twice(Context& context, const GradcheckInput& x,
                               const std::function<void(Tape& running, Slot from, const Tensor& d_y)>& backward) {
  const auto twice = [&](Tape& tape, const std::vector<Variable>& in) {
    const bool recorded = tape.records({&in[0]});
    const Values values = read_values(tape.context(), in[0].value);
    const Values doubled = zip(values, values, [](double a, double b) { return a + b; });
    const Variable y = tape.output(make_tensor(tape.context(), in[0].shape(), doubled), recorded);
    const auto call = [&, from = in[0].slot, to = y.slot](Tape& running) {
      const Tensor d_y = running.take_gradient(to);
      const Values d = read_values(running.context(), d_y);
      backward(running, from, d_y);
      write_gradient(running, running.destination(from), zip(d, d, [](double a, double b) { return a + b; }));
    };
    if (recorded) tape.record(CallNode{call}, {in[0]}, {y});
    return std::vector<Variable>{y};
  };
  return gradcheck(context, twice, {x});
}

TEST_F(GradcheckTest, AnUpstreamGradientThatIsWrittenOverIsReported) {
  for (const bool only_where_it_could_be_shared : {false, true}) {
    const GradcheckReport report =
        check_of_twice(context_, input({1, 2}), [&](Tape& running, Slot from, const Tensor& d_y) {
          if (!only_where_it_could_be_shared || running.can_share_gradient(from)) fill_zero(running.context(), d_y);
        });
    EXPECT_FALSE(report.keeps_upstream);
    EXPECT_TRUE(report.keeps_inputs);
    EXPECT_EQ(report.verdict(), Verdict::wrong);
    EXPECT_EQ(report.faults(), "upstream gradients that the caller still holds were written over\n");
  }
  const GradcheckReport right = check_of_twice(context_, input({1, 2}), [](Tape& running, Slot, const Tensor& d_y) {
    if (d_y.is_unique()) fill_zero(running.context(), d_y);
  });
  EXPECT_TRUE(right.passed()) << right.to_string();
}

TEST_F(GradcheckTest, AnInputThatIsWrittenOverIsReportedAndRestored) {
  const GradcheckInput x = input({1, 2});
  const GradcheckReport report = check_of_twice(context_, x, [&](Tape& running, Slot, const Tensor&) {
    write_values(running.context(), x.value, {7, 8});
  });
  EXPECT_FALSE(report.keeps_inputs);
  EXPECT_TRUE(report.keeps_upstream);
  EXPECT_EQ(report.verdict(), Verdict::wrong);
  EXPECT_EQ(report.faults(), "inputs were written over\n");
  EXPECT_EQ(read_values(context_, x.value), (Values{1, 2}));
}

// Where nothing is recorded an operator could take the memory of its input, which no backward pass would miss.
TEST_F(GradcheckTest, AnInputThatIsWrittenOverWhereNothingIsRecordedIsReportedAndRestored) {
  const GradcheckInput x = input({1, 2}), constant = input({1, 2}, false);
  for (const size_t written : {0, 1}) {
    const auto function = [&](Tape& tape, const std::vector<Variable>& in) {
      const Variable y = apply(tape, in[0], kSin);
      if (tape.mode() != Tape::Mode::record) write_values(tape.context(), in[written].value, {7, 8});
      return std::vector<Variable>{y};
    };
    const GradcheckReport report = gradcheck(context_, function, {x, constant});
    EXPECT_EQ(report.faults(), "inputs were written over\n");
    EXPECT_EQ(report.verdict(), Verdict::wrong);
    for (const GradcheckInput& one : {x, constant}) EXPECT_EQ(read_values(context_, one.value), (Values{1, 2}));
  }
}

TEST_F(GradcheckTest, NothingToCheckIsAnError) {
  const auto function = [](Tape&, const std::vector<Variable>& in) { return in; };
  EXPECT_EQ(testing::error_of([&] { gradcheck(context_, function, {}); }),
            "[gradcheck] none of the 0 inputs is differentiated, expected at least one");
  EXPECT_EQ(testing::error_of([&] {
              gradcheck(context_, function, {input({1, 2}, false)});
            }),
            "[gradcheck] none of the 1 inputs is differentiated, expected at least one");
}

TEST_F(GradcheckTest, SeveralInputsAndOutputsSomeOfThemNotDifferentiated) {
  GradcheckInput indices{"indices", Tensor::zeros(context_, {2}, DType::int32), false};
  GradcheckInput a = input({1, 2}), b = input({3, 4}), c = input({5, 6}, false);
  b.name = "b";
  const GradcheckReport report =
      gradcheck(context_,
                [](Tape& tape, const std::vector<Variable>& in) {
                  EXPECT_EQ(in.size(), 4u);
                  const Residual both = residual(tape, multiply(tape, in[1], in[2]), in[1]);
                  return std::vector<Variable>{both.y, both.r, multiply(tape, in[2], in[3]), in[3]};
                },
                {indices, a, b, c});
  EXPECT_TRUE(report.passed()) << report.to_string();
  ASSERT_EQ(report.inputs.size(), 2u);
  EXPECT_EQ(report.inputs[0].name, "x");
  EXPECT_EQ(report.inputs[1].name, "b");
}

TEST_F(GradcheckTest, TheMatcherShowsTheReport) {
  const GradcheckFunction right = [](Tape& tape, const std::vector<Variable>& in) {
    return std::vector<Variable>{apply(tape, in[0], kSin)};
  };
  const std::vector<GradcheckInput> inputs = {input({0.1, 0.2})};
  EXPECT_GRADIENTS_MATCH(context_, right, inputs);
  const auto expect_wrong = [] {
    Context context;
    Elementwise wrong = kSin;
    wrong.derivative = [](double x, size_t) { return -std::cos(x); };
    const GradcheckFunction function = [&](Tape& tape, const std::vector<Variable>& in) {
      return std::vector<Variable>{apply(tape, in[0], wrong)};
    };
    const std::vector<GradcheckInput> angle = {{"angle", make_tensor(context, {1}, {0.1}), true}};
    EXPECT_GRADIENTS_MATCH(context, function, angle) << "of a sine";
  };
  EXPECT_NONFATAL_FAILURE(expect_wrong(), "angle: WRONG, 1 wrong and 0 undecided of 1");
}

TEST_F(GradcheckTest, InputsAreLeftAsTheyWere) {
  const GradcheckInput x = input({1, 2, 3});
  const auto function = [](Tape& tape, const std::vector<Variable>& in) {
    return std::vector<Variable>{apply(tape, in[0], kSin)};
  };
  gradcheck(context_, function, {x});
  EXPECT_EQ(read_values(context_, x.value), (Values{1, 2, 3}));
}

TEST_F(GradcheckTest, InputsOfOtherDtypesAreRefused) {
  const GradcheckInput x{"x", Tensor::zeros(context_, {1}, DType::float32)};
  const auto function = [](Tape&, const std::vector<Variable>& in) { return in; };
  try {
    gradcheck(context_, function, {x});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[gradcheck] input x is float32, expected float64");
  }
}

// Where a function is stored in fewer digits than float64 its differences do not change at all at small steps.
TEST_F(GradcheckTest, RightGradientsOfFunctionsStoredInFewDigitsAreNotCalledWrong) {
  const std::vector<std::function<double(double)>> storages = {
      [](double y) { return static_cast<double>(static_cast<float>(y)); },
      [](double y) { return std::round(y * 1e9) / 1e9; },
      [](double y) { return static_cast<double>(static_cast<bfloat16>(static_cast<float>(y))); },
  };
  for (const auto& storage : storages) {
    const Elementwise right{[&](double x) { return storage(std::sin(x)); },
                            [](double x, size_t) { return std::cos(x); }};
    for (uint64_t seed = 0; seed < 30; ++seed) {
      Random random(seed, RandomStream::test);
      for (const int projections : {0, 2}) {
        for (const size_t count : {1, 4}) {
          Values values(count);
          for (double& value : values) value = random.next_normal();
          const GradcheckReport report = check_of(right, values, {.projections = projections});
          EXPECT_NE(report.verdict(), Verdict::wrong) << seed << "\n" << report.to_string();
        }
      }
    }
  }
}

TEST_F(GradcheckTest, WrongGradientsOfAFunctionStoredInFloat32AreFound) {
  const Elementwise wrong{[](double x) { return static_cast<double>(static_cast<float>(std::sin(x))); },
                          [](double x, size_t) { return 1.05 * std::cos(x); }};
  for (const int projections : {0, 2}) {
    const GradcheckReport report = check_of(wrong, {-0.3, 0.9, 1.1, 0.2}, {.projections = projections});
    EXPECT_EQ(report.verdict(), Verdict::wrong) << report.to_string();
  }
}

// What fast functions and kinks change by over a distance is not taken for rounding.
TEST_F(GradcheckTest, WrongGradientsOfFastFunctionsAndBesideKinksAreFound) {
  const Elementwise fast{[](double x) { return std::sin(1000.0 * x) / 1000.0; },
                         [](double x, size_t) { return std::cos(1000.0 * x); }};
  const Elementwise relu{[](double x) { return std::max(x, 0.0); },
                         [](double x, size_t) { return x > 0.0 ? 1.0 : 0.0; }};
  for (const Elementwise& right : {fast, relu}) {
    EXPECT_TRUE(check_of(right, {0.01, -0.7, 0.01, -1.0}).passed());
    for (const double factor : {0.0, 1.01, 2.0}) {
      Elementwise wrong = right;
      wrong.derivative = [&, factor](double x, size_t i) { return factor * right.derivative(x, i); };
      const GradcheckReport report = check_of(wrong, {0.01, -0.7, 0.01, -1.0});
      EXPECT_EQ(report.verdict(), Verdict::wrong) << factor << ": " << report.to_string();
    }
  }
}

// The function is 0 there, too, and its typical slope is not seen at the point itself.
TEST_F(GradcheckTest, AGradientOfZeroIsRightAtAMinimumOfZero) {
  const Elementwise square{[](double x) { return x * x; }, [](double x, size_t) { return 2.0 * x; }};
  const GradcheckReport report = check_of(square, {0, 0, 0});
  EXPECT_TRUE(report.passed()) << report.to_string();
  Elementwise wrong = square;
  wrong.derivative = [](double, size_t) { return 0.01; };
  EXPECT_EQ(check_of(wrong, {0, 0, 0}).verdict(), Verdict::wrong);
}

TEST_F(GradcheckTest, GradientsThatNoSumCanHoldAreNotCalledWrong) {
  const Elementwise large{[](double x) { return 1e308 * x; }, [](double, size_t) { return 1e308; }};
  const GradcheckReport report = check_of(large, {0.1, 0.2});
  EXPECT_TRUE(report.accumulates);
  EXPECT_NE(report.verdict(), Verdict::wrong) << report.to_string();
}

TEST_F(GradcheckTest, InputsThatShareNumbersAreMovedOneByOne) {
  const auto product = [](Tape& tape, const std::vector<Variable>& in) {
    return std::vector<Variable>{multiply(tape, in[0], in[1])};
  };
  const Tensor x = make_tensor(context_, {5}, {1, 2, 3, 4, 5});
  const GradcheckReport same = gradcheck(context_, product, {{"a", x}, {"b", x}});
  EXPECT_TRUE(same.passed()) << same.to_string();
  const GradcheckReport shifted = gradcheck(context_, product, {{"a", x.slice(0, 0, 4)}, {"b", x.slice(0, 1, 5)}});
  EXPECT_TRUE(shifted.passed()) << shifted.to_string();
}

TEST_F(GradcheckTest, InputsAreLeftAsTheyWereByAFunctionThatThrows) {
  const GradcheckInput x = input({1, 2, 3});
  for (const int last : {1, 6, 9, 20}) {
    int calls = 0;
    const auto function = [&](Tape& tape, const std::vector<Variable>& in) {
      if (++calls == last) fail("no more");
      return std::vector<Variable>{apply(tape, in[0], kSin)};
    };
    EXPECT_THROW(gradcheck(context_, function, {x}), Error);
    EXPECT_EQ(read_values(context_, x.value), (Values{1, 2, 3})) << last;
  }
}

TEST_F(GradcheckTest, AnInputMayLieTransposedInMemory) {
  const Tensor x = make_tensor(context_, {2, 3}, {1, 2, 3, 4, 5, 6}).transpose(0, 1);
  std::vector<Shape> strides;
  const auto function = [&](Tape& tape, const std::vector<Variable>& in) {
    strides.push_back(in[0].value.strides());
    return std::vector<Variable>{apply(tape, in[0], kSin)};
  };
  const GradcheckReport report = gradcheck(context_, function, {{"x", x}});
  EXPECT_TRUE(report.passed()) << report.to_string();
  for (const Shape& shape : strides) EXPECT_EQ(shape, x.strides());
}

}  // namespace
}  // namespace heddle
