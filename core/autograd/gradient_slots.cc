#include "core/autograd/gradient_slots.h"

#include <cstdint>
#include <utility>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {

Slot GradientSlots::add(const Tensor& value) {
  State& state = slots_.emplace_back();
  state.shape = value.shape();
  state.dtype = value.dtype();
  return {static_cast<int>(slots_.size()) - 1};
}

Slot GradientSlots::add_leaf(const Tensor& value, Gradient& gradient, std::string_view name) {
  const auto [found, is_new] = slot_of_leaf_.try_emplace(&gradient, Slot{static_cast<int>(slots_.size())});
  const Slot slot = found->second;
  if (is_new) {
    leaves_.push_back(slot);
    State& state = slots_[add(value).id];
    state.leaf = &gradient;
    state.leaf_name = name;
  }
  const Shape& expected = gradient.tensor.defined() ? gradient.tensor.shape() : slots_[slot.id].shape;
  check(value.shape() == expected, "leaf {} has shape {}, its gradient {}", name, to_string(value.shape()),
        to_string(expected));
  return slot;
}

Slot GradientSlots::add_view(Slot of, const Tensor& value, View view) {
  const Slot slot = add(value);
  State& state = slots_[slot.id];
  state.view_of = of.id;
  state.view = std::move(view);
  if (numel(state.shape) == numel(slots_[of.id].shape)) state.partition = {slot.id, 1};
  return slot;
}

void GradientSlots::make_partition(const std::vector<Slot>& parts) {
  for (Slot part : parts) slots_[part.id].partition = {parts.front().id, static_cast<int>(parts.size())};
}

Slot GradientSlots::whole(Slot slot) const {
  while (slots_[slot.id].view_of >= 0) slot.id = slots_[slot.id].view_of;
  return slot;
}

std::string GradientSlots::describe(Slot slot) const {
  const State& state = slots_[slot.id];
  if (state.leaf != nullptr) return fmt::format("leaf {}", state.leaf_name);
  return fmt::format("a value {} {}", name(state.dtype), to_string(state.shape));
}

Tensor GradientSlots::take(Slot slot) {
  close(slots_[slot.id]);
  return std::move(slots_[slot.id].gradient);
}

GradientDestination GradientSlots::destination(Slot slot) {
  State& state = slots_[slot.id];
  if (Gradient* leaf = slots_[whole(slot).id].leaf) {
    close_in_other_tape(*leaf);
    ++leaf->writes_;
  }
  close(state);
  const GradientMode mode = holds_gradient(state) ? GradientMode::accumulate : GradientMode::overwrite;
  set_written(state);
  for (int id = slot.id; id >= 0; id = slots_[id].view_of) slots_[id].reached = true;
  return {memory(state), mode};
}

// The memory a gradient is written to: allocated by the first write, and copied before a write when it has other
// holders. A destination that the running node already has for the same slot is none: it is about to be written.
Tensor GradientSlots::memory(State& state) {
  if (state.view_of >= 0) return state.view(memory(slots_[state.view_of]));
  Tensor& tensor = state.leaf != nullptr ? state.leaf->tensor : state.gradient;
  if (!tensor.defined()) tensor = Tensor::empty(context_, state.shape, state.dtype);
  const int64_t writer = std::exchange(state.writer, node_);
  if (state.leaf == nullptr && writer != node_ && !tensor.is_unique()) tensor = clone(context_, tensor);
  return tensor;
}

bool GradientSlots::is_written(const State& state) const {
  if (state.leaf != nullptr) return state.leaf->written;
  return state.written || (state.view_of >= 0 && is_written(slots_[state.view_of]));
}

void GradientSlots::set_written(State& state) {
  if (state.leaf != nullptr) {
    state.leaf->written = true;
  } else {
    state.written = true;
  }
}

