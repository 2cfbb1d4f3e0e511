// Feed-forward network.   y = w2 act(w1 x)                                                    docs/layers.md#ffn
#pragma once

#include "core/autograd/tape.h"
#include "core/config/config_node.h"
#include "layers/modules/module.h"
#include "layers/operator.h"
#include "layers/ops/activation.h"
#include "layers/ops/linear.h"

namespace heddle {

// The operator of the registry: inputs x, w1 (hidden, dim), w2 (dim, hidden); output y; options act and hidden, which
// the weights say too.
NamedVariables apply_ffn(Tape& tape, const ConfigNode& options, const NamedVariables& inputs);

// A channel mixer with the parameters `w1.weight` (hidden, dim) and `w2.weight` (dim, hidden). No biases.
class Ffn : public Channel {
 public:
  struct Options {
    int64_t hidden = 0;
    Activation act = Activation::relu;

    // The section {type, hidden, act} of a model config, to its finish().
    static Options read(const ConfigNode& section);
  };

  Ffn(const Options& options, const ModuleBuilder& builder, int64_t dim);
  Variable forward(Tape& tape, const Variable& x) const override;

 private:
  Options options_;
  Linear w1_, w2_;
};

}  // namespace heddle
