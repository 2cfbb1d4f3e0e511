// Whether tensors share elements.
#pragma once

#include "core/tensor/tensor.h"

namespace heddle {

// Whether two tensors may have an element in common. They have none where memory can be seen as rows, of a length that
// is a stride of one of them, in whose columns they lie side by side, as the parts of a fused projection do.
// Both have one dtype.
bool may_overlap(const Tensor& first, const Tensor& second);

}  // namespace heddle