// Whether a write to a slot has to add to what its memory holds. If not, makes sure that all memory around the slot
// will be written too: later, through the other parts of its partition, or with zeros right here.
bool GradientSlots::holds_gradient(State& state) {
  if (is_written(state)) return true;
  if (state.view_of < 0) return false;
  State& whole = slots_[state.view_of];
  if (whole.open.count > 0) {
    if (whole.open == state.partition) return false;
    close(whole);  // the parts written so far may overlap this one
    return true;
  }
  if (holds_gradient(whole)) return true;
  open(whole, state.partition);
  if (state.partition.count == 0) {
    fill_zero(context_, memory(whole));
    set_written(whole);
  }
  return false;
}

void GradientSlots::open(State& state, const Partition& parts) {
  state.open = parts;
  if (state.leaf != nullptr && parts.count > 0) state.leaf->open_in_ = this;
}

// After parts of a slot were written: zeroes those that were not, so that the whole counts as written.
void GradientSlots::close(State& state) {
  const Partition parts = std::exchange(state.open, {});
  if (parts.count == 0) return;
  if (state.leaf != nullptr) state.leaf->open_in_ = nullptr;
  for (int id = parts.first; id < parts.first + parts.count; ++id) {
    close(slots_[id]);
    if (!is_written(slots_[id])) fill_zero(context_, memory(slots_[id]));
  }
  set_written(state);
}

// Another tape wrote parts of this leaf. It may not have written all of them when this one writes: a node of either
// runs the other.
void GradientSlots::close_in_other_tape(const Gradient& leaf) {
  GradientSlots* other = leaf.open_in_;
  if (other != nullptr && other != this) other->close(other->slots_[other->slot_of_leaf_.at(&leaf).id]);
}

bool GradientSlots::can_share_gradient(Slot slot) const {
  const State& state = slots_[slot.id];
  return state.leaf == nullptr && state.view_of < 0 && !state.reached;
}

bool GradientSlots::share_gradient(Slot slot, const Tensor& gradient) {
  if (!can_share_gradient(slot)) return false;
  State& state = slots_[slot.id];
  check(gradient.shape() == state.shape && gradient.dtype() == state.dtype && gradient.is_contiguous(),
        "share_gradient: gradient {} {} of strides {} for a value {} {}", name(gradient.dtype()),
        to_string(gradient.shape()), to_string(gradient.strides()), name(state.dtype), to_string(state.shape));
  state.gradient = gradient;
  state.reached = state.written = true;
  return true;
}

void GradientSlots::begin_backward() {
  for (Slot slot : leaves_) {
    State& state = slots_[slot.id];
    // What another tape has begun to write will be written whatever becomes of this backward pass.
    state.written_before = state.leaf->written || state.leaf->open_in_ != nullptr;
    state.writes_before = state.leaf->writes_;
  }
}

Gradient* GradientSlots::finish_leaf(Slot slot) {
  State& state = slots_[slot.id];
  close(state);
  state.writes_at_finish = state.leaf->writes_;
  return state.writes_at_finish > state.writes_before ? state.leaf : nullptr;
}

std::string GradientSlots::end_backward() const {
  std::string missing;
  for (Slot slot : leaves_) {
    const State& state = slots_[slot.id];
    if (state.writes_at_finish >= 0 && state.leaf->writes_ != state.writes_at_finish) {
      fail(
          "{} was written after its gradient was final: a node that runs a tape in its backward was recorded without "
          "it "
          "among its inputs",
          describe(slot));
    }
    if (state.writes_at_finish <= state.writes_before) missing += (missing.empty() ? "" : ", ") + state.leaf_name;
  }
  return missing;
}

void GradientSlots::abandon_backward() noexcept {
  for (Slot slot : leaves_) {
    State& state = slots_[slot.id];
    if (state.leaf->open_in_ == this) state.leaf->open_in_ = nullptr;
    state.leaf->written = state.leaf->written && state.written_before;
  }
}

}  // namespace heddle
