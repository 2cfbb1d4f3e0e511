#include "core/autograd/tape.h"

#include <algorithm>
#include <functional>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {

Variable Tape::leaf(Tensor value, Gradient& gradient, std::string_view name) {
  const auto replaced = replaced_leaves_.find(&gradient);
  if (replaced != replaced_leaves_.end()) return replaced->second;
  if (mode_ == Mode::inference) return constant(std::move(value));
  const Slot slot = slots_.add_leaf(value, gradient, name);
  return {std::move(value), slot};
}

Variable Tape::view(const Variable& from, View view) {
  Variable result{view(from.value), {}};
  if (from.requires_grad()) result.slot = slots_.add_view(from.slot, result.value, std::move(view));
  return result;
}

std::vector<Variable> Tape::split(const Variable& from, int dim, const std::vector<int64_t>& sizes) {
  std::vector<Variable> parts;
  std::vector<Slot> slots;
  int64_t begin = 0;
  for (int64_t size : sizes) {
    parts.push_back(view(from, [=](const Tensor& whole) { return whole.slice(dim, begin, begin + size); }));
    slots.push_back(parts.back().slot);
    begin += size;
  }
  check(begin == from.shape()[dim], "split of dimension {} of a value of shape {}: the parts add up to {}", dim,
        to_string(from.shape()), begin);
  if (from.requires_grad()) slots_.make_partition(slots);
  return parts;
}

bool Tape::records(std::initializer_list<const Variable*> inputs) const {
  return mode_ == Mode::record &&
         std::any_of(inputs.begin(), inputs.end(), [](const Variable* input) { return input->requires_grad(); });
}

Variable Tape::output(Tensor value, bool recorded) {
  const Slot slot = recorded ? slots_.add(value) : Slot{};
  return {std::move(value), slot};
}

void Tape::record(std::unique_ptr<Node> node, std::initializer_list<Slot> outputs) {
  Entry& entry = entries_.emplace_back();
  entry.node = std::move(node);
  entry.label = {context_.label().scope, MemoryCategory::gradient};
  std::copy_if(outputs.begin(), outputs.end(), std::back_inserter(entry.outputs),
               [](Slot slot) { return slot.id >= 0; });
}

Tensor Tape::take_gradient(Slot slot) { return slot.requires_grad() ? slots_.take(slot) : Tensor{}; }

GradientDestination Tape::destination(Slot slot) {
  return slot.requires_grad() ? slots_.destination(slot) : GradientDestination{};
}

bool Tape::share_gradient(Slot slot, const Tensor& gradient) {
  return !slot.requires_grad() || slots_.share_gradient(slot, gradient);
}

bool Tape::can_share_gradient(Slot slot) const { return slot.requires_grad() && slots_.can_share_gradient(slot); }

void Tape::write_root(const Root& root) {
  const auto& [variable, upstream] = root;
  check(variable.requires_grad(), "backward from a value that depends on no leaf that requires a gradient");
  Tensor seed = upstream;
  if (!seed.defined()) {
    check(variable.value.numel() == 1, "backward from a value of shape {} needs an upstream gradient",
          to_string(variable.shape()));
    const MemoryScope scope(context_, MemoryCategory::gradient);
    seed = Tensor::empty(context_, variable.shape(), variable.dtype());
    write_values(context_, seed, {1.0});
  }
  check(seed.shape() == variable.shape() && seed.dtype() == variable.dtype(),
        "backward: upstream gradient {} {}, expected {} {}", name(seed.dtype()), to_string(seed.shape()),
        name(variable.dtype()), to_string(variable.shape()));
  if (seed.is_contiguous() && share_gradient(variable.slot, seed)) return;
  const GradientDestination destination = this->destination(variable.slot);
  if (destination.mode == GradientMode::overwrite) {
    copy(context_, destination.tensor, seed);
  } else if (!context_.is_meta()) {  // rare: a root given twice, or a leaf that accumulates
    std::vector<double> sum = read_values(context_, destination.tensor);
    const std::vector<double> values = read_values(context_, seed);
    std::transform(sum.begin(), sum.end(), values.begin(), sum.begin(), std::plus<>());
    write_values(context_, destination.tensor, sum);
  }
}

void Tape::backward(const Variable& root, Tensor upstream) {
  std::vector<Root> roots;
  roots.push_back({root, std::move(upstream)});
  backward(std::move(roots));
}

void Tape::backward(std::vector<Root> roots) {
  check(!ran_backward_, "backward was called twice on one tape; what it saved is gone: record the forward pass again");
  slots_.begin_leaves();
  for (const Root& root : roots) write_root(root);
  roots.clear();  // upstream gradients that only the tape holds now may be written over and released
  ran_backward_ = true;
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    if (std::any_of(entry->outputs.begin(), entry->outputs.end(), [&](Slot slot) { return slots_.reached(slot); })) {
      const MemoryScope scope(context_, entry->label);
      slots_.begin_node();
      entry->node->backward(*this);
    }
    for (Slot slot : entry->outputs) slots_.release(slot);
    entry->node.reset();
  }
  const std::string missing = slots_.finish_leaves();
  check(missing.empty() || allow_unused_leaves_, "no gradient reached: {}; the result does not depend on it", missing);
}

}  // namespace heddle
