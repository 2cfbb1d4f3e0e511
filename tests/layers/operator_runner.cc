#include "tests/layers/operator_runner.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/config/config_load.h"
#include "core/tensor/transfer.h"
#include "layers/ops/gradient.h"

namespace heddle::test {
namespace {

bool has_batch(const CaseInput& input) {
  switch (input.kind) {
    case CaseInputKind::activation:
    case CaseInputKind::state:
    case CaseInputKind::tokens:
    case CaseInputKind::segments:
      return true;
    case CaseInputKind::decay:
      return input.shape.rank() > 1;
    default:
      return false;
  }
}

// Row strides are for kernels that take RowsView or HeadsView.
bool may_have_gaps(const CaseInput& input) {
  return input.shape.rank() > 1 && (input.kind == CaseInputKind::activation || input.kind == CaseInputKind::matrix);
}

Tensor make_tensor(Context& context, const CaseInput& input, DType dtype, bool strided) {
  if (!strided || input.shape.rank() == 0) return Tensor::empty(context, input.shape, dtype);
  if (may_have_gaps(input)) {
    Shape wider = input.shape;
    wider[-1] += 3;
    return Tensor::empty(context, wider, dtype).slice(-1, 1, input.shape[-1] + 1);
  }
  const int64_t count = numel(input.shape);
  return Tensor::empty(context, {count + 1}, dtype).slice(0, 1, count + 1).reshape(input.shape);
}

// A part of a tensor that is larger in every dimension of several elements.
Tensor make_part(Context& context, const Shape& shape, DType dtype) {
  Shape larger = shape;
  for (int dim = 0; dim < shape.rank(); ++dim) larger[dim] += shape[dim] > 1 ? 2 : 0;
  Tensor part = Tensor::empty(context, larger, dtype);
  for (int dim = 0; dim < shape.rank(); ++dim) {
    const int64_t begin = (larger[dim] - shape[dim]) / 2;
    part = part.slice(dim, begin, begin + shape[dim]);
  }
  return part;
}

// Blocks come from cached memory: fill it with NaN, so that what is read before it is written shows.
void poison_free_memory(Context& context, const ReferenceTensors& inputs) {
  int64_t count = 1 << 13;
  for (const auto& [name, tensor] : inputs) count += 8 * static_cast<int64_t>(tensor.values.size());
  poison(context, Tensor::empty(context, {count}, DType::float64));
}

ReferenceTensor read(Context& context, const Tensor& tensor) { return {tensor.shape(), read_values(context, tensor)}; }

// The identity; shares its gradient with its input.
struct IdentityNode {
  Slot x, y;
  void backward(Tape& tape) { pass_gradient(tape, x, tape.take_gradient(y)); }
};

Variable identity(Tape& tape, const Variable& x) {
  const Variable y = tape.output(x.value, true);
  tape.record(IdentityNode{.x = x.slot, .y = y.slot}, {x}, {y});
  return y;
}

}  // namespace

ReferenceTensors case_inputs(const OperatorCase& op_case, DType dtype, Grid grid) {
  ReferenceTensors inputs = draw_inputs(op_case, dtype);
  for (const CaseInput& input : op_case.inputs) {
    if (grid == Grid::dtype || input.kind != CaseInputKind::activation) continue;
    for (double& value : inputs.at(input.name).values) value = std::round(16.0 * value) / 16.0;
  }
  return inputs;
}

OperatorCase without_batch(const OperatorCase& op_case) {
  OperatorCase result = op_case;
  for (CaseInput& input : result.inputs) {
    if (has_batch(input)) input.shape[0] = 0;
  }
  return result;
}

ReferenceTensor old_gradient(const OperatorCase& op_case, const CaseInput& input, DType dtype) {
  return draw_numbers(op_case, "old " + input.name, {.name = input.name, .shape = input.shape}, dtype);
}

std::vector<Variable> apply_case(const OperatorCase& op_case, const OperatorFunction& function, Tape& tape,
                                 const std::vector<Variable>& inputs) {
  NamedVariables named;
  for (size_t i = 0; i < inputs.size(); ++i) named[op_case.inputs[i].name] = inputs[i];
  std::vector<Variable> outputs;
  for (auto& [name, output] : function(tape, named)) outputs.push_back(output);
  return outputs;
}

OperatorFunction function_of(const OperatorCase& op_case) {
  return bind_operator(built_in_registry().find(op_case.op), parse_config(op_case.options, op_case.name));
}

RunResult run_case(Context& context, const OperatorCase& op_case, const ReferenceTensors& inputs,
                   const RunOptions& options) {
  Tape tape(context, options.gradients ? Tape::Mode::record : Tape::Mode::unrecorded);
  const size_t count = op_case.inputs.size();
  std::vector<Gradient> gradients(count);
  NamedVariables variables;
  for (size_t i = 0; i < count; ++i) {
    const CaseInput& input = op_case.inputs[i];
    const DType dtype = case_dtype(input, options.dtype);
    const Tensor value = make_tensor(context, input, dtype, options.strided);
    write_values(context, value, inputs.at(input.name).values);
    if (!options.gradients || !input.differentiate || dtype == DType::int32) {
      variables[input.name] = tape.constant(value);
      continue;
    }
    const bool is_parameter = input.kind == CaseInputKind::parameter || input.kind == CaseInputKind::matrix;
    const DType gradient_dtype = options.wide_parameters && is_parameter ? accumulate_type(dtype) : dtype;
    gradients[i].tensor = options.parts ? make_part(context, input.shape, gradient_dtype)
                                        : make_tensor(context, input, gradient_dtype, options.strided);
    gradients[i].written = options.add;
    if (options.add) {
      write_values(context, gradients[i].tensor, old_gradient(op_case, input, gradient_dtype).values);
    } else {
      poison(context, gradients[i].tensor);
    }
    variables[input.name] = tape.leaf(value, gradients[i], input.name);
    if (options.inner) variables[input.name] = identity(tape, variables[input.name]);
  }
  if (options.poison) poison_free_memory(context, inputs);

  RunResult result;
  std::vector<Tape::Root> roots;
  for (auto& [name, output] : function_of(op_case)(tape, variables)) {
    if (!context.is_meta()) result.outputs[name] = read(context, output.value);
    if (!output.requires_grad()) continue;
    const CaseInput as_input{.name = name, .shape = output.shape()};
    const Tensor upstream = Tensor::empty(context, output.shape(), output.dtype());
    const DType numbers = options.upstream.value_or(output.dtype());
    write_values(context, upstream, draw_numbers(op_case, "d_" + name, as_input, numbers).values);
    roots.push_back({output, upstream});
  }
  if (roots.empty()) return result;
  variables.clear();
  tape.backward(std::exchange(roots, {}));
  if (context.is_meta()) return result;
  for (size_t i = 0; i < count; ++i) {
    if (!gradients[i].tensor.defined()) continue;
    result.gradients[op_case.inputs[i].name] = read(context, gradients[i].tensor);
  }
  return result;
}

}  // namespace heddle::test
