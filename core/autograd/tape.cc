#include "core/autograd/tape.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <string_view>
#include <utility>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

// "heddle::LinearNode"
std::string readable(const std::type_info& type) {
  const std::unique_ptr<char, decltype(&std::free)> text(abi::__cxa_demangle(type.name(), nullptr, nullptr, nullptr),
                                                         &std::free);
  return text ? text.get() : type.name();
}

// "linear_attention" for "heddle::(anonymous namespace)::LinearAttentionNode<float>".
std::string operator_name(const std::type_info& node) {
  std::string type = readable(node);
  type = type.substr(0, type.find('<'));
  type = type.substr(type.rfind(':') + 1);
  if (type.ends_with("Node")) type.resize(type.size() - std::string_view("Node").size());
  std::string name;
  for (const char letter : type) {
    const bool is_capital = letter >= 'A' && letter <= 'Z';
    if (is_capital && !name.empty()) name += '_';
    name += is_capital ? static_cast<char>(letter - 'A' + 'a') : letter;
  }
  return name;
}

}  // namespace

bool Tape::is_elsewhere(const Tensor& value) const {
  return !context_.is_meta() && value.defined() && value.device() != context_.device();
}

void Tape::check_device(const Tensor& value, std::string_view name) const {
  if (!is_elsewhere(value)) return;
  fail("{} is on device {}, the tape on {}", name, to_string(value.device()), to_string(context_.device()));
}

Variable Tape::constant(Tensor value) const {
  check_device(value, "a value");
  return {std::move(value), {}};
}

Variable Tape::leaf(Tensor value, Gradient& gradient, std::string_view name) {
  const auto replaced = replaced_leaves_.find(&gradient);
  if (replaced != replaced_leaves_.end()) return replaced->second;
  check(value.defined(), "leaf {} has no value", name);
  check_device(value, name);
  if (mode_ != Mode::record) return constant(std::move(value));
  if (is_elsewhere(gradient.tensor)) check_device(gradient.tensor, fmt::format("the gradient of leaf {}", name));
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
        from.shape(), begin);
  if (from.requires_grad()) slots_.make_partition(slots);
  return parts;
}

bool Tape::records(std::initializer_list<const Variable*> inputs) const {
  for (const Variable* input : inputs) {
    if (is_elsewhere(input->value)) check_device(input->value, "an input of shape " + to_string(input->shape()));
  }
  return std::any_of(inputs.begin(), inputs.end(), [&](const Variable* input) { return wants_gradient(*input); });
}

bool Tape::records(std::string_view op, std::initializer_list<NamedInput> inputs) const {
  for (const auto& [name, input] : inputs) {
    if (is_elsewhere(input.value)) check_device(input.value, fmt::format("[{}] {}", op, name));
  }
  return std::any_of(inputs.begin(), inputs.end(),
                     [&](const NamedInput& input) { return wants_gradient(input.variable); });
}

Variable Tape::output(Tensor value, bool recorded) {
  const Slot slot = recorded ? slots_.add(value) : Slot{};
  Variable output{std::move(value), slot};
  if ((disturbance_ || watch_) && recorded) new_outputs_.push_back(output);
  return output;
}

// Without those of an operator that threw before its node was recorded.
std::vector<Tensor> Tape::take_new_outputs(const std::vector<Slot>& outputs) {
  std::vector<Tensor> made;
  for (const Variable& output : std::exchange(new_outputs_, {})) {
    const bool is_own = std::any_of(outputs.begin(), outputs.end(), [&](Slot own) { return own.id == output.slot.id; });
    if (is_own) made.push_back(output.value);
  }
  return made;
}

void Tape::add_entry(std::unique_ptr<AnyNode> node, std::vector<Slot> inputs, std::vector<Slot> outputs) {
  if (ran_backward_) fail("{} was recorded on a tape that has run backward", readable(node->type()));
  std::vector<Tensor> made = take_new_outputs(outputs);
  if (disturbance_) std::for_each(made.begin(), made.end(), disturbance_);
  std::erase_if(inputs, [](Slot slot) { return !slot.requires_grad(); });
  std::erase_if(outputs, [](Slot slot) { return !slot.requires_grad(); });
  for (const std::vector<Slot>* slots : {&inputs, &outputs}) {
    const bool are_own = std::all_of(slots->begin(), slots->end(), [&](Slot slot) { return slots_.contains(slot); });
    if (are_own) continue;
    fail("{} was given a value of another tape: what is computed on a tape can be used on that one alone",
         operator_name(node->type()));
  }
  for (Slot& input : inputs) input = slots_.whole(input);
  entries_.push_back({.node = std::move(node),
                      .label = {context_.label().scope, MemoryCategory::gradient},
                      .inputs = std::move(inputs),
                      .outputs = std::move(outputs),
                      .final_leaves = {}});
  if (watch_) tell(entries_.back(), false, std::move(made));
}

void Tape::tell(const Entry& entry, bool is_gradient, std::vector<Tensor> numbers) const {
  const std::string scope = context_.allocator().scope_name(entry.label.scope);
  Made made{.op = operator_name(entry.node->type()),
            .scope = scope,
            .leaves = {},
            .is_gradient = is_gradient,
            .numbers = std::move(numbers)};
  for (const Slot input : entry.inputs) {
    if (slots_.is_leaf(input)) made.leaves.emplace_back(slots_.leaf_name(input));
  }
  watch_(made);
}

Tensor Tape::take_gradient(Slot slot) {
  if (!slot.requires_grad()) return {};
  Tensor gradient = slots_.take(slot);
  if (!disturbance_ || !gradient.defined()) return gradient;
  if (!gradient.is_unique()) gradient = clone(context_, gradient);  // others hold it, too
  disturbance_(gradient);
  return gradient;
}

