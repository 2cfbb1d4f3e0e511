// Elementwise work on the CPU, chunk by chunk. Rows of views without gaps are handled as one long row.
#include "kernels/dense/elementwise.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cpu/activation.h"
#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"

namespace heddle::kernels::cpu {
namespace {

// Calls chunk(row, col, count) for chunks of at most kChunk elements of a row that together cover `shape`, on several
// threads.
template <class Chunk>
void parallel_chunks(const Context& context, const RowsView& shape, const Chunk& chunk) {
  constexpr int64_t elements_per_task = 16 * kChunk;
  if (shape.cols == 0) return;
  const int64_t across = (shape.cols + kChunk - 1) / kChunk;
  const int64_t grain = std::max<int64_t>(1, elements_per_task / std::min(shape.cols, kChunk));
  parallel_ranges(context, shape.rows * across, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t col = i % across * kChunk;
      chunk(i / across, col, std::min(kChunk, shape.cols - col));
    }
  });
}

bool is_dense(const RowsView& view) { return !view || view.row_stride == view.cols; }

// Turns views of one shape into views of a single row when none of them has gaps between its rows.
template <class... Views>
void flatten(Views&... views) {
  if (!(is_dense(views) && ...)) return;
  ((views = RowsView{views.data, views.dtype, 1, views.rows * views.cols, views.rows * views.cols}), ...);
}

// The address of one element.
template <class T>
T* element(const RowsView& view, int64_t row, int64_t col) {
  return kernels::row<T>(view, row) + col;
}

// to[i] (=|+=) value(i) for i < count <= kChunk; `value` returns the arithmetic type of T.
template <class T, class Value>
void write_chunk(T* to, int64_t count, GradientMode mode, const Value& value) {
  if constexpr (std::is_same_v<T, accumulate_t<T>>) {
    if (mode == GradientMode::overwrite) {
      for (int64_t i = 0; i < count; ++i) to[i] = value(i);
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] += value(i);
    }
  } else {
    accumulate_t<T> values[kChunk];
    for (int64_t i = 0; i < count; ++i) values[i] = value(i);
    store_chunk(to, values, count, mode);
  }
}

// Calls visit(T{}, act) with the C++ type and the activation as std::integral_constant.
template <class Visit>
void visit_type_and_activation(DType dtype, Activation act, const Visit& visit) {
  visit_floating(
      dtype, [&](auto type) { visit_elementwise_activation(act, [&](auto activation) { visit(type, activation); }); });
}

template <class T, Activation act>
void activation_forward_as(const Context& context, RowsView x, RowsView y) {
  flatten(x, y);
  parallel_chunks(context, y, [&](int64_t row, int64_t col, int64_t count) {
    accumulate_t<T> buffer[kChunk];
    const auto* from = load_chunk(element<const T>(x, row, col), count, buffer);
    write_chunk(element<T>(y, row, col), count, GradientMode::overwrite,
                [&](int64_t i) { return apply_activation<act>(from[i]); });
  });
}

template <class T, Activation act>
void activation_backward_as(const Context& context, RowsView x, RowsView d_y, RowsView d_x, GradientMode mode) {
  using A = accumulate_t<T>;
  flatten(x, d_y, d_x);
  parallel_chunks(context, d_x, [&](int64_t row, int64_t col, int64_t count) {
    A x_buffer[kChunk], d_y_buffer[kChunk], d_x_buffer[kChunk];
    const A* from = load_chunk(element<const T>(x, row, col), count, x_buffer);
    const A* upstream = load_chunk(element<const T>(d_y, row, col), count, d_y_buffer);
    T* to = element<T>(d_x, row, col);
    A* d_x_values = target_chunk(to, mode, d_x_buffer);
    // d_x may be the same memory as d_y.
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
      d_x_values[i] = chain_rule<act>(upstream[i], activation_derivative<act>(from[i]));
    }
    store_chunk(to, d_x_values, count, mode);
  });
}

template <class T, Activation act>
void glu_forward_as(const Context& context, RowsView a, RowsView b, RowsView y) {
  flatten(a, b, y);
  parallel_chunks(context, y, [&](int64_t row, int64_t col, int64_t count) {
    accumulate_t<T> a_buffer[kChunk], b_buffer[kChunk];
    const auto* gate = load_chunk(element<const T>(a, row, col), count, a_buffer);
    const auto* value = load_chunk(element<const T>(b, row, col), count, b_buffer);
    write_chunk(element<T>(y, row, col), count, GradientMode::overwrite,
                [&](int64_t i) { return gated<act>(gate[i], apply_activation<act>(gate[i]), value[i]); });
  });
}

