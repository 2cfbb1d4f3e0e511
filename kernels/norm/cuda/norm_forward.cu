// Forward of the norm family.   y = norm(x + residual) with gate, weight and bias; kernels/norm/norm.h has the formula.
// Writes (=) y, r, mean and inv_std. norm_forward_rows takes segments that fit a row group, norm_forward_any all
// others.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/norm/cuda/norm_forward_rows.h"

namespace heddle::kernels::cuda {
namespace {

// The kernel for any length, alignment and dtype, one element at a time. Writes (=) y, r, mean and inv_std.
// Bytes: inputs are read once for each pass over a segment (mean, moments, output).
template <class T, int THREADS>
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
    if (!scalars.ordinary.holds(variance)) {
      const WideTeam<THREADS, 1> team{wide_storage, wide_buffer, 0, static_cast<int>(threadIdx.x)};
      normalize_wide<T>(args, team, {row_index, first, extent, index});
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
      if (args.weight) y *= widen(vector<const T>(args.weight)[first + c]);
      if (args.bias) y += widen(vector<const T>(args.bias)[first + c]);
      if (post) y *= act(c);
      if (args.r) row<T>(args.r, row_index)[first + c] = narrow<T>(r(c));
      row<T>(args.y, row_index)[first + c] = narrow<T>(y);
    }
  }
}

template <class T, Gate GATE, bool RESIDUAL, class Shape>
void launch_rows(Context& context, const NormForwardArgs& args, const NormScalars<accumulate_t<T>>& scalars) {
  const auto blocks = static_cast<unsigned>(ceil_div(scalars.segments, int64_t{Shape::kRowGroups}));
  const bool is_shared = Shape::kSharesParameters && scalars.groups == 1 && (args.weight || args.bias);
  const int64_t shared_bytes = is_shared ? 2 * scalars.extent * static_cast<int64_t>(sizeof(T)) : 0;
  const auto start = [&]<bool FULL, Center CENTER>() {
    using K = ForwardTraits<T, Shape, GATE, RESIDUAL, FULL, CENTER>;
    HEDDLE_LAUNCH(context, norm_forward_rows<K>, blocks, Shape::kBlockThreads, static_cast<size_t>(shared_bytes), args,
                  ForwardTensors(args), scalars);
  };
  if constexpr (Shape::kThreads >= 64) {  // smaller row groups do not gain from kernels for full segments
    if (scalars.extent == int64_t{Shape::kCapacity} * vector_width<T>) {
      if constexpr (GATE == Gate::none && !RESIDUAL) {
        if (args.options.center) return start.template operator()<true, Center::yes>();
      }
      return start.template operator()<true, Center::run_time>();
    }
  }
  start.template operator()<false, Center::run_time>();
}

// Calls launch(shape) for segments of `vectors` vectors; false when they are too long for every shape. Measured on an
// H200 from 2048 features of 16 bits on.
template <Gate GATE, bool RESIDUAL, class Launch>
bool choose_forward_shape(int64_t vectors, const Launch& launch) {
  if constexpr (GATE == Gate::post) {  // the gate waits in registers, wide
    return choose_shape<ForwardShape<8, 1, 6>, ForwardShape<16, 1, 6>, ForwardShape<32, 1, 6>, ForwardShape<32, 2, 4>,
                        ForwardShape<64, 2, 4>, ForwardShape<128, 2, 4>, ForwardShape<256, 2, 4>,
                        ForwardShape<256, 4, 2>, ForwardShape<512, 4, 1>>(vectors, launch);
  } else if constexpr (GATE == Gate::pre) {
    return choose_shape<ForwardShape<8, 1, 6>, ForwardShape<16, 1, 6>, ForwardShape<32, 1, 6>, ForwardShape<32, 2, 5>,
                        ForwardShape<32, 4, RESIDUAL ? 3 : 4>, ForwardShape<64, 4, 3>, ForwardShape<128, 4, 3>,
                        ForwardShape<256, 4, RESIDUAL ? 3 : 4>, ForwardShape<512, 4, 1>>(vectors, launch);
  } else if constexpr (RESIDUAL) {
    return choose_shape<ForwardShape<8, 1, 6>, ForwardShape<16, 1, 6>, ForwardShape<32, 1, 6>, ForwardShape<32, 2, 5>,
                        ForwardShape<64, 2, 4>, ForwardShape<128, 2, 5>, ForwardShape<256, 2, 4>,
                        ForwardShape<512, 2, 2>, ForwardShape<512, 3, 2>, ForwardShape<512, 4, 2>,
                        ForwardShape<512, 8, 1>>(vectors, launch);
  } else {
    return choose_shape<ForwardShape<8, 1, 6>, ForwardShape<16, 1, 6>, ForwardShape<32, 1, 6>, ForwardShape<32, 2, 5>,
                        ForwardShape<32, 4, 4>, ForwardShape<64, 4, 4>, ForwardShape<128, 4, 4>,
                        ForwardShape<256, 4, 4>, ForwardShape<256, 6, 3>, ForwardShape<512, 4, 2>,
                        ForwardShape<512, 8, 1>>(vectors, launch);
  }
}

template <class T, Gate GATE>
bool launch_rows(Context& context, const NormForwardArgs& args, const NormScalars<accumulate_t<T>>& scalars) {
  const auto choose = [&]<bool RESIDUAL>() {
    return choose_forward_shape<GATE, RESIDUAL>(scalars.extent / vector_width<T>, [&](auto shape) {
      launch_rows<T, GATE, RESIDUAL, decltype(shape)>(context, args, scalars);
    });
  };
  return args.residual ? choose.template operator()<true>() : choose.template operator()<false>();
}

// Launches norm_forward_rows; false when no instance of it takes these arguments.
template <class T>
bool launch_rows(Context& context, const NormForwardArgs& args, const NormScalars<accumulate_t<T>>& scalars) {
  constexpr int kWidth = vector_width<T>;
  if (!ForwardTensors::fit(args) || !groups_vectorize(args.x, args.options, kWidth) ||
      !can_vectorize_all(kWidth, args.x, args.residual, args.gate, args.y, args.r, args.weight, args.bias)) {
    return false;
  }
  switch (gate_of(args.gate, args.options)) {
    case Gate::pre:
      return launch_rows<T, Gate::pre>(context, args, scalars);
    case Gate::post:
      return launch_rows<T, Gate::post>(context, args, scalars);
    default:
      return launch_rows<T, Gate::none>(context, args, scalars);
  }
}

template <class T>
void launch_forward(Context& context, const NormForwardArgs& args) {
  const NormScalars<accumulate_t<T>> scalars(args.x, args.options);
  if constexpr (!std::is_same_v<T, double>) {
    if (launch_rows<T>(context, args, scalars)) return;
  }
  if (scalars.extent <= 512) {
    HEDDLE_LAUNCH(context, (norm_forward_any<T, 32>), grid_for(context, scalars.segments, 1, 64), 32, 0, args, scalars);
  } else {
    HEDDLE_LAUNCH(context, (norm_forward_any<T, 256>), grid_for(context, scalars.segments, 1, 8), 256, 0, args,
                  scalars);
  }
}

}  // namespace

void norm_forward(Context& context, const NormForwardArgs& args) {
  if (args.x.rows == 0) return;
  visit_floating(args.x.dtype, [&](auto type) { launch_forward<decltype(type)>(context, args); });
}

}  // namespace heddle::kernels::cuda
