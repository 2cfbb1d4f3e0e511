// Faults planted into the gradients of right operators: gradcheck finds each one. And right models of all kinds, which
// it never calls wrong. HEDDLE_GRADCHECK_SEEDS in the environment is the number of models, 6 if it is not set.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "core/config/config_load.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/registry.h"
#include "tools/check_gradients.h"
#include "trainers/train_config.h"

namespace heddle {
namespace {

using Values = std::vector<double>;

// A gradient on its way to an input, (rows, cols), and what is known where it is computed.
struct Arriving {
  Values& d;
  const Values& x;
  int64_t cols;
  bool accumulates;  // the gradient is added to one that is there

  int64_t rows() const { return static_cast<int64_t>(d.size()) / cols; }
  double& at(int64_t row, int64_t col) const { return d[static_cast<size_t>(row * cols + col)]; }
};
using Fault = std::function<void(const Arriving&)>;

void scale_where(const Arriving& g, double factor, const std::function<bool(int64_t row, int64_t col)>& is_there) {
  for (int64_t row = 0; row < g.rows(); ++row) {
    for (int64_t col = 0; col < g.cols; ++col) {
      if (is_there(row, col)) g.at(row, col) *= factor;
    }
  }
}

// What people get wrong in a backward.
const std::vector<std::pair<std::string, Fault>>& faults() {
  static const std::vector<std::pair<std::string, Fault>> all = {
      {"another sign", [](const Arriving& g) { scale_where(g, -1.0, [](int64_t, int64_t) { return true; }); }},
      {"twice as large", [](const Arriving& g) { scale_where(g, 2.0, [](int64_t, int64_t) { return true; }); }},
      {"1e-4 too large", [](const Arriving& g) { scale_where(g, 1.0001, [](int64_t, int64_t) { return true; }); }},
      {"a constant is missing",
       [](const Arriving& g) {
         for (double& d : g.d) d -= 1e-3;
       }},
      {"the mean over a row is taken away",
       [](const Arriving& g) {
         for (int64_t row = 0; row < g.rows(); ++row) {
           double mean = 0.0;
           for (int64_t col = 0; col < g.cols; ++col) mean += g.at(row, col) / static_cast<double>(g.cols);
           for (int64_t col = 0; col < g.cols; ++col) g.at(row, col) -= mean;
         }
       }},
      {"a multiple of x is added",
       [](const Arriving& g) {
         for (size_t i = 0; i < g.d.size(); ++i) g.d[i] += 1e-3 * g.x[i];
       }},
      {"rows and columns are exchanged",
       [](const Arriving& g) {
         const Values d = g.d;
         for (int64_t row = 0; row < g.rows(); ++row) {
           for (int64_t col = 0; col < g.cols; ++col) {
             g.at(row, col) = d[static_cast<size_t>(col * g.rows() + row)];
           }
         }
       }},
      {"one place further", [](const Arriving& g) { std::rotate(g.d.begin(), g.d.begin() + 1, g.d.end()); }},
      {"the last row is left out",
       [](const Arriving& g) { scale_where(g, 0.0, [&](int64_t row, int64_t) { return row == g.rows() - 1; }); }},
      {"the last column is left out",
       [](const Arriving& g) { scale_where(g, 0.0, [&](int64_t, int64_t col) { return col == g.cols - 1; }); }},
      {"rows beyond a block of 4",
       [](const Arriving& g) { scale_where(g, 1.01, [](int64_t row, int64_t) { return row >= 4; }); }},
      {"one element is not written", [](const Arriving& g) { g.d[g.d.size() / 2] = std::nan(""); }},
      {"one element is off by 1e-4",
       [](const Arriving& g) {
         *std::max_element(g.d.begin(), g.d.end(), [](double a, double b) { return std::abs(a) < std::abs(b); }) *=
             1.0001;
       }},
      {"where x is negative",
       [](const Arriving& g) {
         for (size_t i = 0; i < g.d.size(); ++i) g.d[i] *= g.x[i] < 0.0 ? 1.001 : 1.0;
       }},
      {"only when it is added to another",
       [](const Arriving& g) {
         if (g.accumulates) scale_where(g, 1.001, [](int64_t, int64_t) { return true; });
       }},
  };
  return all;
}

// The identity, whose gradient has a fault.
struct FaultyNode {
  Slot x, y;
  Tensor value;
  const Fault* fault;

