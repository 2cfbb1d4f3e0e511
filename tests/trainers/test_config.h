// Small training configs for tests.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <ios>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "trainers/data/dataset.h"
#include "trainers/train_config.h"

namespace heddle::testing {

// A model of two small layers on the copy task: a step takes about a millisecond.
inline const std::string& tiny_config() {
  static const std::string text = R"(seed: 7
data: {type: copy, length: 6}
model:
  vocab_size: 8
  dim: 16
  layers: 2
  norm: {type: srms_norm, eps: 1.0e-6}
  mixer:
    type: lightning
    heads: 2
    act: silu
    lrpe: {type: lrpe_rotate, theta_init: rope, base: 10000, layers: [0]}
    gate: {act: sigmoid, position: post, rank: 4}
  channel: {type: glu, hidden: 16, act: silu}
optimizer: {lr: 3.0e-3}
schedule: {type: cosine, warmup_steps: 5, min_lr: 3.0e-4}
trainer:
  steps: 40
  batch_size: 4
  sequence_length: 16
  eval_every: 10
  eval_batches: 2
  checkpoint_every: 10
)";
  return text;
}

inline TrainConfig tiny_train_config(const std::vector<std::string>& overrides = {}) {
  return read_train_config(parse_config(tiny_config(), "tiny.yaml", overrides));
}

// The micro-batches of step number `step` of a training with this config.
inline std::vector<Batch> batches_of_step(const Dataset& data, const TrainConfig& config, int64_t step) {
  std::vector<Batch> batches;
  for (int64_t i = 0; i < config.trainer.accumulate; ++i) {
    batches.push_back(data.training_batch(((step - 1) * config.trainer.accumulate + i) * config.trainer.batch_size));
  }
  return batches;
}

// Writes a file of `count` uint32 tokens that are their own positions, and gives the section `data` that reads it with
// a vocabulary of `count`. So batches show where their windows lie.
inline std::string write_positions(const std::string& path, uint32_t count, const std::string& validation_fraction) {
  std::ofstream file(path, std::ios::binary);
  for (uint32_t i = 0; i < count; ++i) file.write(reinterpret_cast<const char*>(&i), sizeof i);
  return "data={type: tokens, token_width: uint32, path: '" + path + "', validation_fraction: " + validation_fraction +
         "}";
}

// Writes a text of few letters to the file `path`, and gives the overrides with which the tiny model learns it: from
// the ln 256 = 5.5 nats a byte of a model that knows nothing to at most 0.4 in 60 steps, whatever the seed. Which
// letters there are is worth 1.5 nats, which of them follows which 0.4.
inline std::vector<std::string> learn_text(const std::string& path, const std::string& steps) {
  std::ofstream text(path);
  for (int i = 0; i < 200; ++i) text << "abcabdabe";
  return {"data={type: text, path: \"" + path + "\"}", "model.vocab_size=256", "optimizer.lr=1.0e-2",
          "schedule.warmup_steps=0", "trainer.steps=" + steps};
}
constexpr double kLearnedLoss = 1.0;
constexpr double kUnlearnedLoss = 5.0;

// The configs of configs/models, sorted by name; toy.yaml and small.yaml are their bases and no configs.
inline std::vector<std::filesystem::path> model_configs() {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::filesystem::path(HEDDLE_SOURCE_DIR) / "configs/models")) {
    const std::string stem = entry.path().stem().string();
    if (entry.path().extension() == ".yaml" && stem != "toy" && stem != "small") paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// A config of configs/models made so small that a step takes about a millisecond, on the text of tests/golden.
inline TrainConfig small_model_config(const std::filesystem::path& path, std::vector<std::string> overrides = {}) {
  // 6 and 4 heads alike divide the dim, and their features are even.
  std::vector<std::string> all = {"data.path='" + std::string(HEDDLE_SOURCE_DIR) + "/tests/golden/text.txt'",
                                  "model.dim=24",
                                  "model.layers=4",
                                  "model.channel.hidden=20",
                                  "schedule.warmup_steps=3",
                                  "trainer.steps=10",
                                  "trainer.batch_size=2",
                                  "trainer.sequence_length=24",
                                  "trainer.dtype=float32",
                                  "trainer.eval_every=5",
                                  "trainer.eval_batches=2",
                                  "trainer.checkpoint_every=5",
                                  "trainer.sample={prompt: 'And ', tokens: 12, temperature: 0.8}"};
  all.insert(all.end(), overrides.begin(), overrides.end());
  return load_train_config(path.string(), all);
}

}  // namespace heddle::testing
