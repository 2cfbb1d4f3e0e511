// A layer of your own: squared ReLU, y = max(x, 0)^2, with its backward pass, checked against finite differences.
// What every layer of heddle is made of: a kernel that writes or adds, a node with what backward needs, a function that
// checks shapes, computes and records.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "heddle/core/autograd/gradcheck.h"
#include "heddle/core/runtime/error.h"
#include "heddle/core/tensor/random.h"
#include "heddle/kernels/common/views.h"
#include "heddle/layers/ops/gradient.h"

namespace heddle {

// --- The kernel: knows memory, but no tape. Rows lie row_stride apart; the columns are dense.

using kernels::RowsDestination;
using kernels::RowsView;

double* row(const RowsView& view, int64_t index) { return static_cast<double*>(view.data) + index * view.row_stride; }

void squared_relu_forward(const RowsView& x, const RowsView& y) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      const double positive = std::max(row(x, r)[c], 0.0);
      row(y, r)[c] = positive * positive;
    }
  }
}

// d_x (=|+=) 2 max(x, 0) d_y
void squared_relu_backward(const RowsView& x, const RowsView& d_y, const RowsDestination& d_x) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      const double gradient = 2.0 * std::max(row(x, r)[c], 0.0) * row(d_y, r)[c];
      double& place = row(d_x.view, r)[c];
      place = d_x.mode == GradientMode::accumulate ? place + gradient : gradient;
    }
  }
}

// --- The node: what is kept for backward, and which gradients it makes of which.

struct SquaredReluNode {
  Slot x, y;
  Tensor saved_x;

  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    squared_relu_backward(kernels::rows_view(saved_x), kernels::rows_view(d_y), rows_destination(tape.destination(x)));
  }
};

// --- The layer: checks, computes, records.

Variable squared_relu(Tape& tape, const Variable& x) {
  check(x.dtype() == DType::float64, "[squared_relu] x is {}, expected float64", name(x.dtype()));
  const bool recorded = tape.records("squared_relu", {{"x", x}});
  Variable y = tape.output(Tensor::empty(tape.context(), x.shape(), x.dtype()), recorded);
  squared_relu_forward(kernels::rows_view(x.value), kernels::rows_view(y.value));
  if (!recorded) return y;

  tape.record(SquaredReluNode{.x = x.slot, .y = y.slot, .saved_x = x.value}, {x}, {y});
  return y;
}

}  // namespace heddle

int main() {
  using namespace heddle;
  Context context;
  const Tensor x = Tensor::empty(context, {4, 5}, DType::float64);
  Random random(1, RandomStream::test);
  fill_normal(context, x, random, 0.0, 1.0);

  // Twice in a row, so that one of the two gets its gradient from the other.
  const auto function = [](Tape& tape, const std::vector<Variable>& inputs) {
    return std::vector<Variable>{squared_relu(tape, squared_relu(tape, inputs[0]))};
  };
  const GradcheckReport report = gradcheck(context, function, {{"x", x}});
  fmt::print("{}{}\n", report.to_string(), report.passed() ? "passed" : "failed");
  return report.passed() ? 0 : 1;
}
