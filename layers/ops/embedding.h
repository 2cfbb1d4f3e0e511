// Rows of a table by token.   y[...] = weight[tokens[...]]                                docs/layers.md#embedding
// tokens: int32, any shape, dense; weight: (vocabulary, dim); y: (shape of tokens, dim). Backward adds the rows of one
// token in the order of their places: the same bits for any number of threads.
#pragma once

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"
#include "layers/modules/module.h"
#include "layers/operator.h"

namespace heddle {

// Throws Error when shapes or dtypes do not fit and, on the CPU, for a token outside the vocabulary.
Variable embedding(Tape& tape, const Tensor& tokens, const Variable& weight);

// The operator of the registry: inputs tokens, weight; output y; no options.
NamedVariables apply_embedding(Tape& tape, const ConfigNode& options, const NamedVariables& inputs);

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
