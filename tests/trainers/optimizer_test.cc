// The optimizer as a whole against its formula, number by number over several steps, and what a checkpoint keeps of it.
#include "trainers/optimizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/modules/module.h"
#include "tests/layers/on_devices.h"
#include "tests/temp_folder.h"
#include "tests/trainers/reference_adamw.h"
#include "trainers/run/checkpoint.h"

namespace heddle {
namespace {

using Values = std::vector<double>;

// Vectors before and between matrices, which the flat buffers hold in another order; the first matrix has several
// partial sums of the norm.
struct Optimized {
  Optimized(Context& context, DType dtype, const OptimizerConfig& config) : optimizer(make(context, dtype, config)) {}

  AdamW make(Context& context, DType dtype, const OptimizerConfig& config) {
    const ModuleBuilder builder(parameters);
    const Initializer start = Initializer::normal(0.5);
    builder.add("bias", {7}, start);
    builder.add("matrix", {130, 140}, start);
    builder.add("norm", {129}, start);
    builder.add("narrow", {3, 5}, start);
    parameters.materialize(context, dtype, 3);
    fill_zero(context, parameters.gradient());  // the gaps between parameters are zero
    return AdamW(context, parameters, config);
  }

  void set_gradients(Context& context, uint32_t step) {
    Random random(5, RandomStream::test, step);
    for (const Parameter& parameter : parameters.all()) {
      fill_normal(context, parameter.gradient.tensor, random, 0.002, 0.01);
    }
  }
  // Moments, masters and compute copies by name.
  std::map<std::string, Values> numbers(Context& context) const {
    std::map<std::string, Values> all;
    for (const NamedTensor& named : optimizer.state()) all[named.name] = read_values(context, named.tensor);
    for (const Parameter& parameter : parameters.all()) {
      all[parameter.name] = read_values(context, parameter.master);
      all[parameter.name + ".value"] = read_values(context, parameter.value);
    }
    return all;
  }

