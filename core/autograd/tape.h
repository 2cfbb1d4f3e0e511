// Reverse-mode automatic differentiation over an explicit list of nodes.                          docs/design.md#tape
//
// An operator computes its output and records a node: a struct with what its backward needs. backward() walks the list
// once from its end; each node takes the gradients of its outputs, asks where to write those of its inputs, and is
// destroyed as soon as it has run. There is no double backward. A Tape is used by one thread.
//
//   struct SquareNode {
//     Slot x, y;
//     Tensor saved_x;
//     void backward(Tape& tape) { square_backward(saved_x, tape.take_gradient(y), tape.destination(x)); }
//   };
//   tape.record(SquareNode{.x = x.slot, .y = y.slot, .saved_x = x.value}, {x}, {y});
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <typeinfo>
#include <unordered_map>
#include <utility>
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
  operator Slot() const { return slot; }  // so that lists of slots may be written as lists of variables
};

class Tape;

class Tape {
 public:
  // What operators do on this tape. In both of the latter nothing is recorded and nothing saved.
  enum class Mode {
    record,
    inference,   // operators compute what they do in use: dropout leaves its input as it is
    unrecorded,  // operators compute what they do when recorded: a part that is recomputed in backward, a difference
  };

  explicit Tape(Context& context, Mode mode = Mode::record) : context_(context), mode_(mode), slots_(context) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;

  Context& context() { return context_; }

  // A value that is not differentiated. Here and in leaf() the value lies on the device of the context; on meta it may
  // lie anywhere.
  Variable constant(Tensor value) const;
  // A value whose gradient goes to `gradient`, which must outlive the tape. Asking twice for the same Gradient gives
  // the same slot. `name` appears in errors. Throws Error when the value is undefined, and when the gradient's tensor
  // does not fit it in shape, dtype, strides or device.
  Variable leaf(Tensor value, Gradient& gradient, std::string_view name);
  // From now on leaf() returns `by` for this gradient: a check replaces a parameter by values of its own this way.
  void replace_leaf(const Gradient& gradient, const Variable& by) { replaced_leaves_[&gradient] = by; }
  bool replaces(const Gradient& gradient) const { return replaced_leaves_.contains(&gradient); }
  Mode mode() const { return mode_; }

  // A view of a value, with its gradient: `view` is applied to the value and to the gradient memory of `from`, so that
  // a consumer of the view writes into its part of that memory. Views may overlap, and `from` may be used beside them.
  using View = GradientSlots::View;
  Variable view(const Variable& from, View view);
  // The value in consecutive parts of one dimension. As the parts cover the value, its gradient needs no zeros first.
  std::vector<Variable> split(const Variable& from, int dim, const std::vector<int64_t>& sizes);

  // --- For operators, forward ---
  // Whether an operator of these inputs has to record a node. Throws Error for an input on another device than the
  // context's, unless that is meta; with names it says "[glu] b is on device ..".
  bool records(std::initializer_list<const Variable*> inputs) const;
  struct NamedInput {
    std::string_view name;
    const Variable& variable;
  };
  bool records(std::string_view op, std::initializer_list<NamedInput> inputs) const;
  // The same check of an index tensor, which is no Variable; `name` appears in the error.
  void check_device(const Tensor& value, std::string_view name) const;
  // The output of an operator; it gets a slot when `recorded`.
  Variable output(Tensor value, bool recorded);
  // Takes over the node of an operator. Nodes run backward in the reverse order of recording. T is any struct with
  // `void backward(Tape&)`. `inputs` are all values whose gradients that function may write, `outputs` those whose
  // gradients it takes; values that are undefined or not differentiated are skipped, and one of another tape is an
  // Error.
  //
  // A node may run another tape in its backward, as recomputation does. Then its inputs name also the leaves that the
  // other tape writes (leaf() gives their slots), and it writes what it asked destinations for on this tape before it
  // runs the other tape, or asks for them afterwards.
  template <class T>
  void record(T node, std::vector<Slot> inputs, std::vector<Slot> outputs) {
    std::unique_ptr<AnyNode> any = std::make_unique<NodeOf<T>>(std::move(node));
    add_entry(std::move(any), std::move(inputs), std::move(outputs));
  }

  // --- For nodes, backward. The last three throw Error when the slot is neither one of the inputs the running node was
  // recorded with, nor a view of one, nor the value that one is a view of. ---
  // Takes the gradient that arrived at an output; undefined when none did. If it is_unique(), the node may write over
  // it.
  Tensor take_gradient(Slot slot);
  // Where to write the gradient of an input. It has the dtype of the value, or the accumulate type where the gradient
  // of a leaf was bound in that type.
  GradientDestination destination(Slot slot);
  // Gives `gradient` (contiguous) to the input as it is, shared, not copied. False when the slot already holds a
  // gradient or has memory of its own: then write or add through destination().
  [[nodiscard]] bool share_gradient(Slot slot, const Tensor& gradient);
  // Whether share_gradient() would share: the gradient is wanted, nothing has arrived yet, and the slot has no memory
  // of its own.
  bool can_share_gradient(Slot slot) const;

