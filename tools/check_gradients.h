// The gradients of operators against finite differences: what `heddle gradcheck` does.        docs/run_layer.md
#pragma once

#include <string>
#include <vector>

#include "core/autograd/gradcheck.h"
#include "layers/registry.h"
#include "trainers/train_config.h"

namespace heddle {

// Draws inputs by the case. float64: derivatives of every element of every real input that has a gradient, against
// differences (gradcheck.h). Other dtypes: the gradients are compared with those of float64 at the same rounded inputs;
// `numeric` is then the float64 gradient, and `error` what rounding may do: gradient_tolerance(dtype) times the largest
// element of that gradient, or 8 times what it changes by when inputs, values on the way and their gradients move by
// rounding errors, whichever is more. Where that is more than a tenth of the largest element, a gradient within 4 times
// as much is undecided.
// `progress` is told of differences, which are many.
GradcheckReport check_operator_gradients(Context& context, const Operator& op, const OperatorCase& operator_case,
                                         DType dtype, const GradcheckProgress& progress = {});

double gradient_tolerance(DType dtype);

// For every parameter of the config's model, under the loss of a few random sequences: short ones, or of the config's
// length where its layers take no other. The parameters are those of a new model moved off a little, since zeros among
// them may be kinks. float64: derivatives along random directions. Other dtypes: as above, with the norms of a
// parameter's gradient and of its error in place of elements, and model_tolerance(dtype).
GradcheckReport check_model_gradients(Context& context, const TrainConfig& config, DType dtype,
                                      const GradcheckProgress& progress = {});

double model_tolerance(DType dtype);

}  // namespace heddle