  ParameterSet parameters;
  AdamW optimizer;
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

class OptimizerFormula : public test::OnDevices {};

// Everything that has a part in the formula is as large as the rest of it: eps as the gradients, the rate as the
// weights. A factor of 1.0001 anywhere is more than what is allowed.
TEST_P(OptimizerFormula, FollowsItOverSeveralSteps) {
  const std::vector<double> rates = {0.2, 0.05, 0.31, 0.11, 0.07, 0.17};
  const std::vector<int64_t> steps = {1, 2, 3, 4, 11, 300};
  for (const DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    const double tolerance = dtype == DType::float64 ? 1e-13 : 5e-6;
    for (const double clip_norm : {0.0, 0.2, 100.0}) {
      const OptimizerConfig config{.betas = {0.71, 0.937}, .eps = 3e-3, .weight_decay = 0.23, .clip_norm = clip_norm};
      Optimized optimized(context(), dtype, config);
      testing::ReferenceAdamW reference(context(), optimized.parameters, config);
      for (size_t i = 0; i < steps.size(); ++i) {
        const double scale = 0.37 + 0.1 * static_cast<double>(i);
        optimized.set_gradients(context(), static_cast<uint32_t>(i));
        optimized.optimizer.set_step(steps[i], rates[i], scale);
        optimized.optimizer.apply();
        context().synchronize();
        const double norm = reference.step(context(), optimized.parameters, steps[i], rates[i], scale);
        ASSERT_GT(norm, 0.3) << "the small clip_norm clips";
        const std::string where = std::string(name(dtype)) + ", clip_norm " + std::to_string(clip_norm) + ", step " +
                                  std::to_string(steps[i]);
        EXPECT_NEAR(optimized.optimizer.gradient_norm(), norm, 1e-6 * norm) << where;
        const auto found = optimized.numbers(context());
        for (const auto& [parameter, state] : reference.states) {
          EXPECT_LE(difference(found.at(parameter + ".m"), state.m), tolerance) << parameter << ".m, " << where;
          EXPECT_LE(difference(found.at(parameter + ".v"), state.v), tolerance) << parameter << ".v, " << where;
          EXPECT_LE(difference(minus(found.at(parameter), state.start), minus(state.master, state.start)), tolerance)
              << parameter << ", " << where;
          // What the layers read is the master, rounded once.
          const Values& master = found.at(parameter);
          const Tensor rounded = Tensor::empty(context(), {static_cast<int64_t>(master.size())}, dtype);
          write_values(context(), rounded, master);
          EXPECT_EQ(found.at(parameter + ".value"), read_values(context(), rounded)) << parameter << ", " << where;
        }
      }
    }
  }
}

TEST_P(OptimizerFormula, AGradientThatIsNotFiniteChangesNothing) {
  for (const double bad : {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    Optimized optimized(context(), DType::bfloat16, {});
    const auto step = [&](int64_t number) {
      optimized.optimizer.set_step(number, 0.1, 1.0);
      optimized.optimizer.apply();
      context().synchronize();
    };
    optimized.set_gradients(context(), 1);
    step(1);
    const auto before = optimized.numbers(context());
    Values gradient = read_values(context(), optimized.parameters.all().back().gradient.tensor);
    gradient.back() = bad;
    write_values(context(), optimized.parameters.all().back().gradient.tensor, gradient);
    step(2);
    EXPECT_FALSE(std::isfinite(optimized.optimizer.gradient_norm()));
    EXPECT_EQ(optimized.numbers(context()), before);
  }
}

TEST_P(OptimizerFormula, ALossThatIsNotFiniteChangesNothing) {
  for (const DType dtype : {DType::bfloat16, DType::float64}) {
    Optimized optimized(context(), dtype, {});
    const auto step = [&](int64_t number, const Values& losses) {
      const Tensor on_device =
          Tensor::empty(context(), {static_cast<int64_t>(losses.size())}, optimized.parameters.master().dtype());
      write_values(context(), on_device, losses);
      optimized.optimizer.set_step(number, 0.1, 1.0);
      optimized.optimizer.apply(on_device);
      context().synchronize();
    };
    optimized.set_gradients(context(), 1);
    step(1, Values(300, 1.0));
    EXPECT_TRUE(std::isfinite(optimized.optimizer.gradient_norm()));
    for (const double bad : {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
                             std::numeric_limits<double>::quiet_NaN()}) {
      for (const size_t place : {0, 1, 299}) {
        const auto before = optimized.numbers(context());
        Values losses(300, 1.0);
        losses[place] = bad;
        step(2, losses);
        EXPECT_FALSE(std::isfinite(optimized.optimizer.gradient_norm()));
        EXPECT_EQ(optimized.numbers(context()), before) << place;
      }
    }
  }
}

// Part by part, so that an exchange in both directions is noticed.
TEST_P(OptimizerFormula, ACheckpointKeepsEachMomentUnderItsName) {
  const OptimizerConfig config{.betas = {0.71, 0.937}};
  Optimized optimized(context(), DType::bfloat16, config), other(context(), DType::bfloat16, config);
  const auto step = [&](Optimized& which, int64_t number) {
    which.set_gradients(context(), static_cast<uint32_t>(number));
    which.optimizer.set_step(number, 0.1, 1.0);
    which.optimizer.apply();
    context().synchronize();
  };
  testing::ReferenceAdamW reference(context(), optimized.parameters, config);
  for (int64_t number = 1; number <= 3; ++number) {
    step(optimized, number);
    reference.step(context(), optimized.parameters, number, 0.1, 1.0);
  }
  const testing::TempFolder folder;
  const CheckpointState state{.step = 3, .seed = 1, .config = "", .program = ""};
  const Checkpoint checkpoint =
      open_checkpoint(write_checkpoint(context(), folder.path(), optimized.parameters, optimized.optimizer, state, {}));
  SafetensorsReader moments(checkpoint.path / "optimizer.safetensors"), model(checkpoint.path / "model.safetensors");
  EXPECT_EQ(moments.entries().size(), 2 * reference.states.size());
  EXPECT_EQ(model.entries().size(), reference.states.size());
  for (const auto& [parameter, expected] : reference.states) {
    const auto read = [&](SafetensorsReader& reader, const std::string& name) {
      return read_values(context(), reader.read(context(), reader.at(name)));
    };
    EXPECT_LE(difference(read(moments, parameter + ".m"), expected.m), 1e-5) << parameter;
    EXPECT_LE(difference(read(moments, parameter + ".v"), expected.v), 1e-5) << parameter;
    EXPECT_LE(difference(read(model, parameter), expected.master), 1e-5) << parameter;
  }

  step(other, 1);
  ASSERT_NE(other.numbers(context()), optimized.numbers(context()));
  load_parameters(context(), checkpoint, other.parameters);
  load_optimizer(context(), checkpoint, other.optimizer);
  EXPECT_EQ(other.numbers(context()), optimized.numbers(context()));
  step(optimized, 4);
  step(other, 4);
  EXPECT_EQ(other.numbers(context()), optimized.numbers(context()));
}

HEDDLE_ON_DEVICES(OptimizerFormula);

}  // namespace
}  // namespace heddle
