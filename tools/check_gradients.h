// The gradients of operators against finite differences: what `heddle gradcheck` does.        docs/run_layer.md
#pragma once

#include <string>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "layers/registry.h"
#include "trainers/train_config.h"

namespace heddle {

// float64: central differences for every element of every real input that has a gradient. Other dtypes: the gradients
// are compared with those of float64 at the same rounded inputs (`numeric` is then the float64 gradient); an element is
// right when it is off by no more than gradient_tolerance(dtype) times the largest element of that gradient.
GradcheckReport check_operator_gradients(Context& context, const Operator& op, const OperatorCase& operator_case,
                                         DType dtype);

double gradient_tolerance(DType dtype);

// For every parameter of the config's model, under the loss of a few short random sequences. float64: central
// differences along random directions. Other dtypes: the difference to the float64 gradient of the same rounded
// parameters may have model_tolerance(dtype) times that gradient's norm.
GradcheckReport check_model_gradients(Context& context, const TrainConfig& config, DType dtype);

double model_tolerance(DType dtype);

}  // namespace heddle
