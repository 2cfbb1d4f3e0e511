// Gradients of low precision: right ones are never called wrong, also where next to nothing is left of them, and faults
// that only low precision has are found. HEDDLE_GRADCHECK_SEEDS in the environment is the number of random cases of
// each operator, 6 if it is not set.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "core/config/config_load.h"
#include "core/tensor/random.h"
#include "layers/registry.h"
#include "tests/tools/planted_faults.h"
#include "tools/check_gradients.h"
#include "tools/gradient_rounding.h"
#include "tools/own_case.h"

namespace heddle {
namespace {

using testing::Arriving;
using testing::Fault;
using testing::faults;

constexpr DType kLowDtypes[] = {DType::float32, DType::bfloat16, DType::float16};

// --- Right gradients ---

// Draws what a case is made of.
class Choices {
 public:
  Choices(const std::string& op, int64_t seed) : random_(static_cast<uint64_t>(seed), RandomStream::test) {
    for (const char letter : op) random_.next_below(1 + static_cast<unsigned char>(letter));
  }
  int64_t up_to(int64_t most) { return 1 + static_cast<int64_t>(random_.next_below(static_cast<uint64_t>(most))); }
  std::string one_of(const std::vector<std::string>& choices) { return choices[random_.next_below(choices.size())]; }

