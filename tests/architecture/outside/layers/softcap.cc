// An operator on the CPU only: kernels that write or add, a node on the tape, the options, and cases with a reference.
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "heddle/core/config/config_fields.h"
#include "heddle/core/runtime/error.h"
#include "heddle/core/tensor/element_types.h"
#include "heddle/kernels/common/dispatch.h"
#include "heddle/kernels/common/types.h"
#include "heddle/layers/ops/gradient.h"
#include "layers/module.h"

namespace outside {

using heddle::GradientMode;
using heddle::kernels::RowsDestination;
using heddle::kernels::RowsView;

// --- Kernels ---

struct SoftcapForwardArgs {
  RowsView x, y;
  double cap = 1.0;
};
struct SoftcapBackwardArgs {
  RowsView x, d_y;
  RowsDestination d_x;
  double cap = 1.0;
};
HEDDLE_CPU_KERNEL(softcap_forward, SoftcapForwardArgs);
HEDDLE_CPU_KERNEL(softcap_backward, SoftcapBackwardArgs);

namespace cpu {

// Calls visit(T{}, row, column) for each element of a view of T.
template <class Visit>
void for_each_element(const RowsView& view, const Visit& visit) {
  heddle::kernels::visit_floating_as<heddle::bfloat16, heddle::float16>(view.dtype, [&](auto type) {
    for (int64_t row = 0; row < view.rows; ++row) {
      for (int64_t column = 0; column < view.cols; ++column) visit(type, row, column);
    }
  });
}

void softcap_forward(heddle::Context&, const SoftcapForwardArgs& args) {
  for_each_element(args.x, [&](auto type, int64_t row, int64_t column) {
    using T = decltype(type);
    const double x = static_cast<double>(heddle::kernels::row<T>(args.x, row)[column]);
    heddle::kernels::row<T>(args.y, row)[column] = static_cast<T>(args.cap * std::tanh(x / args.cap));
  });
}

void softcap_backward(heddle::Context&, const SoftcapBackwardArgs& args) {
  for_each_element(args.x, [&](auto type, int64_t row, int64_t column) {
    using T = decltype(type);
    const double tanh = std::tanh(static_cast<double>(heddle::kernels::row<T>(args.x, row)[column]) / args.cap);
    const double d_y = static_cast<double>(heddle::kernels::row<T>(args.d_y, row)[column]);
    T& d_x = heddle::kernels::row<T>(args.d_x.view, row)[column];
    const double old = args.d_x.mode == GradientMode::accumulate ? static_cast<double>(d_x) : 0.0;
    d_x = static_cast<T>(old + d_y * (1.0 - tanh * tanh));
  });
}

}  // namespace cpu

// --- The operator on the tape ---

namespace {

struct SoftcapNode {
  double cap;
  heddle::Slot x, y;
  heddle::Tensor saved_x;

  void backward(heddle::Tape& tape) {
    const heddle::Tensor d_y = tape.take_gradient(y);
    softcap_backward(tape.context(), {heddle::kernels::rows_view(saved_x), heddle::kernels::rows_view(d_y),
                                      heddle::rows_destination(tape.destination(x)), cap});
  }
};

heddle::Variable softcap(heddle::Tape& tape, const heddle::Variable& x, double cap) {
  heddle::check(heddle::is_floating(x.dtype()), "[softcap] x is {}, expected real numbers", heddle::name(x.dtype()));
  const bool recorded = tape.records("softcap", {{"x", x}});
  heddle::Variable y = tape.output(heddle::Tensor::empty(tape.context(), x.shape(), x.dtype()), recorded);
  softcap_forward(tape.context(), {heddle::kernels::rows_view(x.value), heddle::kernels::rows_view(y.value), cap});
  if (!recorded) return y;

  tape.record(SoftcapNode{.cap = cap, .x = x.slot, .y = y.slot, .saved_x = x.value}, {x}, {y});
  return y;
}

// --- The row: options, cases, reference ---

heddle::OperatorFunction make_softcap(const heddle::ConfigNode& options) {
  double cap = 0.0;
  heddle::ConfigFields(options).required("cap", cap, heddle::Range::positive());
  return [cap](heddle::Tape& tape, const heddle::NamedVariables& inputs) {
    return heddle::NamedVariables{{"y", softcap(tape, inputs.at("x"), cap)}};
  };
}

heddle::ReferenceTensors softcap_reference(const heddle::ConfigNode& options, const heddle::ReferenceTensors& inputs,
                                           heddle::DType) {
  const double cap = options.require<double>("cap");
  heddle::ReferenceTensor y = inputs.at("x");
  for (double& value : y.values) value = cap * std::tanh(value / cap);
  return {{"y", y}};
}

heddle::OperatorCase softcap_case(const std::string& options, const heddle::Shape& shape, bool large) {
  return {.name = "softcap " + options + " " + heddle::to_string(shape),
          .op = "softcap",
          .options = options,
          .inputs = {{.name = "x", .shape = shape}},
          .reference = softcap_reference,
          .large = large};
}

std::vector<heddle::OperatorCase> softcap_cases() {
  return {softcap_case("{cap: 30}", {2, 3, 7}, false), softcap_case("{cap: 1.5}", {4, 5}, false),
          softcap_case("{cap: 2}", {64, 1024}, true)};
}

}  // namespace

heddle::Operator softcap_operator() {
  return {.name = "softcap", .inputs = {{.name = "x"}}, .outputs = {"y"}, .make = make_softcap, .cases = softcap_cases};
}

}  // namespace outside
