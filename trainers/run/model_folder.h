// The weights of a model in a folder as Hugging Face lays it out: config.json beside model.safetensors, or beside
// shards model-00001-of-00003.safetensors and model.safetensors.index.json, which says where each tensor is.
//                                                                                                     docs/export.md
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/io/safetensors.h"
#include "trainers/model/model_config.h"

namespace heddle {

inline constexpr const char* kModelConfigFile = "config.json";

// How the tensors of such a folder are called and cut: as ours, or as those of RetNetForCausalLM in
// flash-linear-attention.
enum class WeightNames { heddle, retnet };

// The masters of a model as the tensors of a folder; they share memory with the masters but for those that are scaled.
// With WeightNames::retnet the model must have no retnet_obstacle(), and its v_proj are multiplied by
// retnet_value_scale() (trainers/model/retnet_names.h).
std::vector<NamedTensor> exported_weights(Context& context, const ModelConfig& model, const ParameterSet& parameters,
                                          WeightNames names);

// Writes the tensors in their order, and the index when there are several files. A file ends before the tensor with
// which its data would have more than `shard_bytes` bytes; a tensor is never cut.
void write_weights(Context& context, const std::filesystem::path& folder, std::span<const NamedTensor> tensors,
                   uint64_t shard_bytes);

// Whether the folder is such a one, and no run and no checkpoint.
bool is_model_folder(const std::filesystem::path& folder);

// Reads the weights of a folder, whose config.json says how they are called, into the masters of a model and rounds
// them to its compute dtype. The tensors may be of any floating dtype. Throws Error that names every tensor which is
// missing, has another shape, or is no part of the model, or says what of the files is damaged.
void read_weights(Context& context, const std::filesystem::path& folder, const ModelConfig& model,
                  const ParameterSet& parameters);

}  // namespace heddle