 private:
  Random random_;
};

using Shapes = std::vector<std::pair<std::string, Shape>>;

// Options and shapes whose last dimensions have one element or a few.
OperatorCase tiny_case(const std::string& op, int64_t seed) {
  Choices choices(op, seed);
  const int64_t rows = choices.up_to(6), dim = choices.up_to(3), length = choices.up_to(3), heads = choices.up_to(2);
  std::string options = "{}";
  Shapes shapes;
  if (op.ends_with("norm")) {
    const int64_t groups = op.starts_with("group") ? choices.up_to(4) : 1;
    options = fmt::format("{{groups: {}, eps: {}}}", groups, choices.one_of({"1.0e-5", "1.0e-3", "1.0e-8"}));
    shapes = {{"x", {rows, groups * dim}}};
    for (const char* other : {"residual", "gate"}) {
      if (choices.up_to(3) == 1) shapes.push_back({other, {rows, groups * dim}});
    }
    if (!op.ends_with("srms_norm") && choices.up_to(2) == 1) shapes.push_back({"weight", {groups * dim}});
  } else if (op == "softmax" || op == "activation" || op == "log_sigmoid") {
    if (op == "activation") options = "{act: " + choices.one_of({"silu", "gelu", "tanh", "elu1", "sigmoid"}) + "}";
    shapes = {{"x", {rows, dim}}};
  } else if (op == "guarded_divide") {
    options = "{eps: 0.5}";
    shapes = {{"x", {rows, dim}}, {"divisor", {rows, 1}}};
  } else if (op == "linear") {
    shapes = {{"x", {rows, dim}}, {"weight", {length, dim}}};
  } else if (op == "glu") {
    shapes = {{"x", {rows, dim}}, {"w12", {2 * length, dim}}, {"w3", {dim, length}}};
  } else if (op == "glu_product") {
    options = "{act: " + choices.one_of({"relu", "silu", "none"}) + "}";
    shapes = {{"a", {rows, dim}}, {"b", {rows, dim}}};
  } else if (op == "ffn") {
    options = "{act: " + choices.one_of({"relu", "silu", "gelu"}) + "}";
    shapes = {{"x", {rows, dim}}, {"w1", {length, dim}}, {"w2", {dim, length}}};
  } else if (op == "dropout") {
    options = "{p: 0.3, seed: " + std::to_string(seed) + "}";
    shapes = {{"x", {rows, dim}}};
  } else if (op == "embedding") {
    options = choices.one_of({"{}", "{padding_idx: 0}"});
    shapes = {{"tokens", {rows}}, {"weight", {1 + length, dim}}};
  } else if (op == "cross_entropy") {
    options = choices.one_of({"{}", "{z_loss: 0.1}", "{label_smoothing: 0.2, reduction: sum}", "{ignore_index: 0}"});
    shapes = {{"logits", {rows, dim}}, {"targets", {rows}}};
  } else if (op == "linear_cross_entropy") {
    options = choices.one_of({"{}", "{chunk: 2}", "{ignore_index: 0}"});
    shapes = {{"x", {rows, length}}, {"weight", {dim, length}}, {"targets", {rows}}};
  } else if (op == "lrpe_rotate" || op == "lrpe_cosine") {
    options = choices.one_of({"{}", "{act: silu}", "{act: softmax}", "{act: softmax, act_dim: sequence}"});
    shapes = {{"x", {1, rows, heads, 2 * dim}}, {"theta", {heads, op == "lrpe_rotate" ? dim : 2 * dim}}};
  } else {
    if (op == "linear_attention") options = choices.one_of({"{}", "{decay: none}", "{scale: 0.3}"});
    for (const char* input : {"q", "k", "v"}) shapes.push_back({input, {1, length, heads, dim}});
  }
  OperatorCase result = own_case(built_in_registry().find(op), options, shapes);
  result.name = fmt::format("{} {}", op, seed);
  for (CaseInput& input : result.inputs) {
    result.name += fmt::format(" {} {}", input.name, to_string(input.shape));
    if (input.name == "x" && choices.up_to(3) == 1) input.scale = std::pow(10.0, choices.up_to(3) - 2.0);
  }
  return result;
}

int64_t cases_of_each() {
  const char* text = std::getenv("HEDDLE_GRADCHECK_SEEDS");
  return text ? std::strtoll(text, nullptr, 10) : 6;
}

TEST(GradcheckPrecisionTest, RightGradientsOfTinyDimensionsAreNeverWrong) {
  Context context(Device{}, {.threads = 1});
  int64_t checked = 0, undecided = 0;
  for (const std::string op :
       {"layer_norm",  "group_norm",  "rms_norm",         "group_rms_norm",   "srms_norm",     "group_srms_norm",
        "softmax",     "activation",  "log_sigmoid",      "guarded_divide",   "linear",        "glu",
        "glu_product", "ffn",         "dropout",          "embedding",        "cross_entropy", "linear_cross_entropy",
        "lrpe_rotate", "lrpe_cosine", "linear_attention", "softmax_attention"}) {
    for (int64_t seed = 1; seed <= cases_of_each(); ++seed) {
      const OperatorCase one = tiny_case(op, seed);
      for (const DType dtype : kLowDtypes) {
        const GradcheckReport report = check_operator_gradients(context, built_in_registry().find(op), one, dtype);
        EXPECT_NE(report.verdict(), Verdict::wrong) << one.name << " " << one.options << " " << name(dtype) << "\n"
                                                    << report.to_string();
        undecided += report.verdict() == Verdict::undecided ? 1 : 0;
        ++checked;
      }
    }
  }
  EXPECT_LE(undecided, checked / 10);
}

// Where one number of a row is much larger than the others, the gradient is the difference of two numbers next to each
// other, and rounding errors of one direction cancel in them: what rounding does shows only at other numbers.
TEST(GradcheckPrecisionTest, SoftmaxOfOneLargeNumberIsNeverWrong) {
  Context context(Device{}, {.threads = 1});
  const Operator& softmax = built_in_registry().find("softmax");
  const auto verify = [&](const OperatorCase& one) {
    const GradcheckReport report = check_operator_gradients(context, softmax, one, DType::float32);
    EXPECT_NE(report.verdict(), Verdict::wrong) << one.name << "\n" << report.to_string();
  };
  verify(tiny_case("softmax", 268));
  OperatorCase one = own_case(softmax, "{}", {{"x", {1, 3}}});
  for (const double scale : {4.0, 10.0}) {
    for (int64_t seed = 1; seed <= 40 * cases_of_each(); ++seed) {
      one.name = fmt::format("softmax of scale {}, {}", scale, seed);
      one.inputs[0].scale = scale;
      verify(one);
    }
  }
}

// 1 - n^2 is what is left of these gradients, with n next to 1.
TEST(GradcheckPrecisionTest, GradientsOfNormsThatNearlyCancelAreRight) {
  Context context(Device{}, {.threads = 1});
  const std::vector<std::tuple<std::string, std::string, Shape>> cases = {{"srms_norm", "{}", {5, 1}},
                                                                          {"rms_norm", "{}", {3, 1}},
                                                                          {"layer_norm", "{}", {5, 2}},
                                                                          {"group_srms_norm", "{groups: 4}", {5, 4}},
                                                                          {"group_norm", "{groups: 4}", {5, 8}}};
  for (const auto& [name, options, shape] : cases) {
    const Operator& op = built_in_registry().find(name);
    const GradcheckReport report =
        check_operator_gradients(context, op, own_case(op, options, {{"x", shape}}), DType::float32);
    EXPECT_TRUE(report.passed()) << name << "\n" << report.to_string();
  }
}

// Exact gradients that the dtype stores as infinity, and what is infinite in spite of an exact one that it could hold.
TEST(GradcheckPrecisionTest, GradientsBeyondTheDtypeAreRightWhereTheyAreInfinite) {
  Context context(Device{}, {.threads = 1});
  const Operator& divide = built_in_registry().find("guarded_divide");
  const OperatorCase one = own_case(divide, "{eps: 1.0e-6}", {{"x", {1, 1, 4}}, {"divisor", {1, 1, 2}}});
  const GradcheckReport report = check_operator_gradients(context, divide, one, DType::float16);
  EXPECT_NE(report.verdict(), Verdict::wrong) << report.to_string();

  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const auto verdict = [](double found, double exact, DType dtype, double other = 1.0) {
    const GradientPair pair{{{found, other}}, {{exact, 1.0}}, {dtype}};
    RoundingSpread spread(pair, Measure::elements);
    const LowGradients low = [&](int) { return pair.low; };
    return compare_gradients({"x"}, pair, spread, dtype, 1e-2, low)[0].verdict();
  };
  EXPECT_EQ(verdict(kInfinity, 902343.0, DType::float16), Verdict::ok);
  EXPECT_EQ(verdict(-kInfinity, -902343.0, DType::float16), Verdict::ok);
  EXPECT_EQ(verdict(kInfinity, kInfinity, DType::float16), Verdict::ok);
  EXPECT_EQ(verdict(kInfinity, 65500.0, DType::float16), Verdict::ok);  // off by less than is allowed
  EXPECT_EQ(verdict(kInfinity, 60000.0, DType::float16), Verdict::wrong);
  EXPECT_EQ(verdict(-kInfinity, 902343.0, DType::float16), Verdict::wrong);
  EXPECT_EQ(verdict(65504.0, 902343.0, DType::float16), Verdict::wrong);
  EXPECT_EQ(verdict(std::nan(""), 902343.0, DType::float16), Verdict::wrong);
  EXPECT_EQ(verdict(kInfinity, 902343.0, DType::float32), Verdict::wrong);
  EXPECT_EQ(verdict(kInfinity, 902343.0, DType::bfloat16), Verdict::wrong);
  EXPECT_EQ(verdict(kInfinity, 902343.0, DType::float16, 1000.0), Verdict::wrong);  // 1 is not small beside infinity
  EXPECT_EQ(verdict(kInfinity, 1e39, DType::bfloat16), Verdict::ok);
  EXPECT_EQ(verdict(kInfinity, 1e39, DType::float32), Verdict::ok);
}

// What rounding makes NaN is no fault, and NaN where it makes none is one.
TEST(GradcheckPrecisionTest, NaNIsUndecidedWhereRoundingMakesIt) {
  const double nan = std::nan("");
  const auto verdict = [](double found, double exact, double rounded) {
    const GradientPair pair{{{found, 1.0}}, {{exact, 1.0}}, {DType::float16}};
    RoundingSpread spread(pair, Measure::norms);
    spread.add_between({{rounded, 1.0}}, pair.exact);
    const LowGradients low = [&](int) { return pair.low; };
    return compare_gradients({"x"}, pair, spread, DType::float16, 1e-2, low)[0].verdict();
  };
  EXPECT_EQ(verdict(nan, 2.0, nan), Verdict::undecided);
  EXPECT_EQ(verdict(3.0, 2.0, nan), Verdict::undecided);
  EXPECT_EQ(verdict(2.0, 2.0, nan), Verdict::ok);
  EXPECT_EQ(verdict(nan, 2.0, 2.001), Verdict::wrong);
  EXPECT_EQ(verdict(nan, nan, nan), Verdict::wrong);  // float64 has no gradient either: it was not written
}

// --- Wrong gradients ---

struct ImpreciseSubject {
  std::string op, options;
  Shapes inputs;  // the fault is in the gradient of x
};

const std::vector<ImpreciseSubject>& imprecise_subjects() {
  static const std::vector<ImpreciseSubject> all = {
      {"rms_norm",
       "{eps: 1.0e-5, gate: {act: silu, position: pre}}",
       {{"x", {6, 6}}, {"gate", {6, 6}}, {"weight", {6}}}},
      {"layer_norm", "{}", {{"x", {6, 6}}}},
      {"softmax", "{}", {{"x", {6, 6}}}},
      {"linear", "{}", {{"x", {6, 6}}, {"weight", {6, 6}}}},
      {"glu", "{act: relu}", {{"x", {6, 6}}, {"w12", {10, 6}}, {"w3", {6, 5}}}},
      {"lrpe_rotate", "{act: silu}", {{"x", {1, 6, 1, 6}}, {"theta", {1, 3}}}},
  };
  return all;
}

// The subject's operator with a fault in every gradient of x but that in float64.
class Planted {
 public:
  Planted(const ImpreciseSubject& subject, const Fault& fault) : op_(built_in_registry().find(subject.op)) {
    case_ = own_case(op_, subject.options, subject.inputs);
    right_ = &built_in_registry().find(subject.op);
    fault_ = &fault;
    op_.make = [](const ConfigNode& options) -> OperatorFunction {
      return [function = right_->make(options)](Tape& tape, const NamedVariables& inputs) {
        NamedVariables changed = inputs;
        Variable& x = changed["x"];
        if (x.value.dtype() != DType::float64) x = testing::with_fault(tape, x, *fault_);
        return function(tape, changed);
      };
    };
  }
  GradcheckReport check(Context& context, DType dtype) const {
    return check_operator_gradients(context, op_, case_, dtype);
  }

