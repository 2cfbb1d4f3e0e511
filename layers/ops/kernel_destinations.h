// Destinations for a kernel that writes several gradients in no particular order, or in the dtype of its inputs alone.
// Inputs of a node may be one value, or views of one value that overlap; then a later destination is, or overlaps,
// memory of an earlier one, to which it adds. A kernel that reads what it adds to before it has written all would add
// to what was there before. And the gradient of a leaf of 16 bits may be float32, which few kernels write.
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

  // Tape::destination(slot), or a workspace of its shape that is written over: where that may share elements with an
  // earlier one, or is not of `dtype`, the only one that the kernel writes (without it, the kernel writes both that a
  // gradient may have). The last dimension is contiguous, as kernels demand.
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
