// The end of a product whose sum over k was split: the partial sums, added up with an error that does not grow with
// their number.
#pragma once

#include <cstdint>

#include "kernels/common/cuda/compensated_sum.h"
#include "kernels/common/cuda/launch.h"
#include "kernels/common/cuda/scratch.h"
#include "kernels/dense/gemm.h"

namespace heddle::kernels::cuda {

// c (m, n) (=|+=) bias + the sum over splits of partials (splits, m, n), in order; bias (n) may be null. One thread for
// each element of c.
template <class T, class C>
__global__ void __launch_bounds__(128)
    add_splits(const accumulate_t<T>* partials, int64_t splits, RowsView c, const T* bias, bool add) {
  using A = accumulate_t<T>;
  const int64_t size = c.rows * c.cols;
  const int64_t i = blockIdx.x * int64_t{128} + threadIdx.x;
  if (i >= size) return;
  C* to = row<C>(c, i / c.cols) + i % c.cols;
  CompensatedSum<A> sum;
#pragma unroll 8
  for (int64_t split = 0; split < splits; ++split) sum.add(partials[split * size + i]);
  if (bias != nullptr) sum.add(widen(bias[i % c.cols]));
  if (add) sum.add(static_cast<A>(widen(*to)));
  *to = narrow<C>(sum.value());
}

// The same for the partial sums at the start of the context's scratch memory, of the accumulate type of args.a.
inline void add_scratch_splits(Context& context, const GemmArgs& args, int64_t splits) {
  const RowsView& c = args.c.view;
  visit_floating(args.a.dtype, [&](auto type) {
    using T = decltype(type);
    visit_same_or_accumulate<T>(c.dtype, args.a.dtype, [&](auto result) {
      HEDDLE_LAUNCH(context, (add_splits<T, decltype(result)>), static_cast<unsigned>(ceil_div(c.rows * c.cols, 128)),
                    128, 0, static_cast<const accumulate_t<T>*>(scratch(context)), splits, c,
                    vector<const T>(args.bias), args.c.mode == GradientMode::accumulate);
    });
  });
}

}  // namespace heddle::kernels::cuda
