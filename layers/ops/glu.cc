#include "layers/ops/glu.h"

#include "kernels/dense/elementwise.h"
#include "layers/ops/check.h"
#include "layers/ops/gradient.h"
#include "layers/ops/view.h"

namespace heddle {
namespace {

using kernels::rows_view;

struct GluNode : Node {
  Activation act;
  Slot a, b, y;
  Tensor saved_a, saved_b;

  std::string_view name() const override { return "glu"; }

  void backward(Tape& tape) override {
    const Tensor d_y = tape.take_gradient(y);
    kernels::GluBackwardArgs args{rows_view(saved_a), rows_view(saved_b), rows_view(d_y), {}, {}, act};
    args.d_a = rows_destination(tape.destination(a));
    args.d_b = rows_destination(tape.destination(b));
    kernels::glu_backward(tape.context(), args);
  }
};

// The product of the two halves of a projection.
Variable glu_of_halves(Tape& tape, const Variable& both, Activation act) {
  const int64_t hidden = both.shape()[-1] / 2;
  const std::vector<Variable> halves = split_last(tape, both, {hidden, hidden});
  return glu(tape, halves[0], halves[1], act);
}

}  // namespace

Variable glu(Tape& tape, const Variable& a, const Variable& b, Activation act) {
  check_rows("glu", "a", a);
  check_rows("glu", "b", b);
  check(b.shape() == a.shape(), "[glu] b has shape {}, expected {}: that of a", to_string(b.shape()),
        to_string(a.shape()));
  check_dtype("glu", "b", b, "a", a);
  const bool recorded = tape.records({&a, &b});
  Variable y = tape.output(Tensor::empty(tape.context(), a.shape(), a.dtype()), recorded);
  kernels::glu_forward(tape.context(), {rows_view(a.value), rows_view(b.value), rows_view(y.value), act});
  if (!recorded) return y;

  auto node = std::make_unique<GluNode>();
  node->act = act;
  node->a = a.slot;
  node->b = b.slot;
  node->y = y.slot;
  node->saved_a = a.value;
  node->saved_b = b.value;
  tape.record(std::move(node), {y.slot});
  return y;
}

NamedVariables apply_glu_product(Tape& tape, const ConfigNode& options, const NamedVariables& inputs) {
  const auto act = options.get_choice<Activation>("act", Activation::silu, activation_choices());
  options.finish();
  return {{"y", glu(tape, inputs.at("a"), inputs.at("b"), act)}};
}

NamedVariables apply_glu(Tape& tape, const ConfigNode& options, const NamedVariables& inputs) {
  const auto act = options.get_choice<Activation>("act", Activation::silu, activation_choices());
  const Variable &w12 = inputs.at("w12"), &w3 = inputs.at("w3");
  check(w3.value.rank() == 2, "[glu] w3 has shape {}, expected (dim, hidden)", to_string(w3.shape()));
  const int64_t hidden = options.find<int64_t>("hidden").value_or(w3.shape()[1]);
  options.finish();
  check(w12.value.rank() == 2 && w12.shape()[0] == 2 * hidden,
        "[glu] w12 has shape {}, expected ({}, dim): twice hidden", to_string(w12.shape()), 2 * hidden);
  return {{"y", linear(tape, glu_of_halves(tape, linear(tape, inputs.at("x"), w12), act), w3)}};
}

Glu::Options Glu::Options::read(const ConfigNode& section) {
  section.require_name("type", {"glu"});
  Options options;
  options.hidden = section.require<int64_t>("hidden", Range::at_least(1));
  options.act = section.get_choice<Activation>("act", options.act, activation_choices());
  section.finish();
  return options;
}

Glu::Glu(const Options& options, const ModuleBuilder& builder, int64_t dim)
    : options_(options),
      w12_({}, builder.child("w12"), dim, 2 * options.hidden),
      w3_({}, builder.child("w3"), options.hidden, dim) {}

Variable Glu::forward(Tape& tape, const Variable& x) const {
  return w3_.forward(tape, glu_of_halves(tape, w12_.forward(tape, x), options_.act));
}

}  // namespace heddle
