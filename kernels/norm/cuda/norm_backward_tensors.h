// The tensors as large as x that the norm backward reads and writes, as a list for its pipeline.
#pragma once

#include "kernels/norm/cuda/norm.h"

namespace heddle::kernels::cuda {

// `inputs` are the tensors that are read, in the order of the passes over a segment: x, d_y, residual and gate by the
// first pass; d_r and the destinations that are added to by the second. Absent tensors take no place in the list.
struct BackwardTensors {
  static constexpr int kMaxInputs = 8;
  StridedRows inputs[kMaxInputs];
  int count = 0;
  int second_pass = 0;  // index of the first input that only the second pass reads
  // Index of each input in the list, -1 when absent. x is 0 and d_y is 1.
  int residual = -1, gate = -1, d_r = -1, old_d_x = -1, old_d_residual = -1, old_d_gate = -1;
  StridedRows d_x, d_residual, d_gate;

  explicit BackwardTensors(const NormBackwardArgs& args)
      : d_x(args.d_x.view), d_residual(args.d_residual.view), d_gate(args.d_gate.view) {
    add(args.x);
    add(args.d_y);
    residual = add(args.residual);
    gate = add(args.gate);
    second_pass = count;
    d_r = add(args.d_r);
    old_d_x = add_accumulated(args.d_x);
    old_d_residual = add_accumulated(args.d_residual);
    old_d_gate = add_accumulated(args.d_gate);
  }

  static bool fit(const NormBackwardArgs& args) {
    return StridedRows::fit(args.options.groups, args.x, args.residual, args.gate, args.d_y, args.d_r, args.d_x.view,
                            args.d_residual.view, args.d_gate.view);
  }

 private:
  int add(const RowsView& view) {
    if (!view) return -1;
    inputs[count] = StridedRows(view);
    return count++;
  }
  int add_accumulated(const RowsDestination& destination) {
    return destination.mode == GradientMode::accumulate ? add(destination.view) : -1;
  }
};

}  // namespace heddle::kernels::cuda
