// Backward of the norm family with the weight in float32 beside rows of 16 bits, and the bias with it.
// norm_backward_rows takes segments of up to 16384 features without a gate, norm_backward_any all others. To keep the
// kernels few, those with parameter sums compute both of them, and whether the norm is centred is known at run time.
#include <cstdint>

#include "kernels/norm/cuda/norm_backward.h"
#include "kernels/norm/cuda/norm_full_precision.h"

namespace heddle::kernels::cuda {
namespace {

// Launches an instance of norm_backward_rows with or without parameter sums; returns its rows of partial sums, or 0
// when no instance takes these arguments.
template <class T>
int launch_rows_full_precision(Context& context, const NormBackwardArgs& args) {
  if (args.gate || !vectorizes<T>(args)) return 0;
  const BackwardTensors tensors(args);
  const int64_t vectors = args.x.cols / args.options.groups / vector_width<T>;
  int partials = 0;
  const auto start = [&]<ParameterSums SUMS, class Shape>(Shape) {
    using K = BackwardTraits<T, Shape::kThreads, Shape::kVectors, SUMS, Gate::none, Center::run_time, float>;
    partials = launch_rows<K, /*MAX_STAGES=*/2>(context, args, tensors);
  };
  if (args.d_weight || args.d_bias) {
    choose_shape<RowGroupShape<8, 1>, RowGroupShape<32, 1>, RowGroupShape<128, 1>, RowGroupShape<256, 1>,
                 RowGroupShape<256, 2>, RowGroupShape<512, 2>, RowGroupShape<512, 4>>(
        vectors, [&](auto shape) { start.template operator()<ParameterSums::weight_and_bias>(shape); });
  } else {
    choose_shape<RowGroupShape<8, 1>, RowGroupShape<32, 1>, RowGroupShape<32, 4>, RowGroupShape<128, 4>,
                 RowGroupShape<256, 4>, RowGroupShape<512, 4>>(
        vectors, [&](auto shape) { start.template operator()<ParameterSums::none>(shape); });
  }
  return partials;
}

template <class T>
void launch_backward_full_precision(Context& context, const NormBackwardArgs& args) {
  int partials = 0;
  if (args.x.rows > 0) {
    partials = launch_rows_full_precision<T>(context, args);
    if (partials == 0) partials = launch_any<T, float>(context, args);
  }
  reduce_partials<T>(context, args, partials);
}

}  // namespace

void norm_backward_full_precision(Context& context, const NormBackwardArgs& args) {
  if (args.x.dtype == DType::bfloat16) {
    launch_backward_full_precision<bf16>(context, args);
  } else {
    launch_backward_full_precision<fp16>(context, args);
  }
}

}  // namespace heddle::kernels::cuda
