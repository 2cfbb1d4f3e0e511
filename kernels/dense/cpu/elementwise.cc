#include "kernels/dense/elementwise.h"

#include "kernels/common/cpu/convert.h"
#include "kernels/common/cpu/math.h"
#include "kernels/common/cpu/parallel.h"

namespace heddle::kernels::cpu {
namespace {

// Calls chunk(row, col, count) for stretches of at most kChunk numbers that cover `shape`.
template <class Chunk>
void for_each_stretch(const Context& context, const RowsView& shape, const Chunk& chunk) {
  constexpr int64_t numbers_per_piece = 16 * kChunk;
  if (shape.cols == 0) return;
  const int64_t across = (shape.cols + kChunk - 1) / kChunk;
  const int64_t grain = std::max<int64_t>(1, numbers_per_piece / std::min(shape.cols, kChunk));
  parallel_ranges(context, shape.rows * across, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t col = i % across * kChunk;
      chunk(i / across, col, std::min(kChunk, shape.cols - col));
    }
  });
}

bool is_dense(const RowsView& view) { return !view || view.row_stride == view.cols; }

// Sees views of one shape as a single row where none has gaps between its rows.
template <class... Views>
void flatten(Views&... views) {
  if (!(is_dense(views) && ...)) return;
  ((views = RowsView{views.data, views.dtype, 1, views.rows * views.cols, views.rows * views.cols}), ...);
}

template <class T>
T* stretch(const RowsView& view, int64_t row, int64_t col) {
  return cpu::row<T>(view, row) + col;
}

// to[i] (=|+=) value(i); value returns the arithmetic type of T.
template <class T, class Value>
void write_stretch(T* to, int64_t count, GradientMode mode, const Value& value) {
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
  visit_floating(dtype, [&](auto type) { visit_activation(act, [&](auto activation) { visit(type, activation); }); });
}

template <class T, Activation act>
void activation_forward_as(const Context& context, RowsView x, RowsView y) {
  flatten(x, y);
  for_each_stretch(context, y, [&](int64_t row, int64_t col, int64_t count) {
    accumulate_t<T> buffer[kChunk];
    const auto* from = load_chunk(stretch<const T>(x, row, col), count, buffer);
    write_stretch(stretch<T>(y, row, col), count, GradientMode::overwrite,
                  [&](int64_t i) { return apply_activation<act>(from[i]); });
  });
}

template <class T, Activation act>
void activation_backward_as(const Context& context, RowsView x, RowsView d_y, RowsView d_x, GradientMode mode) {
  using A = accumulate_t<T>;
  flatten(x, d_y, d_x);
  for_each_stretch(context, d_x, [&](int64_t row, int64_t col, int64_t count) {
    A x_buffer[kChunk], d_y_buffer[kChunk], d_x_buffer[kChunk];
    const A* from = load_chunk(stretch<const T>(x, row, col), count, x_buffer);
    const A* upstream = load_chunk(stretch<const T>(d_y, row, col), count, d_y_buffer);
    T* to = stretch<T>(d_x, row, col);
    A* d_x_values = target_chunk(to, mode, d_x_buffer);
    HEDDLE_INDEPENDENT  // d_x may be the memory of d_y
        for (int64_t i = 0; i < count; ++i) d_x_values[i] = upstream[i] * activation_derivative<act>(from[i]);
    store_chunk(to, d_x_values, count, mode);
  });
}

template <class T, Activation act>
void glu_forward_as(const Context& context, RowsView a, RowsView b, RowsView y) {
  flatten(a, b, y);
  for_each_stretch(context, y, [&](int64_t row, int64_t col, int64_t count) {
    accumulate_t<T> a_buffer[kChunk], b_buffer[kChunk];
    const auto* gate = load_chunk(stretch<const T>(a, row, col), count, a_buffer);
    const auto* value = load_chunk(stretch<const T>(b, row, col), count, b_buffer);
    write_stretch(stretch<T>(y, row, col), count, GradientMode::overwrite,
                  [&](int64_t i) { return apply_activation<act>(gate[i]) * value[i]; });
  });
}

