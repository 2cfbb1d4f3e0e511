// The section `optimizer` of a training config, and what it says about each parameter. docs/config.md#optimizer
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/autograd/parameter.h"

namespace heddle {

class ConfigFields;

enum class OptimizerType { adamw, lion, sgd, muon };

// How far Muon moves a matrix of (rows, cols), relative to lr: `original` max(1, rows / cols)^0.5, as Keller Jordan
// does; `match_rms_adamw` 0.2 max(rows, cols)^0.5, which makes steps as large as those of AdamW (Liu et al.,
// arXiv:2502.16982).
enum class MuonScale { original, match_rms_adamw };

// Parameters whose names match a glob pattern: * is any text, ? any character, [ab] one of these.
struct ParameterGroup {
  std::string pattern;                 // "blocks.*.mixer.qkv.weight"
  std::optional<double> lr_scale;      // factor of the learning rate; none: what else holds
  std::optional<double> weight_decay;  // none: what else holds
};

// The defaults are those of AdamW; default_optimizer() knows those of the others.
struct OptimizerConfig {
  OptimizerType type = OptimizerType::adamw;
  double lr = 1e-3;                           // the highest learning rate
  std::array<double, 2> betas = {0.9, 0.95};  // adamw, lion, and what is left of Muon to AdamW
  double eps = 1e-8;                          // adamw, and as above
  double weight_decay = 0.1;                  // of matrices; with sgd coupled (added to the gradient), else decoupled
  double clip_norm = 1.0;                     // largest norm of all gradients together; 0: no clipping
  double momentum = 0.0;                      // sgd, muon
  bool nesterov = false;                      // sgd, muon
  int64_t newton_schulz_steps = 5;            // muon
  MuonScale scale = MuonScale::original;      // muon
  double adamw_lr = 1e-3;                     // muon: the highest rate of what is left to AdamW
  std::vector<ParameterGroup> groups = {};    // of those that match a name, the last that says a value counts
};

OptimizerConfig default_optimizer(OptimizerType type);

// "adamw", ...
std::string name(OptimizerType type);

// Reads or writes the section `optimizer`.
void describe(ConfigFields& fields, OptimizerConfig& optimizer);

// How one parameter is updated.
struct ParameterRule {
  bool is_orthogonalized = false;  // by Muon; never with another type
  double lr_scale = 1.0;           // its learning rate, relative to that of the step
  double weight_decay = 0.0;

  bool operator==(const ParameterRule&) const = default;
};

// Without groups, parameters with Parameter::weight_decay get that of the config, the others none. Muon takes those of
// them that are matrices, but for `embedding.weight` and `head.weight`, and leaves the rest to AdamW.
ParameterRule rule_of(const Parameter& parameter, const OptimizerConfig& config);

// A group whose pattern matches the name of no parameter.
struct UnmatchedGroup {
  size_t index = 0;
  std::string message;  // "found 'blocks.*.qvk', which matches no parameter; did you mean ...?"
};
std::optional<UnmatchedGroup> find_unmatched_group(const ParameterSet& parameters, const OptimizerConfig& config);

}  // namespace heddle
