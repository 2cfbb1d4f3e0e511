// Linear attention of a few tokens on a GPU, as generation has it.
#pragma once

#include "kernels/attention/linear_attention.h"

namespace heddle::kernels::cuda {

// Computes the whole forward pass in one launch. Launches nothing and returns false where there are no tokens or too
// many, or heads of too many features. Its results do not depend on addresses and strides.
bool forward_of_few_tokens(Context& context, const LinearAttentionForwardArgs& args);

}  // namespace heddle::kernels::cuda
