// Destinations for a kernel that writes several gradients in no particular order. Inputs of a node may be one value, or
// views of one value that overlap; then a later destination is, or overlaps, memory of an earlier one, to which it
// adds. A kernel that reads what it adds to before it has written all would add to what was there before.
//
//   DistinctDestinations destinations(tape);
//   args.d_gate = rows_destination(destinations.of(gate));
//   args.d_x = rows_destination(destinations.of(x));
//   kernels::norm_backward(context, args);
//   destinations.finish();
#pragma once

#include <vector>

#include "core/autograd/tape.h"

namespace heddle {

class DistinctDestinations {
 public:
  explicit DistinctDestinations(Tape& tape) : tape_(tape) {}

  // Tape::destination(slot), or a workspace of its shape that is written over where that may share elements with an
  // earlier one. The last dimension is contiguous, as kernels demand.
  GradientDestination of(Slot slot);
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
