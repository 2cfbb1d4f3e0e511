#include "layers/registry.h"

#include <algorithm>

#include "core/config/nearest_name.h"
#include "core/runtime/error.h"
#include "layers/modules/ffn.h"
#include "layers/modules/mixers/lightning.h"
#include "layers/ops/activation.h"
#include "layers/ops/cross_entropy.h"
#include "layers/ops/embedding.h"
#include "layers/ops/glu.h"
#include "layers/ops/linear.h"
#include "layers/ops/linear_attention.h"
#include "layers/ops/lrpe_cosine.h"
#include "layers/ops/lrpe_rotate.h"

namespace heddle {

// Adding an operator is adding a row.
std::span<const OperatorEntry> operators() {
  static const std::vector<std::string> norm_inputs = {"residual", "gate", "weight", "bias"};
  static const std::vector<OperatorEntry> table = {
      {"layer_norm", {"x"}, norm_inputs, {"y", "r"}, apply_norm<NormType::layer_norm>},
      {"group_norm", {"x"}, norm_inputs, {"y", "r"}, apply_norm<NormType::group_norm>},
      {"rms_norm", {"x"}, norm_inputs, {"y", "r"}, apply_norm<NormType::rms_norm>},
      {"group_rms_norm", {"x"}, norm_inputs, {"y", "r"}, apply_norm<NormType::group_rms_norm>},
      {"srms_norm", {"x"}, norm_inputs, {"y", "r"}, apply_norm<NormType::srms_norm>},
      {"group_srms_norm", {"x"}, norm_inputs, {"y", "r"}, apply_norm<NormType::group_srms_norm>},
      {"linear", {"x", "weight"}, {"bias"}, {"y"}, apply_linear},
      {"embedding", {"tokens", "weight"}, {}, {"y"}, apply_embedding, {}, {"tokens"}},
      {"activation", {"x"}, {}, {"y"}, apply_activation},
      {"glu_product", {"a", "b"}, {}, {"y"}, apply_glu_product},
      {"glu", {"x", "w12", "w3"}, {}, {"y"}, apply_glu},
      {"ffn", {"x", "w1", "w2"}, {}, {"y"}, apply_ffn},
      {"cross_entropy", {"logits", "targets"}, {}, {"loss"}, apply_cross_entropy, {}, {"targets"}},
      {"linear_attention",
       {"q", "k", "v"},
       {"log_decay", "initial_state"},
       {"o", "final_state"},
       apply_linear_attention,
       {"log_decay", "initial_state"}},
      {"lrpe_rotate", {"x", "theta"}, {}, {"y"}, apply_lrpe_rotate, {"theta"}},
      {"lrpe_cosine", {"x", "theta"}, {}, {"y"}, apply_lrpe_cosine, {"theta"}},
  };
  return table;
}

const OperatorEntry& find_operator(const std::string& name) {
  std::vector<std::string> names;
  for (const OperatorEntry& entry : operators()) {
    if (entry.name == name) return entry;
    names.push_back(entry.name);
  }
  const std::string hint = did_you_mean(name, names);
  fail("no operator is called '{}'{}", name, hint.empty() ? ", expected one of " + join_names(names) : hint);
}

NamedVariables apply_operator(const OperatorEntry& entry, Tape& tape, const ConfigNode& options,
                              const NamedVariables& inputs) {
  for (const std::string& name : entry.required_inputs) {
    check(inputs.contains(name), "[{}] input {} is missing", entry.name, name);
  }
  std::vector<std::string> known = entry.required_inputs;
  known.insert(known.end(), entry.optional_inputs.begin(), entry.optional_inputs.end());
  for (const auto& [name, variable] : inputs) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string hint = did_you_mean(name, known);
    fail("[{}] unknown input '{}'{}", entry.name, name, hint.empty() ? ", expected " + join_names(known) : hint);
  }
  return entry.apply(tape, options, inputs);
}

// Adding a mixer is adding a row.
std::unique_ptr<Mixer> make_mixer(const ConfigNode& section, const ModuleBuilder& builder, const BlockPlace& place) {
  using Make = std::unique_ptr<Mixer> (*)(const ConfigNode&, const ModuleBuilder&, const BlockPlace&);
  return section.require_choice<Make>("type", {{"lightning", make_lightning}})(section, builder, place);
}

std::unique_ptr<Norm> make_norm(const ConfigNode& section, const ModuleBuilder& builder, int64_t dim) {
  return std::make_unique<Norm>(Norm::Options::read(section, dim), builder, dim);
}

std::unique_ptr<Channel> make_channel(const ConfigNode& section, const ModuleBuilder& builder,
                                      const BlockPlace& place) {
  if (section.require_name("type", {"glu", "ffn"}) == "glu") {
    return std::make_unique<Glu>(Glu::Options::read(section), builder, place.dim);
  }
  return std::make_unique<Ffn>(Ffn::Options::read(section), builder, place.dim);
}

}  // namespace heddle
