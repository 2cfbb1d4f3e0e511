// The optimizers as a whole against their formulas, number by number over several steps, and what a checkpoint keeps of
// them.
#include "trainers/optimizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/modules/module.h"
#include "layers/ops/linear.h"
#include "tests/error_of.h"
#include "tests/layers/on_devices.h"
#include "tests/temp_folder.h"
#include "tests/trainers/reference_optimizer.h"
#include "trainers/run/checkpoint.h"

namespace heddle::optimizer_test {
namespace {

using Values = std::vector<double>;

// Vectors before and between matrices, which the flat buffers hold in another order; the first matrix has several
// partial sums of the norm. Matrices are wide, tall and square, and Muon does not take those of the embedding and the
// head, the first and the last.
struct Optimized {
  Optimized(Context& context, DType dtype, const OptimizerConfig& config, std::optional<double> average_decay = {}) {
    const ModuleBuilder builder(parameters);
    const Initializer start = Initializer::normal(0.5);
    builder.add("bias", {7}, start);
    builder.add("embedding.weight", {40, 6}, start);
    builder.add("matrix", {130, 140}, start);
    builder.add("norm", {129}, start);
    builder.add("narrow", {3, 5}, start);
    builder.add("tall", {70, 9}, start);
    builder.add("theta", {2, 4}, start, false);
    builder.add("head.weight", {40, 6}, start);
    parameters.materialize(context, dtype, 3);
    fill_zero(context, parameters.gradient());  // the gaps between parameters are zero
    if (average_decay) average.emplace(context, parameters, *average_decay);
    optimizer.emplace(context, parameters, config, average ? &*average : nullptr);
  }

  void set_gradients(Context& context, uint32_t step) {
    Random random(5, RandomStream::test, step);
    for (const Parameter& parameter : parameters.all()) {
      fill_normal(context, parameter.gradient.tensor, random, 0.002, 0.01);
    }
  }
  void take_step(Context& context, int64_t step, double rate = 0.1, double scale = 1.0) {
    optimizer->set_step(step, rate, scale);
    optimizer->apply();
    context.synchronize();
  }
  // What is kept of the gradients, masters, compute copies and averages by name.
  std::map<std::string, Values> numbers(Context& context) const {
    std::map<std::string, Values> all;
    for (const NamedTensor& named : optimizer->state()) all[named.name] = read_values(context, named.tensor);
    for (const Parameter& parameter : parameters.all()) {
      all[parameter.name] = read_values(context, parameter.master);
      all[parameter.name + ".value"] = read_values(context, parameter.value);
    }
    if (!average) return all;
    for (const NamedTensor& named : average->tensors()) {
      all[named.name + ".average"] = read_values(context, named.tensor);
    }
    return all;
  }

