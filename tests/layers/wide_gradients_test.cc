// Leaves of 16 bits whose gradients are float32, as those of parameters may be: for every operator and each of its
// inputs the gradient is that of 16 bits before it was rounded, or after, written or added.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/autograd/tape.h"
#include "core/config/config_load.h"
#include "core/tensor/random.h"
#include "core/tensor/transfer.h"
#include "layers/ops/norm.h"
#include "layers/ops/view.h"
#include "layers/registry.h"
#include "tests/layers/on_devices.h"

namespace heddle::wide_gradients_test {
namespace {

constexpr double kBefore = 0.25;  // what gradients are added to

struct Numbers {
  std::vector<double> values;
  DType dtype;
};

class WideGradients : public test::OnDevices {
 protected:
  // The gradients of a case whose leaves have memory of the value's dtype, or of the accumulate type.
  std::map<std::string, Numbers> gradients_of(const Operator& op, const OperatorCase& op_case, DType dtype,
                                              bool is_wide, bool adds) {
    const OperatorFunction function = bind_operator(op, parse_config(op_case.options, op_case.name));
    const ReferenceTensors numbers = draw_inputs(op_case, dtype);
    std::map<std::string, Gradient> gradients;
    Tape tape(context());
    tape.allow_unused_leaves();
    NamedVariables inputs;
    for (const CaseInput& input : op_case.inputs) {
      const Tensor tensor = Tensor::empty(context(), input.shape, case_dtype(input, dtype));
      write_values(context(), tensor, numbers.at(input.name).values);
      if (!input.differentiate || !is_floating(tensor.dtype())) {
        inputs[input.name] = tape.constant(tensor);
        continue;
      }
      Gradient& gradient = gradients[input.name];
      const DType of_gradient = is_wide ? accumulate_type(tensor.dtype()) : tensor.dtype();
      gradient.tensor = Tensor::empty(context(), input.shape, of_gradient);
      gradient.written = adds;
      const auto size = static_cast<size_t>(tensor.numel());
      write_values(context(), gradient.tensor, std::vector<double>(size, adds ? kBefore : std::nan("")));
      inputs[input.name] = tape.leaf(tensor, gradient, input.name);
    }
    Random random(4, RandomStream::test);
    std::vector<Tape::Root> roots;
    for (const auto& [name, output] : function(tape, inputs)) {
      if (!output.requires_grad()) continue;
      const Tensor upstream = Tensor::empty(context(), output.shape(), output.dtype());
      fill_normal(context(), upstream, random, 0.0, 1.0);
      roots.push_back({output, upstream});
    }
    tape.backward(roots);
    std::map<std::string, Numbers> result;
    for (const auto& [name, gradient] : gradients) {
      if (gradient.written) result[name] = {read_values(context(), gradient.tensor), gradient.tensor.dtype()};
    }
    return result;
  }
};

TEST_P(WideGradients, OfEveryOperator) {
  for (const DType dtype : {DType::bfloat16, DType::float16}) {
    const double rounding = dtype == DType::bfloat16 ? 0x1p-8 : 0x1p-11;
    for (const Operator& op : built_in_registry().operators()) {
      int small = 0, compared = 0;
      for (const OperatorCase& op_case : op.cases_on(context().device().type)) {
        if (op_case.large || small++ % 8 != 0) continue;
        SCOPED_TRACE(fmt::format("{} in {}", op_case.name, name(dtype)));
        const auto narrow = gradients_of(op, op_case, dtype, false, false);
        const auto wide = gradients_of(op, op_case, dtype, true, false);
        const auto added = gradients_of(op, op_case, dtype, true, true);
        for (const auto& [input, expected] : narrow) {
          if (expected.dtype != dtype) continue;
          EXPECT_EQ(wide.at(input).dtype, DType::float32);
          for (size_t i = 0; i < expected.values.size(); ++i) {
            const double from = expected.values[i], to = wide.at(input).values[i], sum = added.at(input).values[i];
            if (!std::isfinite(from)) continue;
            const double tolerance = rounding * std::abs(from) + (dtype == DType::float16 ? 0x1p-24 : 0.0);
            ASSERT_NEAR(to, from, tolerance) << input << " " << i;
            ASSERT_NEAR(sum, to + kBefore, 2 * tolerance + 0x1p-23 * std::abs(sum)) << input << " " << i;
            ++compared;
          }
        }
      }
      EXPECT_GT(small, 0) << op.name;
      EXPECT_GT(compared, 0) << op.name;
    }
  }
}

// A leaf, and a part of one, to which backward is given the gradient at once.
TEST_P(WideGradients, OfRoots) {
  Gradient gradient;
  gradient.tensor = Tensor::empty(context(), {2, 3}, DType::float32);
  Tape tape(context());
  const Tensor value = Tensor::zeros(context(), {2, 3}, DType::bfloat16);
  const Variable leaf = tape.leaf(value, gradient, "x");
  const Variable part = split_last(tape, leaf, {1, 2})[1];
  const Tensor whole = Tensor::empty(context(), {2, 3}, DType::bfloat16);
  const Tensor of_part = Tensor::empty(context(), {2, 2}, DType::bfloat16);
  write_values(context(), whole, {1, 2, 3, 4, 5, 6});
  write_values(context(), of_part, {10, 20, 30, 40});
  tape.backward({{leaf, whole}, {part, of_part}});
  EXPECT_EQ(read_values(context(), gradient.tensor), (std::vector<double>{1, 12, 23, 4, 35, 46}));
}
// One leaf as the gate, of which a norm writes gradients in 16 bits, and as the weight, of which it writes both dtypes.
TEST_P(WideGradients, OfAGateThatIsTheWeight) {
  std::vector<std::vector<double>> found;
  for (const DType dtype : {DType::bfloat16, DType::float32}) {
    Gradient gradient;
    gradient.tensor = Tensor::empty(context(), {4}, dtype);
    Tape tape(context());
    const Tensor x = Tensor::empty(context(), {4}, DType::bfloat16), both = Tensor::empty(context(), {4}, x.dtype());
    write_values(context(), x, {1, 2, -3, 4});
    write_values(context(), both, {0.5, -1, 2, 1});
    const Variable leaf = tape.leaf(both, gradient, "both");
    NormOptions options;
    options.gate_act = Activation::silu;
    const NormInputs inputs{.residual = {}, .gate = leaf, .weight = leaf, .bias = {}};
    const Normed y = norm(tape, tape.constant(x), inputs, options, "rms_norm");
    tape.backward(y.y, x);
    found.push_back(read_values(context(), gradient.tensor));
  }
  for (size_t i = 0; i < found[0].size(); ++i) EXPECT_NEAR(found[1][i], found[0][i], 0.02 * std::abs(found[0][i]));
}
HEDDLE_ON_DEVICES(WideGradients);

}  // namespace
}  // namespace heddle::wide_gradients_test