GradientDestination Tape::destination(Slot slot) {
  if (!slot.requires_grad()) return {};
  check_input(slot);
  GradientDestination destination = slots_.destination(slot);
  if (watch_ && running_ != nullptr && destination.tensor.defined()) written_.push_back(destination.tensor);
  return destination;
}

bool Tape::share_gradient(Slot slot, const Tensor& gradient) {
  if (!slot.requires_grad()) return true;
  check_input(slot);
  const bool is_shared = slots_.share_gradient(slot, gradient);
  if (watch_ && running_ != nullptr && is_shared) written_.push_back(gradient);
  return is_shared;
}

bool Tape::can_share_gradient(Slot slot) const {
  if (!slot.requires_grad()) return false;
  check_input(slot);
  return slots_.can_share_gradient(slot);
}

// What a node writes must be known before it runs, or a leaf would be called final too early.
void Tape::check_input(Slot slot) const {
  if (running_ == nullptr) return;
  const int whole = slots_.whole(slot).id;
  const bool found =
      std::any_of(running_->inputs.begin(), running_->inputs.end(), [&](Slot input) { return input.id == whole; });
  if (found) return;
  std::string scope = context_.allocator().scope_name(running_->label.scope);
  if (!scope.empty()) scope = ", recorded in " + scope + ",";
  fail("{}{} asks for the gradient of {}, which is not among the inputs it was recorded with",
       readable(running_->node->type()), scope, slots_.describe(slot));
}

// Sets final_leaves of all entries; returns the leaves that no node writes.
std::vector<Slot> Tape::find_final_leaves() {
  std::vector<bool> found(static_cast<size_t>(slots_.count()));
  for (Entry& entry : entries_) {
    for (Slot input : entry.inputs) {
      if (!slots_.is_leaf(input) || found[static_cast<size_t>(input.id)]) continue;
      found[static_cast<size_t>(input.id)] = true;
      entry.final_leaves.push_back(input);
    }
  }
  std::vector<Slot> others = slots_.leaves();
  std::erase_if(others, [&](Slot leaf) { return found[static_cast<size_t>(leaf.id)]; });
  return others;
}

void Tape::finish_leaf(Slot leaf) {
  Gradient* gradient = slots_.finish_leaf(leaf);
  if (gradient != nullptr && on_gradient_final_) on_gradient_final_(*gradient, slots_.leaf_name(leaf));
}

void Tape::check_root(const Root& root) const {
  const auto& [variable, upstream] = root;
  check(variable.requires_grad(), "backward from a value that depends on no leaf that requires a gradient");
  if (!upstream.defined()) {
    check(variable.value.numel() == 1, "backward from a value of shape {} needs an upstream gradient",
          variable.shape());
    return;
  }
  check(upstream.shape() == variable.shape() && upstream.dtype() == variable.dtype(),
        "backward: upstream gradient {} {}, expected {} {}", name(upstream.dtype()), upstream.shape(),
        name(variable.dtype()), variable.shape());
  check_device(upstream, "the upstream gradient");
}

void Tape::write_root(const Root& root) {
  const auto& [variable, upstream] = root;
  Tensor seed = upstream;
  if (!seed.defined()) {
    const MemoryScope scope(context_, MemoryCategory::gradient);
    seed = Tensor::empty(context_, variable.shape(), variable.dtype());
    write_values(context_, seed, {1.0});
  }
  if (seed.is_contiguous() && share_gradient(variable.slot, seed)) return;
  const auto [to, mode] = destination(variable.slot);
  const bool adds = mode == GradientMode::accumulate;
  if (!adds && to.dtype() == seed.dtype()) {
    copy(context_, to, seed);
  } else if (!context_.is_meta()) {  // rare: a root given twice, a leaf that accumulates or has a wide gradient
    std::vector<double> sum = read_values(context_, seed);
    if (adds) {
      const std::vector<double> before = read_values(context_, to);
      std::transform(sum.begin(), sum.end(), before.begin(), sum.begin(), std::plus<>());
    }
    write_values(context_, to, sum);
  }
}

// Runs the node if a gradient reached one of its outputs, and releases what it held.
void Tape::run(Entry& entry) {
  running_ = &entry;
  if (std::any_of(entry.outputs.begin(), entry.outputs.end(), [&](Slot slot) { return slots_.reached(slot); })) {
    const MemoryScope scope(context_, entry.label);
    slots_.begin_node();
    entry.node->backward(*this);
    if (watch_) tell(entry, true, std::exchange(written_, {}));
  }
  running_ = nullptr;
  for (Slot slot : entry.outputs) slots_.release(slot);
  entry.node.reset();
}

void Tape::backward(const Variable& root, Tensor upstream) {
  std::vector<Root> roots;
  roots.push_back({root, std::move(upstream)});
  backward(std::move(roots));
}

void Tape::backward(std::vector<Root> roots) {
  check(!ran_backward_, "backward was called twice on one tape; what it saved is gone: record the forward pass again");
  for (const Root& root : roots) check_root(root);
  ran_backward_ = true;
  slots_.begin_backward();
  try {
    for (const Root& root : roots) write_root(root);
    roots.clear();  // upstream gradients that only the tape holds now may be written over and released
    for (Slot leaf : find_final_leaves()) finish_leaf(leaf);
    for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
      run(*entry);
      for (Slot leaf : entry->final_leaves) finish_leaf(leaf);
    }
  } catch (...) {
    running_ = nullptr;
    slots_.abandon_backward();
    throw;
  }
  const std::string missing = slots_.end_backward();
  check(missing.empty() || allow_unused_leaves_, "no gradient reached: {}; the result does not depend on it", missing);
}

}  // namespace heddle
