// Every input of every operator lies on the device of the tape, or the operator says which does not: a kernel that read
// it there would end the process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "core/autograd/tape.h"
#include "core/config/config_load.h"
#include "core/tensor/transfer.h"
#include "layers/registry.h"

namespace heddle::devices_test {
namespace {

// What the operator of the case says when the input of this name lies elsewhere; nothing is computed from it.
void expect_refusal(Context& context, Context& elsewhere, const OperatorCase& op_case, const OperatorFunction& function,
                    const std::string& far) {
  const ReferenceTensors numbers = draw_inputs(op_case, DType::float32);
  Tape tape(context);
  NamedVariables inputs;
  for (const CaseInput& input : op_case.inputs) {
    const bool is_far = input.name == far;
    const Tensor tensor = Tensor::empty(is_far ? elsewhere : context, input.shape, case_dtype(input, DType::float32));
    if (!is_far) write_values(context, tensor, numbers.at(input.name).values);
    inputs[input.name] = {tensor, {}};
  }
  try {
    for (const auto& [name, output] : function(tape, inputs)) {  // activation none gives what it is given
      EXPECT_TRUE(output.value.shares_storage_with(inputs.at(far).value)) << far;
    }
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("is on device meta, the tape on cpu")) << far;
    const bool calls_linear = op_case.op == "glu" || op_case.op == "ffn";  // which names its own arguments
    const std::string who = calls_linear ? "linear\\] (x|weight|bias)" : "[a-z_]+\\] .*" + far;
    EXPECT_THAT(error.what(), ::testing::ContainsRegex("^\\[" + who + " is ")) << far;
  }
}

TEST(Devices, AnInputOnAnotherOneIsRefused) {
  Context context, meta(Device{DeviceType::meta});
  for (const Operator& op : built_in_registry().operators()) {
    for (const OperatorCase& op_case : op.cases_on(DeviceType::cpu)) {
      if (op_case.large) continue;
      SCOPED_TRACE(op_case.name);
      const OperatorFunction function = bind_operator(op, parse_config(op_case.options, op_case.name));
      for (const CaseInput& input : op_case.inputs) expect_refusal(context, meta, op_case, function, input.name);
    }
  }
}

}  // namespace
}  // namespace heddle::devices_test
