// Where the gradients of a tape's values live: one slot for each value. GradientSlots owns the memory of gradients
// whose values are no leaves, and decides whether a write overwrites or adds. docs/design.md#gradients
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/runtime/context.h"
#include "core/tensor/gradient_mode.h"
#include "core/tensor/tensor.h"

namespace heddle {

// Where the tape keeps the gradient of one value; id < 0: no gradient is wanted.
struct Slot {
  int id = -1;
  uint32_t tape = 0;  // the number of that tape: on another one the id means another value, or none
  bool requires_grad() const { return id >= 0; }
};

class GradientSlots;

// The gradient of a leaf. It outlives tapes and alone knows what was written to it, so several tapes may write to it,
// also a tape that runs inside a node of another one. The first write after `written` was cleared overwrites, later
// ones add.
struct Gradient {
  // Bound beforehand (a view of a flat buffer), in the dtype of the value or in its accumulate type. Or undefined: then
  // the first write allocates it, with the dimensions in memory in the order of those of the value.
  Tensor tensor;
  bool written = false;

  // The next write overwrites. The memory keeps its numbers until then.
  void clear() {
    may_hold_numbers_ |= written;
    written = false;
  }
  // For those who read the memory whether a backward has written it or not: zeroes what it holds of an older gradient.
  void zero_unless_written(Context& context);

 private:
  friend class GradientSlots;
  bool may_hold_numbers_ = false;     // false: all zeros, or the caller's
  GradientSlots* open_in_ = nullptr;  // the slots through which some of its parts were written, and others not yet
  int64_t writes_ = 0;                // number of destinations given so far, by all tapes
};

// Where and how a node writes one gradient. Undefined when that gradient is not wanted: compute nothing then.
// Two inputs of a node may be one value: then the second destination is the memory of the first, with
// GradientMode::accumulate, so a node writes its gradients in the order in which it asked for their destinations.
struct GradientDestination {
  Tensor tensor;
  GradientMode mode = GradientMode::overwrite;
  explicit operator bool() const { return tensor.defined(); }
};

class GradientSlots {
 public:
  using View = std::function<Tensor(const Tensor&)>;

  explicit GradientSlots(Context& context);
  GradientSlots(const GradientSlots&) = delete;
  GradientSlots& operator=(const GradientSlots&) = delete;

  Slot add(const Tensor& value);
  // Throws Error when the gradient's tensor does not fit the value, or the value that the gradient was added with.
  Slot add_leaf(const Tensor& value, Gradient& gradient, std::string_view name);
  // The slot of `value` = view(value of `of`). It has no memory of its own. Throws Error when `of` is a leaf whose
  // gradient's tensor has no such view.
  Slot add_view(Slot of, const Tensor& value, View view);
  // Declares that these views, added one after the other, cover the value they are views of without overlap.
  void make_partition(const std::vector<Slot>& parts);

  int count() const { return static_cast<int>(slots_.size()); }
  // Whether the slot is one of these. All other functions throw Error for a slot that is not.
  bool contains(Slot slot) const { return slot.tape == tape_; }
  // The slot with the memory: follows views to the value they are views of.
  Slot whole(Slot slot) const;
  // "leaf NAME" or the shape and dtype of the value, for errors.
  std::string describe(Slot slot) const;
  const std::vector<Slot>& leaves() const { return leaves_; }
  bool is_leaf(Slot slot) const { return at(slot).leaf != nullptr; }
  std::string_view leaf_name(Slot slot) const { return at(slot).leaf_name; }

  // A backward pass starts: what is written from here on counts for it.
  void begin_backward();
  // From here to the next call one node runs.
  void begin_node() { ++node_; }
  // Whether something was written to the slot, which is no leaf, or to a view of it.
  bool reached(Slot slot) const { return at(slot).reached; }
  // See Tape for the next four.
  Tensor take(Slot slot);
  GradientDestination destination(Slot slot);
  bool share_gradient(Slot slot, const Tensor& gradient);
  bool can_share_gradient(Slot slot) const;
  void release(Slot slot) { at(slot).gradient = {}; }

  // The gradient of a leaf is complete: zeroes the parts that nothing wrote. Returns the Gradient, or nullptr when this
  // backward pass did not reach it.
  Gradient* finish_leaf(Slot slot);
  // The names of the leaves that nothing reached, in order, joined by commas. Throws Error when a leaf was written
  // after finish_leaf().
  std::string end_backward() const;
  // The backward pass threw: Gradient::written of all leaves is again what it was at its start.
  void abandon_backward() noexcept;

 private:
  // The slots [first, first + count) are views that cover a value without overlap. None: count 0.
  struct Partition {
    int first = -1;
    int count = 0;
    bool operator==(const Partition&) const = default;
  };
  struct State {
    Shape shape, strides;  // of the value
    DType dtype;

    // Values that are no leaves, and views.
    Tensor gradient;
    bool reached = false;
    bool written = false;  // all of it
    int64_t writer = -1;   // the node that got the last destination here

    // Leaves: `leaf` says what was written.
    Gradient* leaf = nullptr;
    std::string leaf_name;
    bool written_before = false;  // Gradient::written and Gradient::writes_ when the backward pass began
    int64_t writes_before = 0;
    int64_t writes_at_finish = -1;

    // Views.
    int view_of = -1;
    View view;
    Partition partition;  // of which this slot is a part

    Partition open;  // the parts through which this value is being written
  };

  State& at(Slot slot);
  const State& at(Slot slot) const;
  void check_view_of_gradient(Slot slot) const;
  Tensor view_of(const State& state, const Tensor& whole) const;
  Tensor memory(State& state);
  bool is_written(const State& state) const;
  void set_written(State& state);
  bool holds_gradient(State& state);
  void open(State& state, const Partition& parts);
  void close(State& state);
  void close_in_other_tape(const Gradient& leaf);

  Context& context_;
  uint32_t tape_;  // the number of these slots
  std::vector<State> slots_;
  int64_t node_ = 0;
  std::vector<Slot> leaves_;
  std::unordered_map<const Gradient*, Slot> slot_of_leaf_;
};

}  // namespace heddle
