// Faults planted into the gradients of right operators: gradcheck finds each one. And right models of all kinds, which
// it never calls wrong. HEDDLE_GRADCHECK_SEEDS in the environment is the number of models, 6 if it is not set.
#include <fmt/format.h>
#include <gtest/gtest.h>

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
#include "layers/registry.h"
#include "tests/tools/planted_faults.h"
#include "tools/check_gradients.h"
#include "trainers/train_config.h"

namespace heddle {
namespace {

using testing::Arriving;
using testing::Fault;
using testing::faults;
using testing::with_fault;

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