  ParameterSet parameters;
  std::optional<WeightAverage> average;
  std::optional<Optimizer> optimizer;
};

// Largest difference, relative to the largest of the expected numbers.
double difference(const Values& found, const Values& expected) {
  if (found.size() != expected.size()) return INFINITY;
  double apart = 0.0, largest = 0.0;
  for (size_t i = 0; i < found.size(); ++i) {
    if (std::isnan(found[i])) return INFINITY;
    apart = std::max(apart, std::abs(found[i] - expected[i]));
    largest = std::max(largest, std::abs(expected[i]));
  }
  return apart / largest;
}

Values minus(Values a, const Values& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] -= b[i];
  return a;
}

// Everything that has a part in the formula is as large as the rest of it: eps as the gradients, the rate as the
// weights. A factor of 1.0001 anywhere is more than what is allowed, but where Muon multiplies in 16 bits.
std::vector<OptimizerConfig> configs() {
  const std::array<double, 2> betas = {0.71, 0.937};
  return {{.type = OptimizerType::adamw, .betas = betas, .eps = 3e-3, .weight_decay = 0.23},
          {.type = OptimizerType::lion, .betas = betas, .weight_decay = 0.23},
          {.type = OptimizerType::sgd, .weight_decay = 0.0023},
          {.type = OptimizerType::sgd, .weight_decay = 0.0023, .momentum = 0.83},
          {.type = OptimizerType::sgd, .weight_decay = 0.0023, .momentum = 0.83, .nesterov = true},
          {.type = OptimizerType::muon,
           .lr = 0.3,
           .betas = betas,
           .eps = 3e-3,
           .weight_decay = 0.23,
           .momentum = 0.83,
           .nesterov = true,
           .adamw_lr = 0.17},
          {.type = OptimizerType::muon,
           .lr = 0.3,
           .betas = betas,
           .eps = 3e-3,
           .weight_decay = 0.23,
           .momentum = 0.83,
           .newton_schulz_steps = 3,
           .scale = MuonScale::match_rms_adamw,
           .adamw_lr = 0.21}};
}

std::string title(const OptimizerConfig& config, DType dtype) {
  return fmt::format("{}, momentum {}{}, clip_norm {}, {}", name(config.type), config.momentum,
                     config.nesterov ? ", nesterov" : "", config.clip_norm, name(dtype));
}

// How far a matrix that Muon has moved may be from the formula: Newton-Schulz makes small singular values large, and
// with them their rounding errors.
double matrix_tolerance(DType dtype) { return dtype == DType::float64 ? 1e-11 : dtype == DType::float32 ? 1e-4 : 0.05; }

class OptimizerFormula : public test::OnDevices {
 protected:
  void expect_formula(Optimized& optimized, testing::ReferenceOptimizer& reference, DType dtype, double average_decay,
                      const std::string& where);
  void follow(const OptimizerConfig& config, DType dtype);
};

void OptimizerFormula::expect_formula(Optimized& optimized, testing::ReferenceOptimizer& reference, DType dtype,
                                      double average_decay, const std::string& where) {
  const double tolerance = dtype == DType::float64 ? 1e-13 : 5e-6;
  const auto found = optimized.numbers(context());
  for (const auto& [parameter, state] : reference.states) {
    const bool has_m = found.contains(parameter + ".m"), has_v = found.contains(parameter + ".v");
    if (has_m) {
      EXPECT_LE(difference(found.at(parameter + ".m"), state.m), tolerance) << parameter << ".m, " << where;
    }
    if (has_v) {
      EXPECT_LE(difference(found.at(parameter + ".v"), state.v), tolerance) << parameter << ".v, " << where;
    }
    const double allowed = state.is_orthogonalized ? matrix_tolerance(dtype) : tolerance;
    const auto moved = [&start = state.start](const Values& values) { return minus(values, start); };
    EXPECT_LE(difference(moved(found.at(parameter)), moved(state.master)), allowed) << parameter << ", " << where;
    if (average_decay > 0.0) {
      EXPECT_LE(difference(moved(found.at(parameter + ".average")), moved(state.average)), allowed)
          << parameter << ".average, " << where;
    }
    // What the layers read is the master, rounded once.
    const Values& master = found.at(parameter);
    const Tensor rounded = Tensor::empty(context(), {static_cast<int64_t>(master.size())}, dtype);
    write_values(context(), rounded, master);
    EXPECT_EQ(found.at(parameter + ".value"), read_values(context(), rounded)) << parameter << ", " << where;
  }
}

void OptimizerFormula::follow(const OptimizerConfig& config, DType dtype) {
  std::vector<double> rates = {0.2, 0.05, 0.31, 0.11, 0.07, 0.17};
  if (config.type == OptimizerType::sgd) {
    for (double& rate : rates) rate *= 300.0;  // a step is as long as the gradient, which is small
  }
  const std::vector<int64_t> steps = {1, 2, 3, 4, 11, 300};
  const double average_decay = 0.6;
  Optimized optimized(context(), dtype, config, average_decay);
  testing::ReferenceOptimizer reference(context(), optimized.parameters, config);
  for (size_t i = 0; i < steps.size(); ++i) {
    const double scale = 0.37 + 0.1 * static_cast<double>(i);
    optimized.set_gradients(context(), static_cast<uint32_t>(i));
    optimized.take_step(context(), steps[i], rates[i], scale);
    const double step = static_cast<double>(steps[i]);
    const double decay = std::min(average_decay, (1.0 + step) / (10.0 + step));
    const double norm = reference.step(context(), optimized.parameters, steps[i], rates[i], scale, decay);
    ASSERT_GT(norm, 0.3) << "the small clip_norm clips";
    const std::string where = fmt::format("{}, step {}", title(config, dtype), steps[i]);
    EXPECT_NEAR(optimized.optimizer->gradient_norm(), norm, 1e-6 * norm) << where;
    expect_formula(optimized, reference, dtype, decay, where);
  }
}

TEST_P(OptimizerFormula, FollowsItOverSeveralSteps) {
  for (OptimizerConfig config : configs()) {
    for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
      for (const double clip_norm : {0.0, 0.2, 100.0}) {
        config.clip_norm = clip_norm;
        follow(config, dtype);
      }
    }
  }
}

