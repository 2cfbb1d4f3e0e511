// Gated linear unit.   y = w3 (act(w1 x) * (w2 x))                                            docs/layers.md#glu
// Source: Shazeer, "GLU variants improve transformer", arXiv:2002.05202.
#pragma once

#include "core/autograd/tape.h"
#include "core/config/config_node.h"
#include "layers/modules/module.h"
#include "layers/operator.h"
#include "layers/ops/activation.h"
#include "layers/ops/linear.h"

namespace heddle {

// The product alone: y = act(a) * b. a, b, y: (..., dim) of one floating dtype; rows of a and b may be strided, as the
// halves of one projection are.
Variable glu(Tape& tape, const Variable& a, const Variable& b, Activation act = Activation::silu);

// The operators of the registry. glu_product: inputs a, b; output y; option act. glu: inputs x, w12 (2 * hidden, dim),
// in which w1 lies above w2, and w3 (dim, hidden); output y; options act and hidden, which the weights say too.
NamedVariables apply_glu_product(Tape& tape, const ConfigNode& options, const NamedVariables& inputs);
NamedVariables apply_glu(Tape& tape, const ConfigNode& options, const NamedVariables& inputs);

// The unit as the channel mixer of a block. w1 and w2 are one weight `w12.weight` (2 * hidden, dim), w1 first, so that
// x is read once; `w3.weight` is (dim, hidden). No biases.
class Glu : public Channel {
 public:
  struct Options {
    int64_t hidden = 0;
    Activation act = Activation::silu;

    // The section {type, hidden, act} of a model config, to its finish().
    static Options read(const ConfigNode& section);
  };

  Glu(const Options& options, const ModuleBuilder& builder, int64_t dim);
  Variable forward(Tape& tape, const Variable& x) const override;

 private:
  Options options_;
  Linear w12_, w3_;
};

}  // namespace heddle
