#include "layers/ops/kernel_destinations.h"

#include <algorithm>

#include "core/tensor/overlap.h"

namespace heddle {

GradientDestination KernelDestinations::of(Slot slot, std::optional<DType> dtype, Fits fits) {
  const GradientDestination wanted = tape_.destination(slot);
  if (!wanted) return wanted;
  const bool is_taken =
      std::any_of(given_.begin(), given_.end(), [&](const Tensor& other) { return may_overlap(other, wanted.tensor); });
  given_.push_back(wanted.tensor);
  const DType written = dtype.value_or(wanted.tensor.dtype());
  if (!is_taken && written == wanted.tensor.dtype() && fits(wanted.tensor)) return wanted;
  const MemoryScope scope(tape_.context(), MemoryCategory::workspace);
  postponed_.push_back({Tensor::empty(tape_.context(), wanted.tensor.shape(), written), wanted});
  return {postponed_.back().workspace, GradientMode::overwrite};
}

void KernelDestinations::finish() {
  for (const Postponed& postponed : postponed_)
    add_gradient(tape_.context(), postponed.workspace, postponed.destination);
}

}  // namespace heddle
