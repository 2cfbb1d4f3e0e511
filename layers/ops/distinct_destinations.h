// Destinations for a kernel that writes its gradients in no particular order. One value may be several inputs of a
// node; then the second destination is memory of the first, to which it adds. A kernel that reads what it adds to
// before it has written all would add to what was there before.
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

  // Tape::destination(slot), or a workspace that is written over where that shares memory with an earlier one. The
  // memory of a slot can be seen as rows, or as heads (batch, length, heads, dim) whose tokens each can.
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
