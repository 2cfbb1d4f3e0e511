// Forward of the norm family, host part: which instance is launched.
//   y = norm(x + residual) with gate, weight and bias; kernels/norm/norm.h has the formula
// Writes (=) y, r, mean and inv_std. norm_forward_rows takes segments that fit a row group, norm_forward_any all
// others. Weight and bias in full precision beside 16-bit x are those of norm_forward_full_precision.cu.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/norm/cuda/norm_forward_any.h"
#include "kernels/norm/cuda/norm_forward_rows.h"

namespace heddle::kernels::cuda {

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
  if (!vectorizes<T>(args)) return false;
  switch (gate_of(args.gate, args.options)) {
    case Gate::pre:
      return launch_rows<T, Gate::pre>(context, args, scalars);
    case Gate::post:
      return launch_rows<T, Gate::post>(context, args, scalars);
    default:
      return launch_rows<T, Gate::none>(context, args, scalars);
  }
}

// Instantiated by one translation unit for each storage type.
template <class T>
void launch_forward(Context& context, const NormForwardArgs& args) {
  const NormScalars<accumulate_t<T>> scalars(args.x, args.options);
  if constexpr (!std::is_same_v<T, double>) {
    if (launch_rows<T>(context, args, scalars)) return;
  }
  launch_any<T, T>(context, args, scalars);
}

}  // namespace heddle::kernels::cuda