// The later group counts, key by key, and what no group says stays as it is.
TEST_P(OptimizerFormula, GroupsHaveRatesAndDecaysOfTheirOwn) {
  for (OptimizerConfig config : configs()) {
    config.groups = {{"*a*", 0.5, 0.7}, {"n?r[mr]*", 0.25, {}}, {"bias", {}, 0.31}, {"tall", 0.0, {}}};
    Optimized optimized(context(), DType::float64, config);
    testing::ReferenceOptimizer reference(context(), optimized.parameters, config);
    for (const char* with_a : {"bias", "matrix", "narrow", "tall", "theta", "head.weight"}) {
      reference.states.at(with_a).lr_scale = 0.5;
      reference.states.at(with_a).weight_decay = 0.7;
    }
    for (const char* third_r : {"norm", "narrow"}) reference.states.at(third_r).lr_scale = 0.25;
    reference.states.at("bias").weight_decay = 0.31;
    reference.states.at("tall").lr_scale = 0.0;
    const Values tall = read_values(context(), optimized.parameters.all()[5].master);
    for (int64_t step = 1; step <= 3; ++step) {
      optimized.set_gradients(context(), static_cast<uint32_t>(step));
      optimized.take_step(context(), step);
      reference.step(context(), optimized.parameters, step, 0.1, 1.0);
    }
    EXPECT_EQ(read_values(context(), optimized.parameters.all()[5].master), tall) << "lr_scale: 0 is frozen";
    reference.states.erase("tall");
    expect_formula(optimized, reference, DType::float64, 0.0, title(config, DType::float64));
  }
}

// Numbers that both have are moved to the same bits: with products in float16 small singular values would be lost.
TEST_P(OptimizerFormula, MuonMultipliesFloat16AsBfloat16) {
  std::map<std::string, Values> found[2];
  for (const bool narrow : {false, true}) {
    OptimizerConfig config = configs().back();
    Optimized optimized(context(), narrow ? DType::bfloat16 : DType::float16, config);
    for (const Parameter& parameter : optimized.parameters.all()) {
      Values gradient(static_cast<size_t>(numel(parameter.shape)));
      for (size_t i = 0; i < gradient.size(); ++i) gradient[i] = static_cast<double>((i * 7 + i / 9) % 5) / 64.0;
      write_values(context(), parameter.gradient.tensor, gradient);
    }
    optimized.take_step(context(), 1);
    for (const Parameter& parameter : optimized.parameters.all()) {
      found[narrow][parameter.name] = read_values(context(), parameter.master);
    }
  }
  EXPECT_EQ(found[0], found[1]);
}

TEST_P(OptimizerFormula, AGradientThatIsNotFiniteChangesNothing) {
  for (const OptimizerConfig& config : configs()) {
    for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
      Optimized optimized(context(), DType::bfloat16, config, 0.9);
      optimized.set_gradients(context(), 1);
      optimized.take_step(context(), 1);
      const auto before = optimized.numbers(context());
      Values gradient = read_values(context(), optimized.parameters.all().back().gradient.tensor);
      gradient.back() = bad;
      write_values(context(), optimized.parameters.all().back().gradient.tensor, gradient);
      optimized.take_step(context(), 2);
      EXPECT_FALSE(std::isfinite(optimized.optimizer->gradient_norm()));
      EXPECT_EQ(optimized.numbers(context()), before) << title(config, DType::bfloat16);
    }
  }
}

// A matrix without a gradient has no direction to be moved in, and nothing is divided by zero.
// The first step of AdamW is the learning rate in the direction of the gradient, however near 1 the betas are.
TEST_P(OptimizerFormula, BetasNearOneKeepTheirDigits) {
  for (const double beta : {0.9, 0.999, 0.99999, 0.9999999, 0.999999999}) {
    const OptimizerConfig config{
        .type = OptimizerType::adamw, .betas = {beta, beta}, .eps = 1e-30, .weight_decay = 0.0, .clip_norm = 0.0};
    Optimized optimized(context(), DType::float32, config);
    const auto before = optimized.numbers(context());
    optimized.set_gradients(context(), 1);
    optimized.take_step(context(), 1, 1.0);
    const auto after = optimized.numbers(context());
    for (const Parameter& parameter : optimized.parameters.all()) {
      for (const double step : minus(after.at(parameter.name), before.at(parameter.name))) {
        ASSERT_NEAR(std::abs(step), 1.0, 1e-6) << parameter.name << ", beta " << beta;
      }
    }
  }
}