template <class T, Activation act>
void glu_backward_as(const Context& context, const GluBackwardArgs& args) {
  using A = accumulate_t<T>;
  RowsView a = args.a, b = args.b, d_y = args.d_y, d_a = args.d_a.view, d_b = args.d_b.view;
  flatten(a, b, d_y, d_a, d_b);
  parallel_chunks(context, d_y, [&](int64_t row, int64_t col, int64_t count) {
    A a_buffer[kChunk], b_buffer[kChunk], d_y_buffer[kChunk], d_a_buffer[kChunk], d_b_buffer[kChunk];
    const A* gate = load_chunk(element<const T>(a, row, col), count, a_buffer);
    const A* value = load_chunk(element<const T>(b, row, col), count, b_buffer);
    const A* upstream = load_chunk(element<const T>(d_y, row, col), count, d_y_buffer);
    T* to_a = d_a ? element<T>(d_a, row, col) : nullptr;
    T* to_b = d_b ? element<T>(d_b, row, col) : nullptr;
    A* d_a_values = d_a ? target_chunk(to_a, args.d_a.mode, d_a_buffer) : d_a_buffer;
    A* d_b_values = d_b ? target_chunk(to_b, args.d_b.mode, d_b_buffer) : d_b_buffer;
    // d_a or d_b may be the same memory as d_y.
    HEDDLE_INDEPENDENT
    for (int64_t i = 0; i < count; ++i) {
      const Activated<A> activated = activate_with_derivative<act>(gate[i]);
      const A here = upstream[i];
      d_a_values[i] = chain_rule<act>(here, activated.derivative, value[i]);
      d_b_values[i] = gated<act>(gate[i], activated.value, here);
    }
    if (d_a) store_chunk(to_a, d_a_values, count, args.d_a.mode);
    if (d_b) store_chunk(to_b, d_b_values, count, args.d_b.mode);
  });
}

// The product with `scale` is taken in the wider of the two arithmetic types.
template <class From, class To>
void accumulate_as(const Context& context, RowsView from, RowsView to, GradientMode mode, double scale) {
  using Wide = std::common_type_t<accumulate_t<From>, accumulate_t<To>>;
  const Wide factor = static_cast<Wide>(scale);
  flatten(from, to);
  parallel_chunks(context, to, [&](int64_t row, int64_t col, int64_t count) {
    accumulate_t<From> buffer[kChunk];
    const auto* values = load_chunk(element<const From>(from, row, col), count, buffer);
    write_chunk(element<To>(to, row, col), count, mode,
                [&](int64_t i) { return static_cast<accumulate_t<To>>(factor * static_cast<Wide>(values[i])); });
  });
}

}  // namespace

void activation_forward(Context& context, const ActivationForwardArgs& args) {
  visit_type_and_activation(args.x.dtype, args.act, [&](auto type, auto act) {
    activation_forward_as<decltype(type), act()>(context, args.x, args.y);
  });
}

void activation_backward(Context& context, const ActivationBackwardArgs& args) {
  visit_type_and_activation(args.x.dtype, args.act, [&](auto type, auto act) {
    activation_backward_as<decltype(type), act()>(context, args.x, args.d_y, args.d_x.view, args.d_x.mode);
  });
}

void glu_forward(Context& context, const GluForwardArgs& args) {
  visit_type_and_activation(args.a.dtype, args.act, [&](auto type, auto act) {
    glu_forward_as<decltype(type), act()>(context, args.a, args.b, args.y);
  });
}

void glu_backward(Context& context, const GluBackwardArgs& args) {
  visit_type_and_activation(args.a.dtype, args.act,
                            [&](auto type, auto act) { glu_backward_as<decltype(type), act()>(context, args); });
}

void accumulate(Context& context, const AccumulateArgs& args) {
  visit_floating(args.from.dtype, [&](auto from) {
    visit_floating(args.to.view.dtype, [&](auto to) {
      accumulate_as<decltype(from), decltype(to)>(context, args.from, args.to.view, args.to.mode, args.scale);
    });
  });
}

void scale(Context& context, const ScaleArgs& args) {
  visit_floating(args.from.dtype, [&](auto type) {
    using A = accumulate_t<decltype(type)>;
    const A factor = *vector<const A>(args.factor), divisor = args.divisor ? *vector<const A>(args.divisor) : A(1);
    const A quotient = divisor != A(0) ? factor / divisor : A(0);
    accumulate(context, {.from = args.from, .to = args.to, .scale = static_cast<double>(quotient)});
  });
}

}  // namespace heddle::kernels::cpu
