// Reverse-mode automatic differentiation over an explicit list of nodes.                          docs/design.md#tape
//
// An operator computes its output, fills a Node with what its backward needs, and records it. backward() walks the
// list once from its end; each node takes the gradients of its outputs, asks where to write those of its inputs, and is
// destroyed as soon as it has run. There is no double backward. A Tape is used by one thread.
#pragma once

#include <initializer_list>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/autograd/gradient_slots.h"

namespace heddle {

// A tensor with its place on a tape. Cheap to copy.
struct Variable {
  Tensor value;
  Slot slot;

  bool defined() const { return value.defined(); }
  const Shape& shape() const { return value.shape(); }
  DType dtype() const { return value.dtype(); }
  bool requires_grad() const { return slot.requires_grad(); }
};

class Tape;

// One recorded operation. Saved tensors and slots are plain members of the derived struct.
struct Node {
  virtual ~Node() = default;
  virtual std::string_view name() const = 0;
  virtual void backward(Tape& tape) = 0;
};

class Tape {
 public:
  enum class Mode { record, inference };  // inference: nothing is recorded, nothing saved

  explicit Tape(Context& context, Mode mode = Mode::record) : context_(context), mode_(mode), slots_(context) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  Context& context() { return context_; }

  // A value that is not differentiated.
  Variable constant(Tensor value) const { return {std::move(value), {}}; }
  // A value whose gradient goes to `gradient`, which must outlive the tape. Asking twice for the same Gradient gives
  // the same slot. `name` appears in errors.
  Variable leaf(Tensor value, Gradient& gradient, std::string_view name);
  // From now on leaf() gives `by` for this gradient: how a check puts values of its own in the place of a parameter.
  void replace_leaf(const Gradient& gradient, const Variable& by) { replaced_leaves_[&gradient] = by; }

  // A view of a value, with its gradient: `view` is applied to the value and to the gradient memory of `from`, so that
  // a consumer of the view writes into its part of that memory. Views may overlap, and `from` may be used beside them.
  using View = GradientSlots::View;
  Variable view(const Variable& from, View view);
  // The value in consecutive parts of one dimension. As the parts cover the value, its gradient needs no zeros first.
  std::vector<Variable> split(const Variable& from, int dim, const std::vector<int64_t>& sizes);

  // --- For operators, forward ---
  // Whether an operator of these inputs has to record a node.
  bool records(std::initializer_list<const Variable*> inputs) const;
  // The output of an operator; it gets a slot when `recorded`.
  Variable output(Tensor value, bool recorded);
  // Takes over the node of an operator whose outputs are `outputs`. Nodes run backward in the reverse order.
  void record(std::unique_ptr<Node> node, std::initializer_list<Slot> outputs);

  // --- For nodes, backward ---
  // Takes the gradient that arrived at an output; undefined when none did. If it is_unique(), the node may write over
  // it.
  Tensor take_gradient(Slot slot);
  // Where to write the gradient of an input.
  GradientDestination destination(Slot slot);
  // Gives `gradient` (contiguous) to the input as it is, shared, not copied. False when the slot already holds a
  // gradient or has a place of its own: then write or add through destination().
  [[nodiscard]] bool share_gradient(Slot slot, const Tensor& gradient);
  // Whether share_gradient() would share: the gradient is wanted, nothing has arrived yet, and the slot has no memory
  // of its own.
  bool can_share_gradient(Slot slot) const;

  // Runs all nodes from `root`, with upstream gradient `upstream` (ones for a root of one element when undefined).
  // Throws Error on a second call, on a root that was not recorded, and when a leaf that requires a gradient got none.
  void backward(const Variable& root, Tensor upstream = {});
  struct Root {
    Variable variable;
    Tensor upstream;
  };
  void backward(std::vector<Root> roots);
  // Leaves that may stay without a gradient (their Gradient is left as it was).
  void allow_unused_leaves() { allow_unused_leaves_ = true; }

 private:
  struct Entry {
    std::unique_ptr<Node> node;
    std::vector<Slot> outputs;  // those with a gradient
    MemoryLabel label;
  };

  void write_root(const Root& root);

  Context& context_;
  Mode mode_;
  GradientSlots slots_;
  std::vector<Entry> entries_;
  std::unordered_map<const Gradient*, Variable> replaced_leaves_;
  bool ran_backward_ = false;
  bool allow_unused_leaves_ = false;
};

}  // namespace heddle
