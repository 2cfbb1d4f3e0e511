// Runs one case through the registry, forward and backward, in a chosen context, dtype and memory layout.
#pragma once

#include <optional>
#include <vector>

#include "core/runtime/context.h"
#include "layers/registry.h"

namespace heddle::test {

struct RunOptions {
  DType dtype = DType::float64;
  // The upstream gradients are numbers of this dtype, so that runs in two dtypes can be given the same.
  std::optional<DType> upstream = {};
  bool gradients = true;
  bool strided = false;  // inputs and gradients start one element into their memory and have gaps between rows
  bool parts = false;    // gradients of leaves are parts of tensors that are larger in every dimension
  bool add = false;      // gradients are added to what old_gradient() says
  bool inner = false;    // inputs are results of another operator, whose gradients may be shared and written over
  bool wide_parameters = false;  // gradients of parameters in the accumulate type
  bool poison = true;            // whatever memory the operator gets is full of NaN
};

struct RunResult {
  ReferenceTensors outputs;
  ReferenceTensors gradients;  // by the name of the input
};

// How fine the numbers of activations are. coarse: multiples of 1/16, whose sums are exact in every dtype, so that
// nothing is rounded inside a fused operator that adds its inputs.
enum class Grid { dtype, coarse };

// The inputs of a case: the same numbers at every call, drawn by the name of the case, rounded to what they are stored
// in when the storage dtype is `dtype`.
ReferenceTensors case_inputs(const OperatorCase& op_case, DType dtype, Grid grid = Grid::dtype);
// The same case with no batch.
OperatorCase without_batch(const OperatorCase& op_case);
// What run_case puts under the gradients of an input before it adds.
ReferenceTensor old_gradient(const OperatorCase& op_case, const CaseInput& input, DType dtype);

// `inputs` are values in the order of case_inputs; on meta the results are empty.
RunResult run_case(Context& context, const OperatorCase& op_case, const ReferenceTensors& inputs,
                   const RunOptions& options);

// The operator of a case with its options.
OperatorFunction function_of(const OperatorCase& op_case);
// Its outputs for inputs that are on a tape, in the order of their names.
std::vector<Variable> apply_case(const OperatorCase& op_case, const OperatorFunction& function, Tape& tape,
                                 const std::vector<Variable>& inputs);

}  // namespace heddle::test
