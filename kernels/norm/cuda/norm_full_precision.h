// Weight and bias in full precision, float32, beside rows of 16 bits: kernels of their own, fewer than those for
// parameters of the dtype of the rows. docs/notes/norm.md says which and why.
#pragma once

#include "kernels/norm/norm.h"

namespace heddle::kernels::cuda {

void norm_forward_full_precision(Context& context, const NormForwardArgs& args);
void norm_backward_full_precision(Context& context, const NormBackwardArgs& args);

}  // namespace heddle::kernels::cuda
