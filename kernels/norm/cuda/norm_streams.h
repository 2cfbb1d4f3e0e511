// What the norm backward moves that is as large as x. The inputs are a list: each is copied ahead of its use into
// shared memory (cp.async, 16 bytes a thread), by the thread that will use it, so that no barrier is needed and the
// latency of device memory is hidden whatever the options are.
#pragma once

#include "kernels/norm/cuda/norm.h"

namespace heddle::kernels::cuda {

struct NormStreams {
  static constexpr int kMost = 8;
  StridedRows inputs[kMost];
  int count = 0;
  int late = 0;  // those from here on are not read before the sums over a unit are known
  // Place of each input in the list; -1: not there. x and d_y are 0 and 1.
  int residual = -1, gate = -1, d_r = -1, old_d_x = -1, old_d_residual = -1, old_d_gate = -1;
  StridedRows d_x, d_residual, d_gate;

  explicit NormStreams(const NormBackwardArgs& args)
      : d_x(args.d_x.view), d_residual(args.d_residual.view), d_gate(args.d_gate.view) {
    add(args.x);
    add(args.d_y);
    residual = add(args.residual);
    gate = add(args.gate);
    late = count;
    d_r = add(args.d_r);
    old_d_x = add_old(args.d_x);
    old_d_residual = add_old(args.d_residual);
    old_d_gate = add_old(args.d_gate);
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
  int add_old(const RowsDestination& destination) {
    return destination.mode == GradientMode::accumulate ? add(destination.view) : -1;
  }
};

}  // namespace heddle::kernels::cuda
