#include "layers/modules/linear.h"

#include <cmath>
#include <cstdint>

#include "core/runtime/error.h"
#include "layers/ops/linear.h"

namespace heddle {

Linear::Linear(const Options& options, const ModuleBuilder& builder, int64_t in, int64_t out) {
  const double init_std = options.init_std > 0.0 ? options.init_std : 1.0 / std::sqrt(static_cast<double>(in));
  weight_ = builder.add("weight", {out, in}, Initializer::normal(init_std));
  if (options.bias) bias_ = builder.add("bias", {out}, Initializer::constant(0.0));
}

Variable Linear::forward(Tape& tape, const Variable& x) const {
  return linear(tape, x, weight(tape), bias_ != nullptr ? ParameterSet::on(tape, *bias_) : Variable{});
}

std::vector<Variable> Linear::forward(Tape& tape, const Variable& x, std::initializer_list<const Linear*> maps) {
  std::vector<Variable> weights;
  for (const Linear* map : maps) {
    check(map->bias_ == nullptr, "[Linear::forward] found a map with a bias among several, expected maps without one");
    weights.push_back(map->weight(tape));
  }
  return linear(tape, x, weights);
}

Variable Linear::weight(Tape& tape) const { return ParameterSet::on(tape, *weight_); }

}  // namespace heddle
