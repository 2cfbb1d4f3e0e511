// One operator on given tensors, for comparison with other frameworks: what `heddle run-layer` does.
//                                                                                                docs/run_layer.md
// Inputs, outputs and gradients go by the operator's names: x, weight, ...; y, r, o, final_state; d_y upstream, d_x
// computed.
#pragma once

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/config/config_node.h"
#include "core/io/safetensors.h"
#include "core/runtime/context.h"
#include "layers/registry.h"

namespace heddle {

// `layer: NAME` and `options: {...}`: the operator, and its function with these options.
struct LayerSpec {
  const Operator* layer = nullptr;  // of the registry, which must outlive this
  OperatorFunction function;
};

// Both throw ConfigError.
LayerSpec read_layer_spec(const ConfigNode& node, const Registry& registry = built_in_registry());
LayerSpec load_layer_spec(const std::string& path, const Registry& registry = built_in_registry());

// Runs the operator forward; with an upstream gradient (d_y, d_r, d_o, d_final_state) among `given` also backward,
// where outputs without one get zeros. Returns the outputs, then d_INPUT for every real input that the outputs depend
// on. With `dtype` everything is rounded to it before the run (angles, decays and states to its accumulate type) and
// after it. Without, the dtype is that of the first input, results keep theirs, and a value that would have to be
// rounded is an error. `disturbance` is for Tape::disturb_numbers(). Throws Error naming the tensor, and ConfigError
// for bad options.
std::vector<NamedTensor> run_layer(Context& context, const LayerSpec& spec, std::span<const NamedTensor> given,
                                   std::optional<DType> dtype = {}, Tape::Disturbance disturbance = {});

// The same from file to file; the output file is there whole or not at all.
void run_layer_files(Context& context, const LayerSpec& spec, const std::filesystem::path& inputs,
                     const std::filesystem::path& outputs, std::optional<DType> dtype = {});

}  // namespace heddle
