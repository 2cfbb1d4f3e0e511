#include "tests/layers/operator_runner.h"

#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/gradient.h"

namespace heddle::test {
namespace {

Random random_for(const OpCase& op_case, const std::string& name) {
  uint64_t seed = 14695981039346656037ull;  // FNV-1a, which is the same with every standard library
  for (const char letter : op_case.name + "/" + name) {
    seed = (seed ^ static_cast<unsigned char>(letter)) * 1099511628211ull;
  }
  return Random(seed, RandomStream::test);
}

double draw(Random& random, const CaseInput& input) {
  if (input.kind == InputKind::tokens) return static_cast<double>(random.next_below(input.range));
  double value = 0.0;
  // No activation is left out, and none is so near 0 that a finite difference would cross the kink of relu.
  while (std::abs(value) < 1e-2) value = random.next_normal();
  if (input.kind == InputKind::decay) return -std::abs(value) * input.scale;
  return value * input.scale + input.mean;
}

bool has_batch(const CaseInput& input) {
  switch (input.kind) {
    case InputKind::activation:
    case InputKind::state:
    case InputKind::tokens:
      return true;
    case InputKind::decay:
      return input.shape.rank() > 1;
    default:
      return false;
  }
}

// Row strides are for kernels that take RowsView or HeadsView.
bool may_have_gaps(const CaseInput& input) {
  return input.shape.rank() > 1 && (input.kind == InputKind::activation || input.kind == InputKind::matrix);
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

// Blocks come from cached memory: fill it with NaN, so that what is read before it is written shows.
void poison_free_memory(Context& context, const HostTensors& inputs) {
  int64_t count = 1 << 13;
  for (const auto& [name, tensor] : inputs) count += 8 * static_cast<int64_t>(tensor.values.size());
  poison(context, Tensor::empty(context, {count}, DType::float64));
}

HostTensor read(Context& context, const Tensor& tensor) { return {tensor.shape(), read_values(context, tensor)}; }

// Hands its input on.
struct PassNode : Node {
  Slot x, y;
  std::string_view name() const override { return "pass"; }
  void backward(Tape& tape) override { pass_gradient(tape, x, tape.take_gradient(y)); }
};

Variable pass(Tape& tape, const Variable& x) {
  auto node = std::make_unique<PassNode>();
  const Variable y = tape.output(x.value, true);
  node->x = x.slot;
  node->y = y.slot;
  tape.record(std::move(node), {y.slot});
  return y;
}

HostTensor draw_all(Random random, const CaseInput& input, DType dtype) {
  HostTensor result = host_zeros(input.shape);
  for (double& value : result.values) value = round_to(dtype, draw(random, input));
  return result;
}

}  // namespace

DType input_dtype(const CaseInput& input, DType dtype) {
  switch (input.kind) {
    case InputKind::tokens:
      return DType::int32;
    case InputKind::angle:
    case InputKind::decay:
    case InputKind::state:
      return accumulate_type(dtype);
    default:
      return dtype;
  }
}

HostTensors case_inputs(const OpCase& op_case, DType dtype, Grid grid) {
  HostTensors inputs;
  for (const CaseInput& input : op_case.inputs) {
    HostTensor& tensor = inputs[input.name];
    tensor = draw_all(random_for(op_case, input.name), input, input_dtype(input, dtype));
    if (grid == Grid::dtype || input.kind != InputKind::activation) continue;
    for (double& value : tensor.values) value = std::round(16.0 * value) / 16.0;
  }
  return inputs;
}

OpCase without_batch(const OpCase& op_case) {
  OpCase result = op_case;
  for (CaseInput& input : result.inputs) {
    if (has_batch(input)) input.shape[0] = 0;
  }
  return result;
}

HostTensor old_gradient(const OpCase& op_case, const CaseInput& input, DType dtype) {
  return draw_all(random_for(op_case, "old " + input.name), {.name = input.name, .shape = input.shape}, dtype);
}

std::vector<Variable> apply_case(const OpCase& op_case, const ConfigNode& options, Tape& tape,
                                 const std::vector<Variable>& inputs) {
  NamedVariables named;
  for (size_t i = 0; i < inputs.size(); ++i) named[op_case.inputs[i].name] = inputs[i];
  std::vector<Variable> outputs;
  for (auto& [name, output] : apply_operator(find_operator(op_case.op), tape, options, named)) {
    outputs.push_back(output);
  }
  return outputs;
}

RunResult run_case(Context& context, const OpCase& op_case, const HostTensors& inputs, const RunOptions& options) {
  Tape tape(context, options.gradients ? Tape::Mode::record : Tape::Mode::inference);
  const size_t count = op_case.inputs.size();
  std::vector<Gradient> gradients(count);
  NamedVariables variables;
  for (size_t i = 0; i < count; ++i) {
    const CaseInput& input = op_case.inputs[i];
    const DType dtype = input_dtype(input, options.dtype);
    const Tensor value = make_tensor(context, input, dtype, options.strided);
    write_values(context, value, inputs.at(input.name).values);
    if (!options.gradients || !input.differentiate || dtype == DType::int32) {
      variables[input.name] = tape.constant(value);
      continue;
    }
    const bool is_parameter = input.kind == InputKind::parameter || input.kind == InputKind::matrix;
    const DType gradient_dtype = options.wide_parameters && is_parameter ? accumulate_type(dtype) : dtype;
    gradients[i].tensor = make_tensor(context, input, gradient_dtype, options.strided);
    gradients[i].written = options.add;
    if (options.add) {
      write_values(context, gradients[i].tensor, old_gradient(op_case, input, gradient_dtype).values);
    } else {
      poison(context, gradients[i].tensor);
    }
    variables[input.name] = tape.leaf(value, gradients[i], input.name);
    if (options.inner) variables[input.name] = pass(tape, variables[input.name]);
  }
  if (options.poison) poison_free_memory(context, inputs);

  RunResult result;
  std::vector<Tape::Root> roots;
  for (auto& [name, output] :
       apply_operator(find_operator(op_case.op), tape, parse_config(op_case.options), variables)) {
    if (!context.is_meta()) result.outputs[name] = read(context, output.value);
    if (!output.requires_grad()) continue;
    const CaseInput as_input{.name = name, .shape = output.shape()};
    const Tensor upstream = Tensor::empty(context, output.shape(), output.dtype());
    const DType numbers = options.upstream.value_or(output.dtype());
    write_values(context, upstream, draw_all(random_for(op_case, "d_" + name), as_input, numbers).values);
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
