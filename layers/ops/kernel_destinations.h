// Destinations of gradients for kernels with one of two limits.
//   Order: the kernel writes several gradients in no particular order. Where two inputs of a node are one value, or
//     views of one value that overlap, the later gradient is added to memory of the earlier one, which may not be
//     written yet.
//   Dtype: the kernel writes gradients in the dtype of its inputs alone, while a leaf of 16 bits may have a float32
//     gradient.
// In both cases the kernel writes a workspace, which finish() adds to the destination.
//
//   KernelDestinations destinations(tape);
//   args.d_gate = rows_destination(destinations.of(gate, x.dtype()));
//   args.d_weight = vector_destination(destinations.of(weight));
//   kernels::norm_backward(context, args);
//   destinations.finish();
#pragma once

#include <optional>
#include <vector>

#include "core/autograd/tape.h"

namespace heddle {

class KernelDestinations {
 public:
  explicit KernelDestinations(Tape& tape) : tape_(tape) {}

  // Tape::destination(slot), or a workspace of that shape to overwrite where the destination may overlap an earlier one
  // or is not of `dtype`. Without `dtype` the kernel writes both dtypes that a gradient may have. The last dimension is
  // contiguous, as kernels demand.
  GradientDestination of(Slot slot, std::optional<DType> dtype = {});
  // Adds the workspaces to where they belong. Call it once, after the kernel.
  void finish();

 private:
  struct Postponed {
    Tensor workspace;
    GradientDestination destination;
  };
  Tape& tape_;
  std::vector<Tensor> given_;
  std::vector<Postponed> postponed_;
};

}  // namespace heddle
