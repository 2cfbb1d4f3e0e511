// A trained model as a folder that other programs load.                                                 docs/export.md
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "layers/registry.h"
#include "trainers/run/checkpoint.h"
#include "trainers/run/model_folder.h"
#include "trainers/train_config.h"

namespace heddle {

struct ExportOptions {
  std::filesystem::path folder;  // must be new, empty, or what an earlier export wrote, which is replaced
  WeightNames names = WeightNames::heddle;
  uint64_t shard_bytes = 5'000'000'000;  // of the tensors in one file
  int64_t logits = 0;                    // tokens whose logits are written beside the model; 0: no such file
};

// The files of such a folder that are no weights.
inline constexpr const char* kModelingFile = "modeling_heddle.py";
inline constexpr const char* kLogitsFile = "logits.safetensors";

// Throws UsageError, which names what is in the way, when the folder cannot take an export, so that this is known
// before anything is loaded.
void check_export_folder(const std::filesystem::path& folder);

// Writes the weights of a checkpoint, config.json, tokenizer.model where the model reads pieces and their file is
// there, and, with WeightNames::heddle, modeling_heddle.py, whole or not at all. The weights are the masters: float32,
// or float64 for a model of float64. With `logits` tokens, drawn from the seed of `config`, logits.safetensors holds
// them, "tokens" int32 (1, N), and what this model computes of them, "logits" (1, N, vocab_size) of the dtype of the
// weights. The weights are those that load_model() takes: with trainer.ema the average. `config` is that of the
// checkpoint, with what the user has changed. Returns the names of the files. Throws UsageError for a model that
// RetNetForCausalLM cannot compute, and Error.
std::vector<std::string> export_model(const Checkpoint& checkpoint, const TrainConfig& config,
                                      const ExportOptions& options, const Registry& registry = built_in_registry());

}  // namespace heddle
