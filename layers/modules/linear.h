// A matrix product with a weight as a part of a model.                                    docs/layers.md#linear
#pragma once

#include <cstdint>
#include <initializer_list>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"
#include "layers/modules/module.h"

namespace heddle {

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
  // What each of these gives, as parts of one tensor: linear() of several weights. None of them has a bias.
  static std::vector<Variable> forward(Tape& tape, const Variable& x, std::initializer_list<const Linear*> maps);
  // The weight as a leaf, for an operator that multiplies by it itself.
  Variable weight(Tape& tape) const;

 private:
  Parameter* weight_ = nullptr;
  Parameter* bias_ = nullptr;
};

}  // namespace heddle