  // Runs all nodes from `root`, with upstream gradient `upstream` (ones for a root of one element when undefined).
  // Throws Error on a second call, on a root that was not recorded, on an upstream gradient that does not fit its root,
  // and when a leaf that requires a gradient got none.
  // When a node throws, Gradient::written of all leaves is as it was before the call, and the tape is of no use
  // anymore.
  void backward(const Variable& root, Tensor upstream = {});
  struct Root {
    Variable variable;
    Tensor upstream;
  };
  void backward(std::vector<Root> roots);
  // Leaves that may stay without a gradient (their Gradient is left as it was).
  void allow_unused_leaves() { allow_unused_leaves_ = true; }

  // Called during backward() for each leaf that got a gradient, once, as soon as that gradient is final: when the first
  // recorded of the nodes that have the leaf (or a view of it) among their inputs has run or was skipped, and before
  // the nodes recorded earlier run. Roots are written before all nodes. The work that writes the gradient is on the
  // stream of the context; it need not be done yet.
  using GradientHook = std::function<void(Gradient& gradient, std::string_view name)>;
  void on_gradient_final(GradientHook hook) { on_gradient_final_ = std::move(hook); }

  // Called with every output as soon as its node is recorded, and with every gradient that a node takes. It may change
  // their numbers: a check of low precision does to those of float64 what rounding would do.
  using Disturbance = std::function<void(const Tensor& numbers)>;
  void disturb_numbers(Disturbance disturbance) { disturbance_ = std::move(disturbance); }

  // What the operator of a node has just made: its outputs, when the node is recorded, or in backward the gradients
  // that it has written or added to.
  struct Made {
    std::string op;                   // by the type of its node: "linear_attention" for LinearAttentionNode
    std::string_view scope;           // the memory scope that it was recorded in: "blocks.3.mixer"
    std::vector<std::string> leaves;  // the names of those among its inputs that are leaves
    bool is_gradient = false;
    std::vector<Tensor> numbers;
  };
  // Called after every operator, forward and backward. It may throw, which ends either. A node that runs another tape
  // hands it on.
  using Watch = std::function<void(const Made&)>;
  void watch(Watch watch) { watch_ = std::move(watch); }
  const Watch& watched_by() const { return watch_; }

 private:
  // A recorded node, whatever its type.
  struct AnyNode {
    virtual ~AnyNode() = default;
    virtual void backward(Tape& tape) = 0;
    virtual const std::type_info& type() const = 0;
  };
  template <class T>
  struct NodeOf final : AnyNode {
    explicit NodeOf(T of) : node(std::move(of)) {}
    void backward(Tape& tape) override { node.backward(tape); }
    const std::type_info& type() const override { return typeid(T); }
    T node;
  };
  struct Entry {
    std::unique_ptr<AnyNode> node;
    MemoryLabel label;
    std::vector<Slot> inputs;        // those with a gradient; instead of a view the value it is a view of
    std::vector<Slot> outputs;       // those with a gradient
    std::vector<Slot> final_leaves;  // during backward: the leaves that no node recorded earlier writes
  };

  void add_entry(std::unique_ptr<AnyNode> node, std::vector<Slot> inputs, std::vector<Slot> outputs);
  std::vector<Slot> find_final_leaves();
  void check_root(const Root& root) const;
  void write_root(const Root& root);
  void run(Entry& entry);
  bool is_elsewhere(const Tensor& value) const;
  bool wants_gradient(const Variable& input) const { return mode_ == Mode::record && input.requires_grad(); }
  std::vector<Tensor> take_new_outputs(const std::vector<Slot>& outputs);
  void tell(const Entry& entry, bool is_gradient, std::vector<Tensor> numbers) const;
  void finish_leaf(Slot leaf);
  void check_input(Slot slot) const;

  Context& context_;
  Mode mode_;
  GradientSlots slots_;
  std::vector<Entry> entries_;
  std::unordered_map<const Gradient*, Variable> replaced_leaves_;
  GradientHook on_gradient_final_;
  Disturbance disturbance_;
  Watch watch_;
  std::vector<Variable> new_outputs_;  // of the operator whose node is not recorded yet; for those who look at them
  std::vector<Tensor> written_;        // what the running node was given to write to, while somebody watches
  const Entry* running_ = nullptr;     // during backward
  bool ran_backward_ = false;
  bool allow_unused_leaves_ = false;
};

}  // namespace heddle
