// Small training configs for tests.
#pragma once

#include <string>
#include <vector>

#include "core/config/config_load.h"
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

}  // namespace heddle::testing
