// The optimizers against those of torch.optim, where it is there.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/io/safetensors.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/modules/module.h"
#include "tests/temp_folder.h"
#include "trainers/optimizer.h"

namespace heddle::optimizer_torch_test {
namespace {

constexpr int64_t kSteps = 5;

// Writes where the parameters began, their gradients in every step, and where they ended, of a vector and of matrices
// that are wide, tall and square. The rate of each step is 0.01 times its number, and the gradients are clipped.
void write_steps(const std::string& path, const OptimizerConfig& config, const SafetensorsMetadata& metadata) {
  Context context;
  ParameterSet parameters;
  const ModuleBuilder builder(parameters);
  const std::vector<std::pair<std::string, Shape>> shapes = {
      {"vector", {9}}, {"wide", {5, 12}}, {"tall", {21, 4}}, {"square", {8, 8}}};
  for (const auto& [name, shape] : shapes) builder.add(name, shape, Initializer::normal(0.5));
  parameters.materialize(context, DType::float64, 3);
  fill_zero(context, parameters.gradient());
  Optimizer optimizer(context, parameters, config);
  std::vector<NamedTensor> tensors;
  const auto keep = [&](const std::string& name, const Tensor& tensor) {
    tensors.push_back({name, clone(context, tensor)});
  };
  for (const Parameter& parameter : parameters.all()) keep("start." + parameter.name, parameter.master);
  Random random(5, RandomStream::test);
  for (int64_t step = 1; step <= kSteps; ++step) {
    for (const Parameter& parameter : parameters.all()) {
      fill_normal(context, parameter.gradient.tensor, random, 0.1, 1.0);
      keep(fmt::format("gradient.{}.{}", step, parameter.name), parameter.gradient.tensor);
    }
    optimizer.set_step(step, 0.01 * static_cast<double>(step), 1.0);
    optimizer.apply();
  }
  for (const Parameter& parameter : parameters.all()) keep("end." + parameter.name, parameter.master);
  write_safetensors(context, path, tensors, metadata);
}

TEST(OptimizerTorchTest, OptimizersAgreeWithPyTorch) {
  if (std::system("python3 -c 'import torch, safetensors.torch' > /dev/null 2>&1") != 0) {
    GTEST_SKIP() << "python3 has no torch and safetensors";
  }
  const testing::TempFolder folder;
  std::string command = "python3 '" HEDDLE_SOURCE_DIR "/tests/trainers/replay_optimizer.py'";
  int files = 0;
  const auto add = [&](const OptimizerConfig& config, const SafetensorsMetadata& metadata) {
    const std::string path = (folder / fmt::format("{}.safetensors", ++files)).string();
    write_steps(path, config, metadata);
    command += fmt::format(" '{}'", path);
  };
  add({.type = OptimizerType::adamw, .betas = {0.71, 0.937}, .eps = 1e-3, .weight_decay = 0.23, .clip_norm = 9.0},
      {{"type", "adamw"}});
  for (const bool nesterov : {false, true}) {
    add({.type = OptimizerType::sgd, .weight_decay = 0.23, .clip_norm = 9.0, .momentum = 0.83, .nesterov = nesterov},
        {{"type", "sgd"}, {"nesterov", nesterov ? "1" : ""}});
    for (const MuonScale scale : {MuonScale::original, MuonScale::match_rms_adamw}) {
      add({.type = OptimizerType::muon,
           .lr = 0.1,
           .betas = {0.71, 0.937},
           .eps = 1e-3,
           .weight_decay = 0.23,
           .clip_norm = 9.0,
           .momentum = 0.83,
           .nesterov = nesterov,
           .scale = scale,
           .adamw_lr = 0.05},
          {{"type", "muon"},
           {"nesterov", nesterov ? "1" : ""},
           {"scale", scale == MuonScale::original ? "original" : "match_rms_adamw"}});
    }
  }
  EXPECT_EQ(std::system(command.c_str()), 0);
}

}  // namespace
}  // namespace heddle::optimizer_torch_test
