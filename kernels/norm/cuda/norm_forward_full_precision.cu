// Forward of the norm family with weight and bias in float32 beside rows of 16 bits.
// norm_forward_rows takes segments of up to 16384 features without a gate, norm_forward_any all others.
#include <cstdint>

#include "kernels/norm/cuda/norm_forward_any.h"
#include "kernels/norm/cuda/norm_forward_rows.h"
#include "kernels/norm/cuda/norm_full_precision.h"

namespace heddle::kernels::cuda {
namespace {

template <class T, bool RESIDUAL>
bool launch_rows(Context& context, const NormForwardArgs& args, const NormScalars<float>& scalars) {
  const auto launch = [&](auto shape) {
    using Shape = decltype(shape);
    using K = ForwardTraits<T, Shape, Gate::none, RESIDUAL, /*FULL=*/false, Center::run_time, float>;
    const auto blocks = static_cast<unsigned>(ceil_div(scalars.segments, int64_t{Shape::kRowGroups}));
    HEDDLE_LAUNCH(context, norm_forward_rows<K>, blocks, Shape::kBlockThreads, 0, args, ForwardTensors(args), scalars);
  };
  // Weight and bias take twice the registers, so fewer blocks have room than with parameters of 16 bits.
  return choose_shape<ForwardShape<8, 1, 6>, ForwardShape<32, 1, 6>, ForwardShape<32, 4, 3>, ForwardShape<64, 4, 3>,
                      ForwardShape<128, 4, 3>, ForwardShape<256, 4, 3>, ForwardShape<512, 4, 1>>(
      scalars.extent / vector_width<T>, launch);
}

template <class T>
void launch_forward(Context& context, const NormForwardArgs& args) {
  const NormScalars<float> scalars(args.x, args.options);
  const bool done =
      vectorizes<T>(args) && !args.gate &&
      (args.residual ? launch_rows<T, true>(context, args, scalars) : launch_rows<T, false>(context, args, scalars));
  if (!done) launch_any<T, float>(context, args, scalars);
}

}  // namespace

void norm_forward_full_precision(Context& context, const NormForwardArgs& args) {
  if (args.x.dtype == DType::bfloat16) {
    launch_forward<bf16>(context, args);
  } else {
    launch_forward<fp16>(context, args);
  }
}

}  // namespace heddle::kernels::cuda
