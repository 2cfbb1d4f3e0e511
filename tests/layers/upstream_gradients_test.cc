// Upstream gradients that the caller keeps are as they were after backward, for every operator: a node may write over a
// gradient only where nobody else holds it. The inputs are outputs of another node, which have no memory for gradients
// yet: that is where it could.
#include <gtest/gtest.h>

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/autograd/tape.h"
#include "core/config/config_load.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/registry.h"
#include "tests/layers/on_devices.h"

namespace heddle::upstream_gradients_test {
namespace {

// The identity as an operator.
struct IdentityNode {
  Slot x, y;
  void backward(Tape& tape) {
    const Tensor d_y = tape.take_gradient(y);
    if (d_y.defined()) copy(tape.context(), tape.destination(x).tensor, d_y);
  }
};

Variable identity(Tape& tape, const Variable& x) {
  const Variable y = tape.output(x.value, true);
  tape.record(IdentityNode{.x = x.slot, .y = y.slot}, {x}, {y});
  return y;
}

class UpstreamGradients : public test::OnDevices {};

TEST_P(UpstreamGradients, OfTheCallerStay) {
  for (const Operator& op : built_in_registry().operators()) {
    int small = 0;
    for (const OperatorCase& op_case : op.cases_on(context().device().type)) {
      if (op_case.large || small++ % 3 != 0) continue;
      SCOPED_TRACE(op_case.name);
      const OperatorFunction function = bind_operator(op, parse_config(op_case.options, op_case.name));
      const ReferenceTensors numbers = draw_inputs(op_case, DType::float32);
      std::map<std::string, Gradient> gradients;
      Tape tape(context());
      tape.allow_unused_leaves();
      NamedVariables inputs;
      for (const CaseInput& input : op_case.inputs) {
        const Tensor tensor = Tensor::empty(context(), input.shape, case_dtype(input, DType::float32));
        write_values(context(), tensor, numbers.at(input.name).values);
        inputs[input.name] = input.differentiate && is_floating(tensor.dtype())
                                 ? identity(tape, tape.leaf(tensor, gradients[input.name], input.name))
                                 : tape.constant(tensor);
      }
      Random random(4, RandomStream::test);
      std::vector<Tape::Root> roots;
      std::vector<std::vector<double>> before;
      for (const auto& [name, output] : function(tape, inputs)) {
        if (!output.requires_grad()) continue;
        const Tensor upstream = Tensor::empty(context(), output.shape(), output.dtype());
        fill_normal(context(), upstream, random, 0.0, 1.0);
        before.push_back(read_values(context(), upstream));
        roots.push_back({output, upstream});
      }
      inputs.clear();
      tape.backward(roots);
      for (size_t i = 0; i < roots.size(); ++i) EXPECT_EQ(read_values(context(), roots[i].upstream), before[i]) << i;
    }
    EXPECT_GT(small, 0) << op.name;
  }
}
HEDDLE_ON_DEVICES(UpstreamGradients);

}  // namespace
}  // namespace heddle::upstream_gradients_test
