// The norm backward kernel for any length, alignment and dtype, one element at a time. Formulas: norm_backward.h.
// Writes (=) or adds to (+=), as their modes say, d_x, d_residual and d_gate. Writes (=) gridDim.x rows of `partials`
// when there are parameter sums: partial sums of d_weight, then of d_bias.
// Bytes: every input is read twice. A block adds to its row of partials in memory, where a column belongs to the same
// thread for all rows.
#pragma once

#include <cstdint>

#include "kernels/norm/cuda/norm_backward_math.h"
#include "kernels/norm/cuda/norm_backward_wide.h"

namespace heddle::kernels::cuda {

// One segment in device memory; c counts its features. P is the storage type of weight and bias.
template <class T, class P>
struct SegmentView {
  using A = accumulate_t<T>;
  const NormBackwardArgs& args;
  bool pre;  // position of the gate
  int64_t row_index;
  int64_t first;  // feature of the row
  A mean;

  __device__ __forceinline__ A at(const RowsView& view, int64_t c) const {
    return widen(row<const T>(view, row_index)[first + c]);
  }
  // x, or x + residual rounded to the storage type, as the forward pass has it.
  __device__ __forceinline__ A r(int64_t c) const {
    return args.residual ? round_to<T>(at(args.x, c) + at(args.residual, c)) : at(args.x, c);
  }
  __device__ __forceinline__ Activated<A> act(int64_t c) const {
    Activated<A> result{A(1), A(0)};
    if (!args.gate) return result;
    visit_activation(args.options.gate_act,
                     [&](auto act) { result = activate_with_derivative<decltype(act)::value, T>(at(args.gate, c)); });
    return result;
  }
  __device__ __forceinline__ A d(A r, A act) const { return (pre ? r * act : r) - mean; }
  __device__ __forceinline__ A weight(int64_t c) const {
    return args.weight ? widen(vector<const P>(args.weight)[first + c]) : A(1);
  }
  // Writes or adds one element. d_x may be the memory of d_r, which the caller has read by then.
  __device__ __forceinline__ void write(const RowsDestination& to, int64_t c, A value) const {
    if (!to) return;
    if (to.mode == GradientMode::accumulate) value += at(to.view, c);
    row<T>(to.view, row_index)[first + c] = narrow<T>(value);
  }
};

template <class T, class P, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    norm_backward_any(const __grid_constant__ NormBackwardArgs args,
                      const __grid_constant__ NormScalars<accumulate_t<T>> scalars) {
  using A = accumulate_t<T>;
  __shared__ RowGroupStorage<A, THREADS, 1, 3> sum_storage;
  __shared__ typename WideTeam<THREADS, 1>::Storage wide_storage;
  int wide_buffer = 0;
  const NormOptions& options = args.options;
  const bool pre = args.gate && options.gate_position == GatePosition::pre;
  const bool post = args.gate && options.gate_position == GatePosition::post;
  int buffer = 0;
  if (args.partials) {
    for (int64_t c = threadIdx.x; c < 2 * args.x.cols; c += THREADS) row<A>(args.partials, blockIdx.x)[c] = A(0);
    __syncthreads();
  }
  for (int64_t row_index = blockIdx.x; row_index < args.x.rows; row_index += gridDim.x) {
    for (int64_t group = 0; group < scalars.groups; ++group) {
      const int64_t first = group * scalars.extent;
      const int64_t index = row_index * scalars.groups + group;
      const A mean = args.mean ? vector<const A>(args.mean)[index] : A(0);
      const A inv_std = vector<const A>(args.inv_std)[index];
      const SegmentView<T, P> segment{args, pre, row_index, first, mean};
      A sums[3] = {A(0), A(0), A(0)};
      for (int64_t c = threadIdx.x; c < scalars.extent; c += THREADS) {
        const A act = segment.act(c).value;
        const A d = segment.d(segment.r(c), act);
        const A d_y = segment.at(args.d_y, c);
        const A g = rounded_product(post ? d_y * act : d_y, segment.weight(c));
        sums[0] += g * d;
        sums[1] += g;
        sums[2] += d;
      }
      row_group_sum(sums, sum_storage, 0, buffer);
      const SegmentFactors<A> factors(sums, inv_std, options.center, scalars);
      if (!factors.is_ordinary(sums[0])) {
        const WideTeam<THREADS, 1> team{wide_storage, wide_buffer, 0, static_cast<int>(threadIdx.x)};
        differentiate_wide<T, P>(args, team, {row_index, first, scalars.extent, index}, PartialSums<A>{args});
        continue;
      }
      for (int64_t c = threadIdx.x; c < scalars.extent; c += THREADS) {
        const Activated<A> act = segment.act(c);
        const A r = segment.r(c), d_y = segment.at(args.d_y, c), weight = segment.weight(c);
        const A d = segment.d(r, act.value), xhat = factors.xhat(d);
        const A upstream = post ? d_y * act.value : d_y;
        if (args.partials) {
          A* partials = row<A>(args.partials, blockIdx.x) + first + c;
          partials[0] += upstream * xhat * scalars.scale;
          partials[args.x.cols] += upstream;
        }
        const A d_p = factors.d_p(rounded_product(upstream, weight), d);
        const A bias = args.bias ? widen(vector<const P>(args.bias)[first + c]) : A(0);
        const A d_act = pre ? d_p * r : d_y * (scalars.scale * xhat * weight + bias);
        const A d_gate = chain_rule(options.gate_act, d_act, act.derivative);
        A d_r = pre ? d_p * act.value : d_p;
        if (args.d_r) d_r += segment.at(args.d_r, c);
        segment.write(args.d_x, c, d_r);
        segment.write(args.d_residual, c, d_r);
        segment.write(args.d_gate, c, d_gate);
      }
    }
  }
}

}  // namespace heddle::kernels::cuda