  void backward(Tape& tape) {
    Context& context = tape.context();
    Values d = read_values(context, tape.take_gradient(y));
    const GradientDestination to = tape.destination(x);
    const Values values = read_values(context, value);
    const int64_t cols = value.shape()[value.shape().rank() - 1];
    const bool adds = to.mode == GradientMode::accumulate;
    (*fault)({d, values, cols, adds});
    if (adds) {
      const Values before = read_values(context, to.tensor);
      for (size_t i = 0; i < d.size(); ++i) d[i] += before[i];
    }
    write_values(context, to.tensor, d);
  }
};

Variable with_fault(Tape& tape, const Variable& x, const Fault& fault) {
  if (!tape.records({&x})) return x;
  const Variable y = tape.output(clone(tape.context(), x.value), true);
  tape.record(FaultyNode{.x = x.slot, .y = y.slot, .value = x.value, .fault = &fault}, {x}, {y});
  return y;
}

struct Subject {
  std::string op, options;
  std::vector<std::pair<std::string, Shape>> inputs;  // the fault is in the gradient of the first
};

const std::vector<Subject>& subjects() {
  static const std::vector<Subject> all = {
      {"rms_norm",
       "{eps: 1.0e-5, gate: {act: silu, position: pre}}",
       {{"x", {6, 6}}, {"gate", {6, 6}}, {"weight", {6}}}},
      {"linear", "{}", {{"weight", {6, 6}}, {"x", {7, 6}}}},
      {"glu", "{act: relu}", {{"x", {6, 6}}, {"w12", {10, 6}}, {"w3", {6, 5}}}},
      {"linear_attention", "{decay: none}", {{"q", {1, 6, 1, 6}}, {"k", {1, 6, 1, 6}}, {"v", {1, 6, 1, 3}}}},
      {"lrpe_rotate", "{act: silu}", {{"x", {1, 6, 1, 6}}, {"theta", {1, 3}}}},
  };
  return all;
}

GradcheckReport check_with(Context& context, const Subject& subject, const Fault& fault, int projections) {
  const Operator& op = built_in_registry().find(subject.op);
  const OperatorFunction function = bind_operator(op, parse_config(subject.options, "options"));
  Random random(5, RandomStream::test);
  std::vector<GradcheckInput> inputs;
  for (const auto& [name, shape] : subject.inputs) {
    inputs.push_back({name, Tensor::empty(context, shape, DType::float64)});
    fill_normal(context, inputs.back().value, random, 0.0, 1.0);
  }
  const GradcheckFunction checked = [&](Tape& tape, const std::vector<Variable>& variables) {
    NamedVariables named;
    for (size_t i = 0; i < inputs.size(); ++i) {
      named[inputs[i].name] = i == 0 ? with_fault(tape, variables[i], fault) : variables[i];
    }
    std::vector<Variable> outputs;
    for (const auto& [name, output] : function(tape, named)) outputs.push_back(output);
    return outputs;
  };
  return gradcheck(context, checked, inputs, {.projections = projections});
}

TEST(GradcheckFaultsTest, EachIsFoundAndNamed) {
  Context context(Device{}, {.threads = 1});
  int planted = 0;
  for (const Subject& subject : subjects()) {
    const GradcheckReport right = check_with(
        context, subject, [](const Arriving&) {}, 0);
    EXPECT_TRUE(right.passed()) << subject.op << "\n" << right.to_string();
    for (const auto& [name, fault] : faults()) {
      const GradcheckReport report = check_with(context, subject, fault, 0);
      EXPECT_EQ(report.verdict(), Verdict::wrong) << subject.op << ": " << name << "\n" << report.to_string();
      // It is in the gradient of one input alone.
      for (size_t i = 1; i < report.inputs.size(); ++i) EXPECT_EQ(report.inputs[i].verdict(), Verdict::ok) << name;
      if (report.accumulates) {
        EXPECT_EQ(report.inputs[0].verdict(), Verdict::wrong) << subject.op << ": " << name;
      }
      ++planted;
    }
  }
  EXPECT_GE(planted, 60);
}

TEST(GradcheckFaultsTest, RandomDirectionsFindThemToo) {
  Context context(Device{}, {.threads = 1});
  for (const Subject& subject : subjects()) {
    for (const auto& [name, fault] : faults()) {
      const GradcheckReport report = check_with(context, subject, fault, 3);
      EXPECT_EQ(report.verdict(), Verdict::wrong) << subject.op << ": " << name << "\n" << report.to_string();
    }
  }
}

// --- Right models ---

int64_t models_to_check() {
  const char* text = std::getenv("HEDDLE_GRADCHECK_SEEDS");
  return text ? std::strtoll(text, nullptr, 10) : 6;
}

// Options drawn by the seed: 1 to 8 layers of every kind there is.
TrainConfig random_model(int64_t seed, const std::string& dtype) {
  Random random(static_cast<uint64_t>(seed), RandomStream::test);
  const auto one_of = [&](std::vector<std::string> choices) { return choices[random.next_below(choices.size())]; };
  const std::string act = one_of({"relu", "silu", "none", "sigmoid", "elu1"});
  const std::string lrpe = one_of({
      "",
      "lrpe: {type: lrpe_rotate, theta_init: rope, base: 10000}, ",
      "lrpe: {type: lrpe_rotate, theta_init: rope, base: 10000, learnable: true, act: softmax}, ",
      "lrpe: {type: lrpe_cosine, theta_init: rope, base: 10000}, ",
      "lrpe: {type: lrpe_cosine, theta_init: rope, base: 10000, shape: [3, 4]}, ",
      "lrpe: {type: lrpe_rotate, theta_init: rope, base: 10000, learnable: true, act: relu}, ",
  });
  const std::string text = fmt::format(
      R"(seed: {}
data: {{type: copy, length: 5}}
model:
  vocab_size: 11
  dim: 12
  layers: {}
  norm: {{type: {}, eps: 1.0e-6}}
  mixer: {{type: lightning, heads: {}, act: {}, {}{}}}
  channel: {{type: {}, hidden: 20, act: {}}}
  tie_embeddings: {}
optimizer: {{lr: 1.0e-3}}
trainer: {{steps: 1, batch_size: 2, sequence_length: 12, dtype: {}}}
)",
      seed, 1 + random.next_below(8), one_of({"srms_norm", "rms_norm", "layer_norm"}), one_of({"1", "2", "3"}), act,
      lrpe, one_of({"gate: {act: relu, position: pre}", "gate: {act: sigmoid, position: post, rank: 3}"}),
      one_of({"glu", "ffn"}), one_of({"relu", "silu"}), one_of({"true", "false"}), dtype);
  return read_train_config(parse_config(text, fmt::format("model {}", seed)));
}

TEST(GradcheckModelsTest, RightModelsAreNeverWrong) {
  Context context(Device{}, {.threads = 1});
  int64_t undecided = 0;
  for (int64_t seed = 1; seed <= models_to_check(); ++seed) {
    const GradcheckReport report = check_model_gradients(context, random_model(seed, "float32"), DType::float64);
    EXPECT_NE(report.verdict(), Verdict::wrong) << "seed " << seed << "\n" << report.to_string();
    undecided += report.verdict() == Verdict::undecided ? 1 : 0;
  }
  EXPECT_LE(undecided, 1 + models_to_check() / 20);
}

TEST(GradcheckModelsTest, RightModelsOfLowPrecisionAreNeverWrong) {
  Context context(Device{}, {.threads = 1});
  for (int64_t seed = 1; seed <= models_to_check(); ++seed) {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      const GradcheckReport report = check_model_gradients(context, random_model(seed, "float32"), dtype);
      EXPECT_NE(report.verdict(), Verdict::wrong) << "seed " << seed << " " << name(dtype) << "\n"
                                                  << report.to_string();
    }
  }
}

}  // namespace
}  // namespace heddle
