// A norm as a part of a model: its options and its parameters.                          docs/layers.md#normalization
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"
#include "layers/modules/module.h"
#include "layers/ops/norm.h"

namespace heddle {

// The layers of this family. They differ in what they subtract, in their groups and in their default parameters.
enum class NormType { layer_norm, group_norm, rms_norm, group_rms_norm, srms_norm, group_srms_norm };

std::string_view name(NormType type);
// Each with its name, in the order of the enumeration.
const Choices<NormType>& norm_choices();
// Whether the type has more than one group, so that their number must be given.
bool has_groups(NormType type);

class Norm {
 public:
  struct Options {
    NormType type = NormType::rms_norm;
    NormOptions norm;
    bool weight = true;  // starts at 1
    bool bias = false;   // starts at 0

    // What the type says: center, weight, bias.
    static Options of(NormType type);
  };

  Norm(const Options& options, const ModuleBuilder& builder, int64_t dim);
  // residual and gate may be undefined. Throws Error when the last dimension of x is another than `dim`.
  Normed forward(Tape& tape, const Variable& x, const Variable& residual = {}, const Variable& gate = {}) const;

 private:
  Options options_;
  int64_t dim_;
  Parameter* weight_ = nullptr;
  Parameter* bias_ = nullptr;
};

// Reads or writes the section {type, eps, scale, groups, weight, bias} of a model config; `dim` may be said, and must
// then be that of the model.
void describe_norm(ConfigFields& fields, const ModelSize& model, Norm::Options& options);

// The keys that the section of a model and the options of the operator have in common: eps, scale, groups.
void describe_norm_values(ConfigFields& fields, NormType type, NormOptions& options);
// Throws ConfigError when the section says another `dim`, or a number of groups that does not divide this one.
void check_norm_dim(const ConfigNode& section, int64_t dim, const NormOptions& options);

}  // namespace heddle
