// Tiny operators for tests of the tape: float64, computed on the host element by element, no kernels.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "core/autograd/tape.h"
#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {

using Values = std::vector<double>;

inline Tensor make_tensor(Context& context, const Shape& shape, const Values& values, DType dtype = DType::float64) {
  Tensor tensor = Tensor::empty(context, shape, dtype);
  write_values(context, tensor, values);
  return tensor;
}

// destination (=|+=) values, as a kernel does it.
inline void write_gradient(Tape& tape, const GradientDestination& destination, const Values& values) {
  if (!destination) return;
  Values result = values;
  if (destination.mode == GradientMode::accumulate) {
    const Values there = read_values(tape.context(), destination.tensor);
    std::transform(result.begin(), result.end(), there.begin(), result.begin(), std::plus<>());
  }
  write_values(tape.context(), destination.tensor, result);
}

inline Values zip(const Values& a, const Values& b, const std::function<double(double, double)>& f) {
  Values result(a.size());
  std::transform(a.begin(), a.end(), b.begin(), result.begin(), f);
  return result;
}

// y = factor * x
struct ScaleNode {
  Slot x, y;
  double factor;

  void backward(Tape& tape) {
    const Values d_y = read_values(tape.context(), tape.take_gradient(y));
    write_gradient(tape, tape.destination(x), zip(d_y, d_y, [&](double d, double) { return factor * d; }));
  }
};

inline Variable scale(Tape& tape, const Variable& x, double factor) {
  Context& context = tape.context();
  const bool recorded = tape.records({&x});
  const Variable y = tape.output(Tensor::empty(context, x.shape(), x.dtype()), recorded);
  if (!context.is_meta()) {
    const Values values = read_values(context, x.value);
    write_values(context, y.value, zip(values, values, [&](double v, double) { return factor * v; }));
  }
  if (!recorded) return y;
  tape.record(ScaleNode{.x = x.slot, .y = y.slot, .factor = factor}, {x}, {y});
  return y;
}

// y = a + b. Shares its gradient with both.
struct AddNode {
  Slot a, b, y;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    for (Slot input : {a, b}) {
      if (!tape.share_gradient(input, d_y)) {
        write_gradient(tape, tape.destination(input), read_values(tape.context(), d_y));
      }
    }
  }
};

inline Variable add(Tape& tape, const Variable& a, const Variable& b) {
  const bool recorded = tape.records({&a, &b});
  Context& context = tape.context();
  const Values sum = zip(read_values(context, a.value), read_values(context, b.value), std::plus<>());
  const Variable y = tape.output(make_tensor(context, a.shape(), sum), recorded);
  if (!recorded) return y;
  tape.record(AddNode{.a = a.slot, .b = b.slot, .y = y.slot}, {a, b}, {y});
  return y;
}

// y = a * b. Asks for both destinations before it writes either, as a fused kernel does.
struct MultiplyNode {
  Slot a, b, y;
  Tensor saved_a, saved_b;

  void backward(Tape& tape) {
    Context& context = tape.context();
    const Values d_y = read_values(context, tape.take_gradient(y));
    const GradientDestination d_a = tape.destination(a);
    const GradientDestination d_b = tape.destination(b);
    write_gradient(tape, d_a, zip(d_y, read_values(context, saved_b), std::multiplies<>()));
    write_gradient(tape, d_b, zip(d_y, read_values(context, saved_a), std::multiplies<>()));
  }
};

inline Variable multiply(Tape& tape, const Variable& a, const Variable& b) {
  const bool recorded = tape.records({&a, &b});
  Context& context = tape.context();
  const Values product = zip(read_values(context, a.value), read_values(context, b.value), std::multiplies<>());
  const Variable y = tape.output(make_tensor(context, a.shape(), product), recorded);
  if (!recorded) return y;
  tape.record(MultiplyNode{.a = a.slot, .b = b.slot, .y = y.slot, .saved_a = a.value, .saved_b = b.value}, {a, b}, {y});
  return y;
}

// Two outputs as a norm with residual has them: y = 2 (x + residual), r = x + residual. Backward gives one buffer to
// x and residual, and writes over the gradient of r where the node alone holds it.
struct ResidualNode {
  Slot x, residual, y, r;
  bool* reused;  // or nullptr; set to whether d_r was written over

  void backward(Tape& tape) {
    Context& context = tape.context();
    const Tensor d_y = tape.take_gradient(y);
    const Tensor d_r = tape.take_gradient(r);
    Values sum(static_cast<size_t>(d_y ? d_y.numel() : d_r.numel()), 0.0);
    if (d_y) sum = zip(sum, read_values(context, d_y), [](double s, double d) { return s + 2.0 * d; });
    if (d_r) sum = zip(sum, read_values(context, d_r), std::plus<>());
    const bool reuse = d_r && d_r.is_unique();
    if (reused != nullptr) *reused = reuse;
    const Tensor& shape_of = d_r ? d_r : d_y;
    const Tensor shared = reuse ? d_r : Tensor::empty(context, shape_of.shape(), shape_of.dtype());
    write_values(context, shared, sum);
    for (Slot input : {x, residual}) {
      if (!tape.share_gradient(input, shared)) {
        write_gradient(tape, tape.destination(input), read_values(context, shared));
      }
    }
  }
};

struct Residual {
  Variable y, r;
};

inline Residual residual(Tape& tape, const Variable& x, const Variable& residual, bool* reused = nullptr) {
  const bool recorded = tape.records({&x, &residual});
  Context& context = tape.context();
  const Values sum = zip(read_values(context, x.value), read_values(context, residual.value), std::plus<>());
  const Residual result{
      tape.output(make_tensor(context, x.shape(), zip(sum, sum, std::plus<>())), recorded),
      tape.output(make_tensor(context, x.shape(), sum), recorded),
  };
  if (!recorded) return result;
  tape.record(
      ResidualNode{.x = x.slot, .residual = residual.slot, .y = result.y.slot, .r = result.r.slot, .reused = reused},
      {x, residual}, {result.y, result.r});
  return result;
}

using TapeFunction = std::function<Variable(Tape&, const Variable&)>;

// y = function(x). Only x is kept: backward runs the function again, on a tape of its own.
struct RecomputeNode {
  TapeFunction function;
  Slot x, y;
  Tensor saved_x;

  void backward(Tape& tape) {
    Gradient d_x;
    Tape inner(tape.context());
    const Variable inner_y = function(inner, inner.leaf(saved_x, d_x, "x"));
    inner.backward(inner_y, tape.take_gradient(y));
    if (!tape.share_gradient(x, d_x.tensor)) {
      write_gradient(tape, tape.destination(x), read_values(tape.context(), d_x.tensor));
    }
  }
};

// `leaves` are the leaves of this tape that the function uses.
inline Variable recompute(Tape& tape, const Variable& x, const std::vector<Slot>& leaves,
                          const TapeFunction& function) {
  Tape forward(tape.context(), Tape::Mode::inference);
  const Variable y = tape.output(function(forward, forward.constant(x.value)).value, true);
  std::vector<Slot> inputs = leaves;
  inputs.push_back(x);
  tape.record(RecomputeNode{.function = function, .x = x.slot, .y = y.slot, .saved_x = x.value}, inputs, {y});
  return y;
}

// Calls a function of the test in backward.
struct CallNode {
  std::function<void(Tape&)> call;

  void backward(Tape& tape) { call(tape); }
};

}  // namespace heddle