TEST_P(OptimizerFormula, AGradientOfZerosOnlyDecays) {
  for (const OptimizerConfig& config : configs()) {
    Optimized optimized(context(), DType::float64, config);
    testing::ReferenceOptimizer reference(context(), optimized.parameters, config);
    optimized.take_step(context(), 1);
    const auto found = optimized.numbers(context());
    for (const auto& [parameter, state] : reference.states) {
      const double rate =
          state.is_orthogonalized || config.type != OptimizerType::muon ? 0.1 : 0.1 * config.adamw_lr / config.lr;
      const double look_ahead = config.type == OptimizerType::sgd && config.nesterov ? 1.0 + config.momentum : 1.0;
      Values expected = state.start;
      for (double& value : expected) value *= 1.0 - rate * state.weight_decay * look_ahead;
      EXPECT_LE(difference(found.at(parameter), expected), 1e-15) << parameter << ", " << title(config, DType::float64);
    }
  }
}

TEST_P(OptimizerFormula, ALossThatIsNotFiniteChangesNothing) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  for (const OptimizerConfig& config : configs()) {
    Optimized optimized(context(), DType::bfloat16, config, 0.9);
    const auto step = [&](int64_t number, const Values& losses) {
      const Tensor on_device =
          Tensor::empty(context(), {static_cast<int64_t>(losses.size())}, optimized.parameters.master().dtype());
      write_values(context(), on_device, losses);
      optimized.optimizer->set_step(number, 0.1, 1.0);
      optimized.optimizer->apply(on_device);
      context().synchronize();
    };
    const auto start = optimized.numbers(context());
    optimized.set_gradients(context(), 1);
    step(1, Values(300, 1.0));
    EXPECT_TRUE(std::isfinite(optimized.optimizer->gradient_norm()));
    const auto before = optimized.numbers(context());
    EXPECT_NE(before, start) << title(config, DType::bfloat16);
    for (const double bad : {kInfinity, -kInfinity, std::numeric_limits<double>::quiet_NaN()}) {
      for (const size_t place : {0, 1, 299}) {
        Values losses(300, 1.0);
        losses[place] = bad;
        step(2, losses);
        EXPECT_FALSE(std::isfinite(optimized.optimizer->gradient_norm()));
        EXPECT_EQ(optimized.numbers(context()), before) << place << ", " << title(config, DType::bfloat16);
      }
    }
  }
}

// Part by part, so that an exchange in both directions is noticed.
TEST_P(OptimizerFormula, ACheckpointKeepsWhatThereIsUnderItsName) {
  for (const OptimizerConfig& config : configs()) {
    SCOPED_TRACE(title(config, DType::float32));
    Optimized optimized(context(), DType::float32, config, 0.5), other(context(), DType::float32, config, 0.5);
    testing::ReferenceOptimizer reference(context(), optimized.parameters, config);
    for (int64_t number = 1; number <= 3; ++number) {
      optimized.set_gradients(context(), static_cast<uint32_t>(number));
      optimized.take_step(context(), number);
      const double step = static_cast<double>(number);
      reference.step(context(), optimized.parameters, number, 0.1, 1.0, std::min(0.5, (1.0 + step) / (10.0 + step)));
    }
    const testing::TempFolder folder;
    const CheckpointState state{.step = 3, .seed = 1, .config = "", .program = ""};
    const Checkpoint checkpoint = open_checkpoint(write_checkpoint(
        context(), folder.path(), optimized.parameters, *optimized.optimizer, state, {}, &*optimized.average));
    SafetensorsReader kept(checkpoint.path / "optimizer.safetensors"), model(checkpoint.path / "model.safetensors");
    SafetensorsReader average(checkpoint.path / "average.safetensors");
    size_t expected_entries = 0;
    for (const auto& [parameter, expected] : reference.states) {
      const auto read = [&](SafetensorsReader& reader, const std::string& name) {
        return read_values(context(), reader.read(context(), reader.at(name)));
      };
      const bool is_sgd = config.type == OptimizerType::sgd;
      if (!is_sgd || config.momentum > 0.0) {
        EXPECT_LE(difference(read(kept, parameter + ".m"), expected.m), 1e-5) << parameter;
        ++expected_entries;
      }
      if (!is_sgd && config.type != OptimizerType::lion && !expected.is_orthogonalized) {
        EXPECT_LE(difference(read(kept, parameter + ".v"), expected.v), 1e-5) << parameter;
        ++expected_entries;
      }
      EXPECT_LE(difference(read(model, parameter), expected.master), 1e-4) << parameter;
      EXPECT_LE(difference(read(average, parameter), expected.average), 1e-4) << parameter;
    }
    EXPECT_EQ(kept.entries().size(), expected_entries);
    EXPECT_EQ(model.entries().size(), reference.states.size());
    EXPECT_EQ(average.entries().size(), reference.states.size());

    other.set_gradients(context(), 1);
    other.take_step(context(), 1);
    ASSERT_NE(other.numbers(context()), optimized.numbers(context()));
    load_parameters(context(), checkpoint, other.parameters);
    load_optimizer(context(), checkpoint, *other.optimizer);
    load_average(context(), checkpoint, *other.average);
    EXPECT_EQ(other.numbers(context()), optimized.numbers(context()));
    for (Optimized* which : {&optimized, &other}) {
      which->set_gradients(context(), 4);
      which->take_step(context(), 4);
    }
    EXPECT_EQ(other.numbers(context()), optimized.numbers(context()));
  }
}

