// The dtype switch of CPU kernels, and typed access to views.
#pragma once

#include <type_traits>

#include "core/runtime/error.h"
#include "core/tensor/element_types.h"
#include "kernels/common/views.h"

namespace heddle::kernels::cpu {

// The type that arithmetic on T uses: double for double, float for the rest.
template <class T>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename AccumulateOf<T>::type;

// Calls visit(T{}) with the C++ type of a floating dtype.
template <class Visit>
void visit_floating(DType dtype, const Visit& visit) {
  visit_type(dtype, [&]<class T>(T value) {
    if constexpr (std::is_integral_v<T>) {
      fail("a kernel for real numbers was given {}", name(dtype));
    } else {
      visit(value);
    }
  });
}

template <class T>
T* vector(const VectorView& view) {
  return static_cast<T*>(view.data);
}

template <class T>
T* row(const RowsView& view, int64_t index) {
  return static_cast<T*>(view.data) + index * view.row_stride;
}

// The dim features of one token of one head.
template <class T>
T* head(const HeadsView& view, int64_t batch, int64_t position, int64_t head) {
  return static_cast<T*>(view.data) + batch * view.batch_stride + position * view.length_stride +
         head * view.head_stride;
}

// *to (=|+=) value, rounded once.
template <class T, class A>
void store(T* to, A value, GradientMode mode) {
  if (mode == GradientMode::accumulate) value += static_cast<A>(*to);
  *to = static_cast<T>(value);
}

}  // namespace heddle::kernels::cpu
