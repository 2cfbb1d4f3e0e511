#include "trainers/muon.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "kernels/dense/gemm.h"
#include "kernels/optimizer/muon.h"

namespace heddle {

using kernels::rows_view;
using kernels::Transpose;

Tensor orthogonalize(Context& context, Tensor x, int64_t steps) {
  constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
  const MemoryScope scope(context, MemoryCategory::workspace);
  const bool is_tall = x.size(0) > x.size(1);
  const int64_t side = std::min(x.size(0), x.size(1));
  Tensor next = Tensor::empty(context, x.shape(), x.dtype());
  const Tensor gram = Tensor::empty(context, {side, side}, x.dtype());
  const Tensor squared = Tensor::empty(context, {side, side}, x.dtype());
  for (int64_t step = 0; step < steps; ++step) {
    kernels::gemm(context, {.a = rows_view(x),
                            .b = rows_view(x),
                            .transpose_a = is_tall ? Transpose::yes : Transpose::no,
                            .transpose_b = is_tall ? Transpose::no : Transpose::yes,
                            .bias = {},
                            .c = {rows_view(gram)}});
    kernels::gemm(context, {.a = rows_view(gram), .b = rows_view(gram), .bias = {}, .c = {rows_view(squared)}});
    // squared becomes the polynomial a I + b gram + c gram^2, so that one more product is the whole step.
    kernels::muon_polynomial(context, {.gram = rows_view(gram), .squared = rows_view(squared), .a = a, .b = b, .c = c});
    const Tensor &left = is_tall ? x : squared, &right = is_tall ? squared : x;
    kernels::gemm(context, {.a = rows_view(left), .b = rows_view(right), .bias = {}, .c = {rows_view(next)}});
    std::swap(x, next);
  }
  return x;
}

}  // namespace heddle
