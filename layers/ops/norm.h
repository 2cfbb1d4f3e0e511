// Fused normalization with residual and gate.                                        docs/layers.md#normalization
//   r = x + residual;  p = gate before ? r * act(gate) : r;  q = center ? p - mean(p) : p
//   y = scale * q / sqrt(mean(q^2) + eps) * weight + bias;   y = gate after ? y * act(gate) : y
// x, residual, gate, y, r: (..., dim); weight, bias: (dim); all of one floating dtype. Statistics are taken over
// `groups` groups of dim / groups features, from the rounded r.
#pragma once

#include <string_view>

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"
#include "kernels/norm/norm.h"
#include "layers/modules/module.h"
#include "layers/operator.h"

namespace heddle {

using kernels::Activation;
using kernels::GatePosition;

// The layers of this family. They differ in what they subtract, in their groups and in their default parameters.
enum class NormType { layer_norm, group_norm, rms_norm, group_rms_norm, srms_norm, group_srms_norm };

std::string_view name(NormType type);
// All of them, in the order of the enumeration.
const std::vector<std::string>& norm_names();

struct NormOptions : kernels::NormOptions {
  // Whether r is an output. Without it, backward computes r again from x and residual.
  bool return_residual = true;
};

// Optional inputs; undefined Variables are not there.
struct NormInputs {
  Variable residual;
  Variable gate;
  Variable weight;
  Variable bias;
};

struct Normed {
  Variable y;
  Variable r;  // the updated residual x + residual; x itself when there was none; undefined if not returned
};

// Throws Error naming `layer`, the argument and both shapes when shapes or dtypes do not fit.
Normed norm(Tape& tape, const Variable& x, const NormInputs& inputs, const NormOptions& options,
            std::string_view layer = "norm");

// The operator of the registry: inputs x, residual, gate, weight, bias; outputs y, r. An option `weight`, `bias` or
// `residual` must agree with the inputs that are given.
template <NormType type>
NamedVariables apply_norm(Tape& tape, const ConfigNode& options, const NamedVariables& inputs);

// A norm as a part of a model: its options and its parameters.
class Norm {
 public:
  struct Options {
    std::string type = "rms_norm";
    NormOptions norm;
    bool weight = true;
    bool bias = false;

    // What the type says: center, weight, bias.
    static Options of(NormType type);
    // The section {type, dim, eps, scale, groups, weight, bias, return_residual} of a model config, to its finish().
    static Options read(const ConfigNode& section, int64_t dim);
  };

  Norm(const Options& options, const ModuleBuilder& builder, int64_t dim);
  // residual and gate may be undefined.
  Normed forward(Tape& tape, const Variable& x, const Variable& residual = {}, const Variable& gate = {}) const;

 private:
  Options options_;
  Parameter* weight_ = nullptr;
  Parameter* bias_ = nullptr;
};

}  // namespace heddle