template <class T, Activation act>
void glu_backward_as(const Context& context, const GluBackwardArgs& args) {
  using A = accumulate_t<T>;
  RowsView a = args.a, b = args.b, d_y = args.d_y, d_a = args.d_a.view, d_b = args.d_b.view;
  flatten(a, b, d_y, d_a, d_b);
  for_each_stretch(context, d_y, [&](int64_t row, int64_t col, int64_t count) {
    A a_buffer[kChunk], b_buffer[kChunk], d_y_buffer[kChunk], d_a_buffer[kChunk], d_b_buffer[kChunk];
    const A* gate = load_chunk(stretch<const T>(a, row, col), count, a_buffer);
    const A* value = load_chunk(stretch<const T>(b, row, col), count, b_buffer);
    const A* upstream = load_chunk(stretch<const T>(d_y, row, col), count, d_y_buffer);
    T* to_a = d_a ? stretch<T>(d_a, row, col) : nullptr;
    T* to_b = d_b ? stretch<T>(d_b, row, col) : nullptr;
    A* d_a_values = d_a ? target_chunk(to_a, args.d_a.mode, d_a_buffer) : d_a_buffer;
    A* d_b_values = d_b ? target_chunk(to_b, args.d_b.mode, d_b_buffer) : d_b_buffer;
    HEDDLE_INDEPENDENT  // a gradient may be the memory of d_y
        for (int64_t i = 0; i < count; ++i) {
      const Activated<A> activated = activate_with_slope<act>(gate[i]);
      const A here = upstream[i];
      d_a_values[i] = here * value[i] * activated.slope;
      d_b_values[i] = here * activated.value;
    }
    if (d_a) store_chunk(to_a, d_a_values, count, args.d_a.mode);
    if (d_b) store_chunk(to_b, d_b_values, count, args.d_b.mode);
  });
}

template <class T>
void add_as(const Context& context, RowsView a, RowsView b, RowsView y) {
  flatten(a, b, y);
  for_each_stretch(context, y, [&](int64_t row, int64_t col, int64_t count) {
    accumulate_t<T> a_buffer[kChunk], b_buffer[kChunk];
    const auto* first = load_chunk(stretch<const T>(a, row, col), count, a_buffer);
    const auto* second = load_chunk(stretch<const T>(b, row, col), count, b_buffer);
    write_stretch(stretch<T>(y, row, col), count, GradientMode::overwrite,
                  [&](int64_t i) { return first[i] + second[i]; });
  });
}

// The product with `scale` is taken in the wider of the two arithmetic types.
template <class From, class To>
void accumulate_as(const Context& context, RowsView from, RowsView to, GradientMode mode, double scale) {
  using Wide = std::common_type_t<accumulate_t<From>, accumulate_t<To>>;
  const Wide factor = static_cast<Wide>(scale);
  flatten(from, to);
  for_each_stretch(context, to, [&](int64_t row, int64_t col, int64_t count) {
    accumulate_t<From> buffer[kChunk];
    const auto* values = load_chunk(stretch<const From>(from, row, col), count, buffer);
    write_stretch(stretch<To>(to, row, col), count, mode,
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

void add(Context& context, const AddArgs& args) {
  visit_floating(args.a.dtype, [&](auto type) { add_as<decltype(type)>(context, args.a, args.b, args.y); });
}

void accumulate(Context& context, const AccumulateArgs& args) {
  visit_floating(args.from.dtype, [&](auto from) {
    visit_floating(args.to.view.dtype, [&](auto to) {
      accumulate_as<decltype(from), decltype(to)>(context, args.from, args.to.view, args.to.mode, args.scale);
    });
  });
}

}  // namespace heddle::kernels::cpu