HEDDLE_ON_DEVICES(OptimizerFormula);

TEST(OptimizerTest, APatternWithoutParametersIsRefused) {
  Context context;
  OptimizerConfig config;
  config.groups = {{"matrix", 2.0, {}}, {"matriks", 2.0, {}}};
  try {
    Optimized(context, DType::float32, config);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "optimizer.groups.1.pattern: found 'matriks', which matches no parameter; did you mean 'matrix'?");
  }
}

TEST(OptimizerTest, AnUpdateWithoutAStepIsRefused) {
  Context context;
  Optimized optimized(context, DType::float32, {});
  const auto before = optimized.numbers(context);
  EXPECT_EQ(testing::error_of([&] { optimized.optimizer->apply(); }), "the optimizer was to update without set_step()");
  for (const int64_t step : {0, -1}) {
    EXPECT_EQ(testing::error_of([&] { optimized.optimizer->set_step(step, 0.1, 1.0); }),
              fmt::format("the optimizer was given step {}: steps count from 1", step));
  }
  EXPECT_EQ(optimized.numbers(context), before);
}

TEST(OptimizerTest, ParametersWithoutMemoryAreRefused) {
  Context context;
  ParameterSet parameters;
  parameters.add("w", {2}, Initializer::constant(1.0), true);
  EXPECT_EQ(testing::error_of([&] { Optimizer(context, parameters, {}); }),
            "the parameters have no memory yet: materialize() comes first");
}

// Its gradient is zero then, not that of the step before.
TEST(OptimizerTest, AParameterThatAStepDoesNotUseIsNotMovedByIt) {
  Context context;
  ParameterSet parameters;
  Parameter& always = parameters.add("always", {1, 2}, Initializer::constant(1.0), true);
  Parameter& once = parameters.add("once", {1, 2}, Initializer::constant(1.0), true);
  parameters.materialize(context, DType::float64, 1);
  const OptimizerConfig config{.type = OptimizerType::sgd, .weight_decay = 0.0, .clip_norm = 0.0};
  Optimizer optimizer(context, parameters, config);
  const Tensor x = Tensor::empty(context, {1, 2}, DType::float64),
               upstream = Tensor::empty(context, {1, 1}, DType::float64);
  write_values(context, x, {3, 4});
  write_values(context, upstream, {0.1});
  for (int64_t step = 1; step <= 3; ++step) {
    parameters.zero_grad();
    Tape tape(context);
    std::vector<Tape::Root> roots;
    for (Parameter* parameter : {&always, &once}) {
      if (parameter == &once && step > 1) continue;
      roots.push_back({linear(tape, tape.constant(x), ParameterSet::on(tape, *parameter)), upstream});
    }
    tape.backward(std::move(roots));
    optimizer.set_step(step, 1.0, 1.0);
    optimizer.apply();
    EXPECT_NEAR(optimizer.gradient_norm(), step == 1 ? 0.5 * std::sqrt(2.0) : 0.5, 1e-12);
    EXPECT_NEAR(read_values(context, always.master)[0], 1.0 - 0.3 * static_cast<double>(step), 1e-12);
    EXPECT_NEAR(read_values(context, once.master)[0], 0.7, 1e-12) << step;
  }
}

}  // namespace
}  // namespace heddle::optimizer_test
