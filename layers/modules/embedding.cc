#include "layers/modules/embedding.h"

#include <cstdint>

#include "layers/ops/embedding.h"

namespace heddle {

Embedding::Embedding(const Options& options, const ModuleBuilder& builder, int64_t vocabulary, int64_t dim)
    : weight_(builder.add("weight", {vocabulary, dim}, Initializer::normal(options.init_std))) {}

Variable Embedding::forward(Tape& tape, const Tensor& tokens) const { return embedding(tape, tokens, weight(tape)); }

Variable Embedding::weight(Tape& tape) const { return ParameterSet::on(tape, *weight_); }

}  // namespace heddle
