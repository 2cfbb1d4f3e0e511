// Destinations of gradients for kernels with one of three limits.
//   Order: the kernel writes several gradients in no particular order. Where two inputs of a node are one value, or
//     views of one value that overlap, the later gradient is added to memory of the earlier one, which may not be
//     written yet.
//   Dtype: the kernel writes gradients in the dtype of its inputs alone, while a leaf of 16 bits may have a float32
//     gradient.
//   Memory: the kernel writes rows at even distances, or contiguous memory, while the gradient of a leaf may be any
//     part of a tensor.
// In these cases the kernel writes a workspace, which finish() adds to the destination.
//
//   KernelDestinations destinations(tape);
//   args.d_gate = destinations.rows_of(gate, x.dtype());
//   args.d_weight = destinations.vector_of(weight);
//   kernels::norm_backward(context, args);
//   destinations.finish();
#pragma once

#include <optional>
#include <vector>

#include "core/autograd/tape.h"
#include "layers/ops/gradient.h"

namespace heddle {

class KernelDestinations {
 public:
  explicit KernelDestinations(Tape& tape) : tape_(tape) {}

  // Tape::destination(slot), or a workspace of that shape to overwrite where the destination may overlap an earlier one
  // or is not of `dtype`. Without `dtype` the kernel writes both dtypes that a gradient may have. The last dimension is
  // contiguous, as kernels demand.
  GradientDestination of(Slot slot, std::optional<DType> dtype = {}) {
    return of(slot, dtype, [](const Tensor&) { return true; });
  }
  // The same for kernels that write rows at even distances, and for those that write contiguous memory.
  kernels::RowsDestination rows_of(Slot slot, std::optional<DType> dtype = {}) {
    return rows_destination(
        of(slot, dtype, [](const Tensor& memory) { return are_one(memory, 0, memory.rank() - 1); }));
  }
  kernels::VectorDestination vector_of(Slot slot) {
    return vector_destination(of(slot, {}, [](const Tensor& memory) { return memory.is_contiguous(); }));
  }
  // Adds the workspaces to where they belong. Call it once, after the kernel.
  void finish();

 private:
  using Fits = bool (*)(const Tensor& memory);  // whether the kernel can write it
  GradientDestination of(Slot slot, std::optional<DType> dtype, Fits fits);

  struct Postponed {
    Tensor workspace;
    GradientDestination destination;
  };
  Tape& tape_;
  std::vector<Tensor> given_;
  std::vector<Postponed> postponed_;
};

}  // namespace heddle