 private:
  static inline const Operator* right_ = nullptr;  // Operator::make has no state of its own
  static inline const Fault* fault_ = nullptr;
  Operator op_;
  OperatorCase case_;
};

Verdict verdict_of_x(const GradcheckReport& report) {
  for (const GradcheckInputReport& input : report.inputs) {
    if (input.name == "x") return input.verdict();
  }
  return Verdict::ok;
}

TEST(GradcheckPrecisionTest, FaultsOfFloat32AreFound) {
  Context context(Device{}, {.threads = 1});
  for (const ImpreciseSubject& subject : imprecise_subjects()) {
    const bool rows_have_mean_0 = subject.op == "layer_norm" || subject.op == "softmax";
    for (const auto& [name, fault] : faults()) {
      if (name == "only when it is added to another") continue;  // the gradients are written to nothing
      if (name == "the mean over a row is taken away" && rows_have_mean_0) continue;
      const GradcheckReport report = Planted(subject, fault).check(context, DType::float32);
      EXPECT_EQ(verdict_of_x(report), Verdict::wrong) << subject.op << ": " << name << "\n" << report.to_string();
    }
  }
}

TEST(GradcheckPrecisionTest, AGradientKeptInFewerDigitsIsNotRight) {
  Context context(Device{}, {.threads = 1});
  for (const ImpreciseSubject& subject : imprecise_subjects()) {
    for (const DType kept : {DType::bfloat16, DType::float16}) {
      const Fault fault = [kept](const Arriving& g) {
        for (double& d : g.d) d = round_to(kept, d);
      };
      const GradcheckReport report = Planted(subject, fault).check(context, DType::float32);
      EXPECT_NE(verdict_of_x(report), Verdict::ok) << subject.op << ": " << name(kept) << "\n" << report.to_string();
    }
  }
}

// NaN that is the same twice has the same bits.
TEST(GradcheckPrecisionTest, NaNIsNoOtherNumberThanItself) {
  Context context(Device{}, {.threads = 1});
  const Fault fault = [](const Arriving& g) { g.d[0] = std::nan(""); };
  for (const DType dtype : kLowDtypes) {
    const GradcheckReport report = Planted(imprecise_subjects()[3], fault).check(context, dtype);
    EXPECT_EQ(verdict_of_x(report), Verdict::wrong) << report.to_string();
    EXPECT_TRUE(report.deterministic) << report.to_string();
  }
}

TEST(GradcheckPrecisionTest, LargeFaultsOfEveryDtypeAreFound) {
  Context context(Device{}, {.threads = 1});
  for (const ImpreciseSubject& subject : imprecise_subjects()) {
    for (const auto& [name, fault] : faults()) {
      constexpr std::string_view large[] = {"another sign", "twice as large", "rows and columns are exchanged",
                                            "one place further", "one element is not written"};
      if (std::find(std::begin(large), std::end(large), name) == std::end(large)) continue;
      for (const DType dtype : kLowDtypes) {
        const GradcheckReport report = Planted(subject, fault).check(context, dtype);
        // What one unit of bfloat16 does to the gradient of a rotation is so much that it may be undecided.
        const Verdict verdict = verdict_of_x(report);
        EXPECT_TRUE(verdict == Verdict::wrong || (dtype == DType::bfloat16 && verdict == Verdict::undecided))
            << subject.op << ": " << name << "\n"
            << report.to_string();
      }
    }
  }
}

// Where rounding leaves 3 of 7 digits a fault shows that is larger than what rounding does.
TEST(GradcheckPrecisionTest, FaultsOfGradientsThatNearlyCancelAreFound) {
  Context context(Device{}, {.threads = 1});
  const ImpreciseSubject subject{"srms_norm", "{}", {{"x", {5, 1}}}};
  for (const double factor : {-1.0, 0.0, 0.8, 2.0}) {
    const Fault fault = [factor](const Arriving& g) {
      for (double& d : g.d) d *= factor;
    };
    const GradcheckReport report = Planted(subject, fault).check(context, DType::float32);
    EXPECT_EQ(verdict_of_x(report), Verdict::wrong) << factor << "\n" << report.to_string();
  }
}

}  // namespace
}  // namespace heddle
