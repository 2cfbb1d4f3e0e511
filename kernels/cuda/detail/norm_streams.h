// The inputs of the norm backward that are as large as x, as a list: each is copied ahead of its use into shared memory
// (cp.async, 16 bytes a thread), by the thread that will use it, so that no barrier is needed and the latency of device
// memory is hidden whatever the options are.
#pragma once

#include <cuda_pipeline_primitives.h>

#include "kernels/norm.h"

namespace heddle::kernels::cuda {

struct NormStreams {
  static constexpr int kMost = 8;
  RowsView views[kMost];
  int count = 0;
  // Place of each input in the list; -1: not there. x and d_y are 0 and 1.
  int residual = -1, gate = -1, d_r = -1, old_d_x = -1, old_d_residual = -1, old_d_gate = -1;

  explicit NormStreams(const NormBackwardArgs& args) {
    add(args.x);
    add(args.d_y);
    residual = add(args.residual);
    gate = add(args.gate);
    d_r = add(args.d_r);
    old_d_x = add_old(args.d_x);
    old_d_residual = add_old(args.d_residual);
    old_d_gate = add_old(args.d_gate);
  }

 private:
  int add(const RowsView& view) {
    if (!view) return -1;
    views[count] = view;
    return count++;
  }
  int add_old(const RowsDestination& destination) {
    return destination.mode == Accumulate::add ? add(destination.view) : -1;
  }
};

}  // namespace heddle::kernels::cuda
