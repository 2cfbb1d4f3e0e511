#include "trainers/optimizer_config.h"

#include <fmt/format.h>
#include <fnmatch.h>

#include <algorithm>
#include <cctype>

#include "core/config/config_fields.h"
#include "core/config/nearest_name.h"

namespace heddle {
namespace {

const Choices<OptimizerType>& types() {
  static const Choices<OptimizerType> types = {{"adamw", OptimizerType::adamw},
                                               {"lion", OptimizerType::lion},
                                               {"sgd", OptimizerType::sgd},
                                               {"muon", OptimizerType::muon}};
  return types;
}

bool matches(const ParameterGroup& group, const std::string& name) {
  return fnmatch(group.pattern.c_str(), name.c_str(), 0) == 0;
}

// "blocks.*.mixer.qkv.weight" of "blocks.3.mixer.qkv.weight".
std::string for_all_blocks(const std::string& name) {
  std::string general;
  for (size_t begin = 0; begin < name.size();) {
    const size_t end = std::min(name.find('.', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    const bool is_number = std::all_of(part.begin(), part.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
    general += (begin > 0 ? "." : "") + (is_number ? "*" : part);
    begin = end + 1;
  }
  return general;
}

void describe_betas(ConfigFields& fields, OptimizerConfig& optimizer) {
  std::vector<double> betas(optimizer.betas.begin(), optimizer.betas.end());
  fields.field("betas", betas, Range::from_below(0, 1));
  if (betas.size() != optimizer.betas.size()) {
    fields.fail("betas", "found a list of " + std::to_string(betas.size()) + ", expected two numbers");
  }
  optimizer.betas = {betas[0], betas[1]};
}

void describe_momentum(ConfigFields& fields, OptimizerConfig& optimizer) {
  fields.field("momentum", optimizer.momentum, Range::from_below(0, 1));
  if (optimizer.type == OptimizerType::muon) {
    fields.field_or("nesterov", optimizer.nesterov, optimizer.momentum != 0.0);
  } else {
    fields.field("nesterov", optimizer.nesterov);
  }
  if (fields.reads() && optimizer.nesterov && optimizer.momentum == 0.0) {
    fields.fail("nesterov", "found true, expected false: momentum is 0");
  }
}

void describe_muon(ConfigFields& fields, OptimizerConfig& optimizer) {
  fields.field("newton_schulz_steps", optimizer.newton_schulz_steps, Range::between(1, 99));
  fields.choice("scale", optimizer.scale,
                {{"original", MuonScale::original}, {"match_rms_adamw", MuonScale::match_rms_adamw}});
  fields.section("adamw", [&](ConfigFields& section) {
    section.field("lr", optimizer.adamw_lr, Range::positive());
    describe_betas(section, optimizer);
    section.field("eps", optimizer.eps, Range::positive());
  });
}

void describe(ConfigFields& fields, ParameterGroup& group) {
  fields.required("pattern", group.pattern);
  fields.optional("lr_scale", group.lr_scale, Range::at_least(0));
  fields.optional("weight_decay", group.weight_decay, Range::at_least(0));
  // A misspelt key is an error of its own.
  if (fields.reads() && fields.node().keys().size() == 1) {
    fields.fail("pattern",
                "found a group of parameters without lr_scale and weight_decay, expected one of them or both");
  }
}

// Keys that only other types have.
void refuse_others(const ConfigFields& fields, OptimizerType type) {
  const std::string reason = "type " + name(type) + " does not have it";
  const bool has_betas = type == OptimizerType::adamw || type == OptimizerType::lion;
  const bool has_momentum = type == OptimizerType::sgd || type == OptimizerType::muon;
  const std::string in_section = type == OptimizerType::muon ? "with type muon it is a key of optimizer.adamw" : reason;
  if (!has_betas) fields.refuse("betas", in_section);
  if (type != OptimizerType::adamw) fields.refuse("eps", in_section);
  if (!has_momentum) {
    fields.refuse("momentum", reason);
    fields.refuse("nesterov", reason);
  }
  if (type == OptimizerType::muon) return;
  for (const char* key : {"newton_schulz_steps", "scale", "adamw"}) fields.refuse(key, reason);
}

}  // namespace

OptimizerConfig default_optimizer(OptimizerType type) {
  OptimizerConfig config{.type = type};
  switch (type) {
    case OptimizerType::adamw:
      break;
    case OptimizerType::lion:
      config.lr = 1e-4;
      config.betas = {0.9, 0.99};
      config.weight_decay = 1.0;
      break;
    case OptimizerType::sgd:
      config.lr = 0.1;
      config.weight_decay = 0.0;
      config.momentum = 0.9;
      break;
    case OptimizerType::muon:
      config.lr = 0.02;
      config.momentum = 0.95;
      config.nesterov = true;
      break;
  }
  return config;
}

std::string name(OptimizerType type) {
  const auto named = std::find_if(types().begin(), types().end(), [&](const auto& row) { return row.second == type; });
  return named->first;
}

void describe(ConfigFields& fields, OptimizerConfig& optimizer) {
  fields.choice("type", optimizer.type, types());
  if (fields.reads()) optimizer = default_optimizer(optimizer.type);
  const OptimizerType type = optimizer.type;
  fields.field("lr", optimizer.lr, Range::positive());
  if (type == OptimizerType::adamw || type == OptimizerType::lion) describe_betas(fields, optimizer);
  if (type == OptimizerType::adamw) fields.field("eps", optimizer.eps, Range::positive());
  if (type == OptimizerType::sgd || type == OptimizerType::muon) describe_momentum(fields, optimizer);
  if (type == OptimizerType::muon) describe_muon(fields, optimizer);
  fields.field("weight_decay", optimizer.weight_decay, Range::at_least(0));
  fields.field("clip_norm", optimizer.clip_norm, Range::at_least(0));
  fields.optional_list("groups", optimizer.groups,
                       [](ConfigFields& section, ParameterGroup& group) { describe(section, group); });
  refuse_others(fields, type);
}

ParameterRule rule_of(const Parameter& parameter, const OptimizerConfig& config) {
  const bool is_table = parameter.name == "embedding.weight" || parameter.name == "head.weight";
  ParameterRule rule;
  rule.is_orthogonalized =
      config.type == OptimizerType::muon && parameter.weight_decay && parameter.shape.rank() == 2 && !is_table;
  if (parameter.weight_decay) rule.weight_decay = config.weight_decay;
  for (const ParameterGroup& group : config.groups) {
    if (!matches(group, parameter.name)) continue;
    rule.lr_scale = group.lr_scale.value_or(rule.lr_scale);
    rule.weight_decay = group.weight_decay.value_or(rule.weight_decay);
  }
  if (config.type == OptimizerType::muon && !rule.is_orthogonalized) rule.lr_scale *= config.adamw_lr / config.lr;
  return rule;
}

std::optional<UnmatchedGroup> find_unmatched_group(const ParameterSet& parameters, const OptimizerConfig& config) {
  const auto& all = parameters.all();
  for (size_t i = 0; i < config.groups.size(); ++i) {
    const ParameterGroup& group = config.groups[i];
    if (std::any_of(all.begin(), all.end(),
                    [&](const Parameter& parameter) { return matches(group, parameter.name); })) {
      continue;
    }
    std::vector<std::string> general, names;
    for (const Parameter& parameter : all) {
      names.push_back(parameter.name);
      const std::string name = for_all_blocks(parameter.name);
      if (std::find(general.begin(), general.end(), name) == general.end()) general.push_back(name);
    }
    names.insert(names.end(), general.begin(), general.end());
    const std::string nearest = did_you_mean(group.pattern, names);
    return UnmatchedGroup{i, fmt::format("found '{}', which matches no parameter{}", group.pattern,
                                         nearest.empty() ? "; there are " + join_names(general) : nearest)};
  }
  return std::nullopt;
}

}  // namespace heddle
