// One case of one operator: its inputs, its options, and the unfused specification it is held against. Tests, gradcheck
// and benchmarks read the same cases.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/config/config_node.h"
#include "core/tensor/dtype.h"
#include "core/tensor/shape.h"
#include "layers/named.h"

namespace heddle {

// How the numbers of an input are drawn and how it may lie in memory. All but `tokens` and `segments` are real numbers.
enum class CaseInputKind {
  activation,                // standard normal; batch first; may be a view with larger row strides
  parameter,                 // standard normal; its gradient may also be asked for in the accumulate type
  matrix,                    // a parameter of rank 2: may be a view with larger row strides
  full_precision_parameter,  // standard normal, in the accumulate type
  angle,                     // normal, in the accumulate type
  decay,                     // minus a positive number, in the accumulate type
  state,                     // standard normal; batch first; dense, in the accumulate type
  tokens,                    // int32 in [0, range); batch first
  segments,                  // as tokens, and non-decreasing along the last dimension
};

inline bool is_real(CaseInputKind kind) { return kind != CaseInputKind::tokens && kind != CaseInputKind::segments; }

struct CaseInput {
  std::string name;
  Shape shape;
  CaseInputKind kind = CaseInputKind::activation;
  int64_t range = 0;  // tokens, segments: the number of different ones
  // tokens: the name of an option, as padding_idx, whose value is never drawn where it is given: the operator has no
  // gradient for it, as it documents, although values depend on it.
  std::string excluded_by = {};
  bool differentiate = true;  // whether the operator has a gradient for it
  double scale = 1.0;         // standard deviation
  double mean = 0.0;
};

// A tensor on the host, row-major, in double.
struct ReferenceTensor {
  Shape shape;
  std::vector<double> values;

  explicit operator bool() const { return !values.empty(); }
  double operator[](int64_t index) const { return values[static_cast<size_t>(index)]; }
  double& operator[](int64_t index) { return values[static_cast<size_t>(index)]; }
};
using ReferenceTensors = Named<ReferenceTensor>;

// Forward in plain loops over doubles, straight from the specification: outputs by name. `dtype` is the storage dtype
// of the activations; results need not be rounded to it.
using Reference =
    std::function<ReferenceTensors(const ConfigNode& options, const ReferenceTensors& inputs, DType dtype)>;

struct OperatorCase {
  std::string name;     // unique: "rms_norm residual gate pre silu"
  std::string op;       // the operator's name in the registry
  std::string options;  // YAML
  std::vector<CaseInput> inputs;
  Reference reference = {};  // the unfused specification of forward
  double tolerance = 1.0;    // multiplies what the dtype allows
  // How many times a number is rounded to the storage dtype on its way through a chain of operators, in forward and
  // backward. 0: gradients are computed from the inputs and rounded once.
  int roundings = 0;
  // What the GPU's 16-bit kernels lose on the way, relative to the largest element: numbers that they compute enter
  // the tensor cores with 16 digits.
  double gpu_error = 0.0;
  // Too large for a finite difference of every element: forward and gradients in float32 and bfloat16 only. These are
  // the cases that `heddle bench OPERATOR` measures; when there is none, it measures all.
  bool large = false;
  bool cpu_only = false;  // GPUs have no kernel for these options
};

// The dtype of an input when the storage dtype is `dtype`.
DType case_dtype(const CaseInput& input, DType dtype);

// Numbers for an input, rounded to `dtype`: the same at every call, drawn by the names of the case and of the input.
// No activation is left out, and none lies so near 0 that a finite difference would cross the kink of relu.
ReferenceTensor draw_numbers(const OperatorCase& operator_case, const std::string& name, const CaseInput& input,
                             DType dtype);

// Sorts each row of `width` values: numbers of segments from any numbers.
void sort_rows(std::vector<double>& values, int64_t width);

// All inputs of the case in what they are stored in when the storage dtype is `dtype`.
ReferenceTensors draw_inputs(const OperatorCase& operator_case, DType dtype);

// The number of `dtype` next to value.
double round_to(DType dtype, double value);

}  // namespace heddle
