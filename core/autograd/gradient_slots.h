// Where the gradients of a tape's values live: one slot a value. Owns the memory of those that are no leaves, and knows
// of each whether the next write overwrites or adds.                                      docs/design.md#gradients
#pragma once

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
  bool requires_grad() const { return id >= 0; }
};

// The gradient of a leaf. Outlives tapes: the first write after `written` was cleared overwrites, later ones add.
struct Gradient {
  Tensor tensor;  // bound beforehand (a view of a flat buffer), or undefined: allocated by the first write
  bool written = false;
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

  explicit GradientSlots(Context& context) : context_(context) {}

  Slot add(const Tensor& value);
  Slot add_leaf(const Tensor& value, Gradient& gradient, std::string_view name);
  // The slot of `value` = view(what `of` holds). It has no memory of its own.
  Slot add_view(Slot of, const Tensor& value, View view);
  // Says that these views, added one after the other, cover the value they are views of without overlap.
  void make_partition(const std::vector<Slot>& parts);

  // From here to the next call one node runs.
  void begin_node() { ++node_; }
  // Whether something was written to the slot or to a view of it.
  bool reached(Slot slot) const { return slots_[slot.id].reached; }
  // See Tape for the next four.
  Tensor take(Slot slot);
  GradientDestination destination(Slot slot);
  bool share_gradient(Slot slot, const Tensor& gradient);
  bool can_share_gradient(Slot slot) const;
  void release(Slot slot) { slots_[slot.id].gradient = {}; }

  // Around a backward pass: read and set Gradient::written.
  void begin_leaves();
  // The names of leaves that nothing reached, in order, joined by commas.
  std::string finish_leaves();

 private:
  // The slots [first, first + count) are views that cover a value without overlap. None: count 0.
  struct Partition {
    int first = -1;
    int count = 0;
    bool operator==(const Partition&) const = default;
  };
  struct State {
    Shape shape;
    DType dtype;
    Tensor gradient;
    bool reached = false;
    bool written = false;  // all of it
    int64_t writer = -1;   // the node that got the last destination here
    Gradient* leaf = nullptr;
    std::string leaf_name;
    int view_of = -1;
    View view;
    Partition partition;  // of which this slot is a part
    Partition open;       // the parts through which this slot is being written
  };

  Tensor memory(State& state);
  bool is_written(const State& state) const;
  bool holds_gradient(State& state);
  void close(State& state);

  Context& context_;
  std::vector<State> slots_;
  int64_t node_ = 0;
  std::unordered_map<Gradient*, int> leaves_;
};

}  // namespace heddle
