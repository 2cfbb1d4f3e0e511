#include "layers/ops/recompute.h"

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

#include "core/runtime/context.h"
#include "layers/ops/gradient.h"

namespace heddle {
namespace {

// A parameter in place of which the tape has a value of its own.
struct Replaced {
  Parameter* parameter;
  Variable by;
};

struct RecomputeNode {
  std::vector<Variable> inputs;
  std::vector<Slot> outputs;
  std::vector<Replaced> replaced;
  RecomputedFunction function;

  void backward(Tape& tape) {
    Context& context = tape.context();
    Tape inner(context);
    inner.allow_unused_leaves();  // of an output that nothing uses; the outer tape knows whether a leaf was reached
    inner.watch(tape.watched_by());
    std::vector<Gradient> gradients(inputs.size()), replaced_gradients(replaced.size());
    std::vector<Variable> leaves;
    for (size_t i = 0; i < inputs.size(); ++i) {
      leaves.push_back(inputs[i].requires_grad() ? inner.leaf(inputs[i].value, gradients[i], "recomputed input")
                                                 : inputs[i]);
    }
    for (size_t i = 0; i < replaced.size(); ++i) {
      const auto& [parameter, by] = replaced[i];
      inner.replace_leaf(parameter->gradient, inner.leaf(by.value, replaced_gradients[i], parameter->name));
    }
    std::vector<Variable> again;
    {
      const MemoryScope scope(context, MemoryCategory::activation);
      again = function(inner, leaves);
    }
    std::vector<Tape::Root> roots;
    for (size_t i = 0; i < outputs.size(); ++i) {
      Tensor upstream = tape.take_gradient(outputs[i]);
      const bool depends_on_leaf = again[i].requires_grad();
      if (upstream.defined() && depends_on_leaf) roots.push_back({again[i], std::move(upstream)});
    }
    leaves.clear();
    again.clear();
    inner.backward(std::move(roots));
    for (size_t i = 0; i < inputs.size(); ++i) pass(tape, inputs[i], gradients[i]);
    for (size_t i = 0; i < replaced.size(); ++i) pass(tape, replaced[i].by, replaced_gradients[i]);
  }

  static void pass(Tape& tape, const Variable& to, const Gradient& gradient) {
    if (to.requires_grad() && gradient.tensor.defined()) pass_gradient(tape, to.slot, gradient.tensor);
  }
};

}  // namespace

std::vector<Variable> recompute(Tape& tape, const std::vector<Variable>& inputs,
                                const std::vector<Parameter*>& parameters, RecomputedFunction function) {
  RecomputeNode node{.inputs = inputs, .outputs = {}, .replaced = {}, .function = std::move(function)};
  std::vector<Slot> slots(inputs.begin(), inputs.end());
  Tape forward(tape.context(), Tape::Mode::unrecorded);
  for (Parameter* parameter : parameters) {
    const Variable leaf = tape.leaf(parameter->value, parameter->gradient, parameter->name);
    slots.push_back(leaf);
    if (!tape.replaces(parameter->gradient)) continue;
    node.replaced.push_back({parameter, leaf});
    forward.replace_leaf(parameter->gradient, forward.constant(leaf.value));
  }
  const bool records = tape.mode() == Tape::Mode::record &&
                       std::any_of(slots.begin(), slots.end(), [](Slot slot) { return slot.requires_grad(); });
  if (!records) return node.function(tape, inputs);
  std::vector<Variable> constants;
  for (const Variable& input : inputs) constants.push_back({input.value, {}});
  std::vector<Variable> outputs;
  for (Variable& output : node.function(forward, constants)) {
    outputs.push_back(tape.output(std::move(output.value), true));
    node.outputs.push_back(outputs.back().slot);
  }
  std::vector<Slot> output_slots = node.outputs;
  tape.record(std::move(node), std::move(slots), std::move(output_slots));
  return outputs;
}

}  // namespace heddle
