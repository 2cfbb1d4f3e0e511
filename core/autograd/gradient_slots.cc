#include "core/autograd/gradient_slots.h"

#include <atomic>
#include <cstdint>
#include <utility>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"

namespace heddle {
namespace {

// From 1. An address would not do: a tape may lie where one of the step before did.
uint32_t new_tape_number() {
  static std::atomic<uint32_t> last{0};
  return ++last;
}

// Operators see of a leaf and of its gradient the same views, and demand contiguous ones.
void check_bound_gradient(const Tensor& value, const Tensor& gradient, std::string_view leaf) {
  if (value.shape() != gradient.shape()) {
    fail("leaf {} has shape {}, its gradient {}", leaf, value.shape(), gradient.shape());
  }
  const DType dtype = value.dtype(), wide = accumulate_type(dtype);
  if (gradient.dtype() != dtype && gradient.dtype() != wide) {
    fail("leaf {} is {}, its gradient {}, expected {}{}", leaf, name(dtype), name(gradient.dtype()), name(dtype),
         wide == dtype ? "" : fmt::format(" or {}", name(wide)));
  }
  for (int dim = 0; dim < value.rank(); ++dim) {
    if (value.size(dim) < 2 || value.stride(dim) != 1 || gradient.stride(dim) == 1) continue;
    fail("leaf {} of shape {} has strides {}, its gradient {}, expected 1 in dimension {} of both", leaf, value.shape(),
         value.strides(), gradient.strides(), dim);
  }
}

}  // namespace

void Gradient::zero_unless_written(Context& context) {
  if (written || !may_hold_numbers_ || !tensor.defined()) return;
  fill_zero(context, tensor);
  may_hold_numbers_ = false;
}

GradientSlots::GradientSlots(Context& context) : context_(context), tape_(new_tape_number()) {}

const GradientSlots::State& GradientSlots::at(Slot slot) const {
  check(contains(slot), "a value of another tape: what is computed on a tape can be used on that one alone");
  return slots_[slot.id];
}

GradientSlots::State& GradientSlots::at(Slot slot) { return const_cast<State&>(std::as_const(*this).at(slot)); }

Slot GradientSlots::add(const Tensor& value) {
  State& state = slots_.emplace_back();
  state.shape = value.shape();
  state.strides = value.strides();
  state.dtype = value.dtype();
  return {static_cast<int>(slots_.size()) - 1, tape_};
}

Slot GradientSlots::add_leaf(const Tensor& value, Gradient& gradient, std::string_view name) {
  if (gradient.tensor.defined()) check_bound_gradient(value, gradient.tensor, name);
  const auto found = slot_of_leaf_.find(&gradient);
  if (found != slot_of_leaf_.end()) {
    const State& known = at(found->second);
    if (value.shape() == known.shape && value.dtype() == known.dtype) return found->second;
    fail("leaf {} is {} {}, its gradient is that of leaf {}, {} {}", name, heddle::name(value.dtype()), value.shape(),
         known.leaf_name, heddle::name(known.dtype), known.shape);
  }
  const Slot slot = add(value);
  slot_of_leaf_[&gradient] = slot;
  leaves_.push_back(slot);
  State& state = at(slot);
  state.leaf = &gradient;
  state.leaf_name = name;
  return slot;
}

Slot GradientSlots::add_view(Slot of, const Tensor& value, View view) {
  const bool is_whole = value.numel() == numel(at(of).shape);
  const Slot slot = add(value);
  State& state = at(slot);
  state.view_of = of.id;
  state.view = std::move(view);
  if (is_whole) state.partition = {slot.id, 1};
  check_view_of_gradient(slot);
  return slot;
}

// What a bound gradient of other strides than its value does not allow is found here, not in the middle of backward.
void GradientSlots::check_view_of_gradient(Slot slot) const {
  const State& leaf = at(whole(slot));
  if (leaf.leaf == nullptr || !leaf.leaf->tensor.defined()) return;
  try {
    view_of(at(slot), leaf.leaf->tensor);
  } catch (const Error& error) {
    fail("the gradient of leaf {} has strides {}, unlike its value, which allows a view that it does not: {}",
         leaf.leaf_name, leaf.leaf->tensor.strides(), error.what());
  }
}

Tensor GradientSlots::view_of(const State& state, const Tensor& whole) const {
  return state.view_of < 0 ? whole : state.view(view_of(slots_[state.view_of], whole));
}

void GradientSlots::make_partition(const std::vector<Slot>& parts) {
  for (Slot part : parts) at(part).partition = {parts.front().id, static_cast<int>(parts.size())};
}

Slot GradientSlots::whole(Slot slot) const {
  while (at(slot).view_of >= 0) slot.id = at(slot).view_of;
  return slot;
}

std::string GradientSlots::describe(Slot slot) const {
  const State& state = at(slot);
  if (state.leaf != nullptr) return fmt::format("leaf {}", state.leaf_name);
  return fmt::format("a value {} {}", name(state.dtype), to_string(state.shape));
}

Tensor GradientSlots::take(Slot slot) {
  State& state = at(slot);
  close(state);
  return std::move(state.gradient);
}

GradientDestination GradientSlots::destination(Slot slot) {
  State& state = at(slot);
  if (Gradient* leaf = at(whole(slot)).leaf) {
    close_in_other_tape(*leaf);
    ++leaf->writes_;
    leaf->may_hold_numbers_ = true;
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
  if (!tensor.defined()) tensor = Tensor::empty_in_order(context_, state.shape, state.strides, state.dtype);
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
  const State& state = at(slot);
  return state.leaf == nullptr && state.view_of < 0 && !state.reached;
}

bool GradientSlots::share_gradient(Slot slot, const Tensor& gradient) {
  if (!can_share_gradient(slot)) return false;
  State& state = at(slot);
  check(gradient.shape() == state.shape && gradient.dtype() == state.dtype && gradient.is_contiguous(),
        "share_gradient: gradient {} {} of strides {} for a value {} {}", name(gradient.dtype()), gradient.shape(),
        gradient.strides(), name(state.dtype), state.shape);
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
  State& state = at(slot);
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
