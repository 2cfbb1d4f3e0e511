// Matrix product with a weight.   y = x weight^T + bias                                     docs/layers.md#linear
// x: (..., in), rows may be strided; weight: (out, in); bias: (out); y: (..., out); all of one floating dtype.
// Backward adds into the gradients of weight and bias inside the product, without a temporary.
#pragma once

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"
#include "layers/modules/module.h"
#include "layers/operator.h"

namespace heddle {

// bias may be undefined. Throws Error naming the argument and both shapes when shapes or dtypes do not fit.
Variable linear(Tape& tape, const Variable& x, const Variable& weight, const Variable& bias = {});

// The operator of the registry: inputs x, weight, bias; output y; no options.
NamedVariables apply_linear(Tape& tape, const ConfigNode& options, const NamedVariables& inputs);

// A linear map as a part of a model: `weight` and, if asked for, `bias`.
class Linear {
 public:
  struct Options {
    bool bias = false;
    // Standard deviation of the weights at the start; 0 means 1 / sqrt(in), which keeps the size of what goes through.
    // The bias starts at 0.
    double init_std = 0.0;
  };

  Linear(const Options& options, const ModuleBuilder& builder, int64_t in, int64_t out);
  Variable forward(Tape& tape, const Variable& x) const;

 private:
  Parameter* weight_ = nullptr;
  Parameter* bias_ = nullptr;
};

}  // namespace heddle
