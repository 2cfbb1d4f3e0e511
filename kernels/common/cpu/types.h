// The dtype switch of CPU kernels, and the store that rounds.
#pragma once

#include "core/tensor/element_types.h"
#include "kernels/common/types.h"

namespace heddle::kernels::cpu {

// Calls visit(T{}) with the host's type of a floating dtype. Throws Error for a dtype of integers.
template <class Visit>
void visit_floating(DType dtype, const Visit& visit) {
  visit_floating_as<bfloat16, float16>(dtype, visit);
}

// *to (=|+=) value, rounded once.
template <class T, class A>
void store(T* to, A value, GradientMode mode) {
  if (mode == GradientMode::accumulate) value += static_cast<A>(*to);
  *to = static_cast<T>(value);
}

}  // namespace heddle::kernels::cpu
