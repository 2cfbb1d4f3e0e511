// A model of retention mixers as RetNetForCausalLM of flash-linear-attention (github.com/fla-org) knows it.
//                                                                                                     docs/export.md
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/io/safetensors.h"
#include "trainers/model/model_config.h"

namespace heddle {

// Why RetNetForCausalLM cannot compute what this model does: "model.norm.type is srms_norm, expected rms_norm"; "" when
// it can.
std::string retnet_obstacle(const ModelConfig& model);

// The fields of its config.json that say what it computes; the model must have no obstacle.
nlohmann::ordered_json retnet_config(const ModelConfig& model);

// What v_proj is multiplied by in that class. It has one eps, norm_eps, for all norms, and ours has mixer.eps for the
// norm of a head o, which is linear in v: o / sqrt(mean(o^2) + mixer.eps) is s o / sqrt(mean((s o)^2) + norm_eps) with
// s = sqrt(norm_eps / mixer.eps). 1 where both are equal.
double retnet_value_scale(const ModelConfig& model, double norm_eps);

// The masters under the names of its state_dict; w12 of a GLU is the two tensors gate_proj and up_proj. They share
// memory with the masters.
std::vector<NamedTensor> retnet_weights(const ParameterSet& parameters);

}  // namespace heddle
