// The table of token vectors as a part of a model.                                     docs/layers.md#embedding
#pragma once

#include <cstdint>

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"
#include "layers/modules/module.h"

namespace heddle {

// The table as a part of a model: the parameter `weight`.
class Embedding {
 public:
  struct Options {
    double init_std = 0.02;  // standard deviation at the start
  };

  Embedding(const Options& options, const ModuleBuilder& builder, int64_t vocabulary, int64_t dim);
  Variable forward(Tape& tape, const Tensor& tokens) const;
  // The table as a leaf, for a head that shares it: linear(tape, x, embedding.weight(tape)).
  Variable weight(Tape& tape) const;

 private:
  Parameter* weight_ = nullptr;
};

}  // namespace heddle
