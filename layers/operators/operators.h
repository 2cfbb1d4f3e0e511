// The rows of the built-in registry: what YAML, run-layer, gradcheck, benchmarks and tests know of each operator. One
// source an operator, or a family: its options, its inputs and outputs, its cases with their unfused reference.
#pragma once

#include <vector>

#include "layers/operator.h"

namespace heddle {

std::vector<Operator> norm_operators();  // layer_norm, group_norm, rms_norm, group_rms_norm, srms_norm, group_srms_norm
Operator linear_operator();
Operator embedding_operator();
Operator activation_operator();
Operator glu_product_operator();
Operator glu_operator();
Operator ffn_operator();
Operator dropout_operator();
Operator cross_entropy_operator();
Operator log_sigmoid_operator();
Operator softmax_operator();
Operator guarded_divide_operator();
Operator linear_cross_entropy_operator();
Operator linear_attention_operator();
Operator softmax_attention_operator();
Operator lrpe_rotate_operator();
Operator lrpe_cosine_operator();

}  // namespace heddle
