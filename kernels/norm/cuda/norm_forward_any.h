// The norm forward kernel for any length, alignment and dtype, one element at a time. kernels/norm/norm.h has the
// formula. Writes (=) y, r, mean and inv_std. Bytes: inputs are read once for each pass over a segment (mean, moments,
// output).
#pragma once

#include <cstdint>

#include "kernels/norm/cuda/norm.h"
#include "kernels/norm/cuda/wide_team.h"

namespace heddle::kernels::cuda {

// T is the storage type of the rows, P that of weight and bias.
template <class T, class P, int THREADS>
__global__ void __launch_bounds__(THREADS, 1)
    norm_forward_any(const __grid_constant__ NormForwardArgs args,
                     const __grid_constant__ NormScalars<accumulate_t<T>> scalars) {
  using A = accumulate_t<T>;
  __shared__ RowGroupStorage<A, THREADS, 1, 2> sum_storage;
  __shared__ typename WideTeam<THREADS, 1>::Storage wide_storage;
  int wide_buffer = 0;
  const NormOptions& options = args.options;
  const int64_t extent = scalars.extent;
  const bool pre = args.gate && options.gate_position == GatePosition::pre;
  const bool post = args.gate && options.gate_position == GatePosition::post;
  int buffer = 0;
  for (int64_t index = blockIdx.x; index < scalars.segments; index += gridDim.x) {
    const int64_t row_index = index / scalars.groups;
    const int64_t first = (index - row_index * scalars.groups) * extent;
    const auto r = [&](int64_t c) {
      A value = widen(row<const T>(args.x, row_index)[first + c]);
      if (args.residual) value = round_to<T>(value + widen(row<const T>(args.residual, row_index)[first + c]));
      return value;
    };
    const auto act = [&](int64_t c) {
      return activate_all(options.gate_act, Vec<T, 1>{row<const T>(args.gate, row_index)[first + c]})[0];
    };
    const auto p = [&](int64_t c) { return pre ? r(c) * act(c) : r(c); };

    A mean = A(0);
    if (options.center) {
      A sum[1] = {A(0)};
      for (int64_t c = threadIdx.x; c < extent; c += THREADS) sum[0] += p(c);
      row_group_sum(sum, sum_storage, 0, buffer);
      mean = sum[0] * scalars.inv_extent;
    }
    A moments[2] = {A(0), A(0)};
    for (int64_t c = threadIdx.x; c < extent; c += THREADS) {
      const A q = p(c) - mean;
      moments[0] += q;
      moments[1] += q * q;
    }
    row_group_sum(moments, sum_storage, 0, buffer);
    const A shift = options.center ? moments[0] * scalars.inv_extent : A(0);
    const A variance = not_negative(moments[1] * scalars.inv_extent - shift * shift) + scalars.eps;
    if (!scalars.ordinary.holds(variance, shift)) {
      const WideTeam<THREADS, 1> team{wide_storage, wide_buffer, 0, static_cast<int>(threadIdx.x)};
      normalize_wide<T, P>(args, team, {row_index, first, extent, index});
      continue;
    }
    const A inv_std = inverse_root(variance);
    if (threadIdx.x == 0) {
      if (args.inv_std) vector<A>(args.inv_std)[index] = inv_std;
      if (args.mean) vector<A>(args.mean)[index] = mean + shift;
    }
    const A factor = inv_std * scalars.scale;
    const A offset = shift * factor;
    for (int64_t c = threadIdx.x; c < extent; c += THREADS) {
      A y = (p(c) - mean) * factor - offset;
      if (args.weight) y *= widen(vector<const P>(args.weight)[first + c]);
      if (args.bias) y += widen(vector<const P>(args.bias)[first + c]);
      if (post) y *= act(c);
      if (args.r) row<T>(args.r, row_index)[first + c] = narrow<T>(r(c));
      row<T>(args.y, row_index)[first + c] = narrow<T>(y);
    }
  }
}

template <class T, class P>
void launch_any(Context& context, const NormForwardArgs& args, const NormScalars<accumulate_t<T>>& scalars) {
  if (scalars.extent <= 512) {
    HEDDLE_LAUNCH(context, (norm_forward_any<T, P, 32>), grid_for(context, scalars.segments, 1, 64), 32, 0, args,
                  scalars);
  } else {
    HEDDLE_LAUNCH(context, (norm_forward_any<T, P, 256>), grid_for(context, scalars.segments, 1, 8), 256, 0, args,
                  scalars);
  }
}

}  // namespace heddle::kernels::cuda
