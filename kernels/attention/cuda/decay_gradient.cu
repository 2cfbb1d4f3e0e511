#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/attention/cuda/decay_gradient.h"
#include "kernels/attention/cuda/decay_gradient_block.h"
#include "kernels/attention/cuda/scan_tensor_shape.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/vec.h"

namespace heddle::kernels::cuda {
namespace {

using detail::DecayShape;
using detail::kDecayThreads;

// This kernel needs at least as much shared memory as the scans on tensor cores that leave its states, so where it runs
// they do.
template <class T, int DIM, class Scan>
inline constexpr bool has_more_shared = sizeof(typename DecayShape<T, DIM>::Shared) >= sizeof(typename Scan::Shared);
static_assert(has_more_shared<bf16, 64, detail::TensorShape<bf16, 64, 64, 64, 4, false>>);
static_assert(has_more_shared<bf16, 128, detail::TensorShape<bf16, 128, 64, 64, 4, false>>);
static_assert(has_more_shared<bf16, 128, detail::TensorShape<bf16, 256, 32, 64, 4, false>>);

template <class Shape>
__global__ void __launch_bounds__(kDecayThreads)
    decay_gradient(const __grid_constant__ DecayGradientArgs args, bool vectorized) {
  extern __shared__ __align__(16) unsigned char raw[];
  detail::DecayBlock<Shape>(args, vectorized, *reinterpret_cast<typename Shape::Shared*>(raw)).run();
}

// Calls visit(shape) with that for the largest of the numbers of features.
template <class Visit>
void with_shape(DType dtype, int64_t dim, const Visit& visit) {
  const auto with_type = [&](auto type) {
    using T = decltype(type);
    if (dim <= 64) {
      visit(DecayShape<T, 64>{});
    } else {
      visit(DecayShape<T, kDecayPart>{});
    }
  };
  if (dtype == DType::bfloat16) {
    with_type(bf16{});
  } else {
    with_type(fp16{});
  }
}

}  // namespace

bool has_decay_gradient_by_windows(const Context& context, const LinearAttentionBackwardArgs& args) {
  const int64_t dim = std::max(args.q.dim, args.v.dim);
  if (dim > kLargestTensorDim || size_of(args.q.dtype) != 2) return false;
  bool fits = false;
  with_shape(args.q.dtype, dim, [&](auto shape) {
    fits = sizeof(typename decltype(shape)::Shared) <= context.properties().shared_bytes_per_block;
  });
  return fits;
}

int64_t decay_gradient_by_windows(Context& context, const DecayGradientArgs& args) {
  const HeadsView& q = args.decays.query;
  const int64_t blocks = q.batch * q.heads * parts_of(q.length, kDecayWindow);
  const int64_t parts = parts_of(q.dim, kDecayPart) * parts_of(args.v.dim, kDecayPart);
  if (blocks == 0) return parts;
  const bool vectorized = can_vectorize_all(8, q, args.k, args.v, args.d_o);
  with_shape(q.dtype, std::max(q.dim, args.v.dim), [&](auto shape) {
    using Shape = decltype(shape);
    HEDDLE_LAUNCH(context, decay_gradient<Shape>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts)),
                  kDecayThreads, sizeof(typename Shape::Shared), args, vectorized);
  });
  return parts;
}

}  // namespace heddle::kernels::cuda
