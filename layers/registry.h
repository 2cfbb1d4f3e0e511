// The layers that YAML knows by name: one explicit table a kind, in registry.cc.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "core/config/config_node.h"
#include "layers/modules/module.h"
#include "layers/operator.h"
#include "layers/ops/norm.h"

namespace heddle {

std::span<const OperatorEntry> operators();
// Throws Error with the nearest name.
const OperatorEntry& find_operator(const std::string& name);
// Applies the operator after a check that the inputs are those it knows and that none is missing.
NamedVariables apply_operator(const OperatorEntry& entry, Tape& tape, const ConfigNode& options,
                              const NamedVariables& inputs);

// The parts of a model by the `type` of their section. Unknown types and keys are ConfigErrors.
std::unique_ptr<Norm> make_norm(const ConfigNode& section, const ModuleBuilder& builder, int64_t dim);
std::unique_ptr<Mixer> make_mixer(const ConfigNode& section, const ModuleBuilder& builder, const BlockPlace& place);
std::unique_ptr<Channel> make_channel(const ConfigNode& section, const ModuleBuilder& builder, const BlockPlace& place);

}  // namespace heddle
