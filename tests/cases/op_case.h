// One case of one operator: its inputs, its options, and the unfused specification it is held against.
#pragma once

#include <cmath>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "core/runtime/error.h"
#include "core/tensor/dtype.h"
#include "core/tensor/element_types.h"
#include "core/tensor/shape.h"

namespace heddle::test {

// How an input is drawn and how it may lie in memory. All but `tokens` are real numbers.
enum class InputKind {
  activation,  // standard normal; batch first; may be a view with larger row strides
  parameter,   // standard normal; its gradient may also be asked for in the accumulate type
  matrix,      // a parameter of rank 2: may be a view with larger row strides
  angle,       // normal, in the accumulate type
  decay,       // minus a positive number, in the accumulate type
  state,       // standard normal; batch first; dense, in the accumulate type
  tokens,      // int32 in [0, range); batch first
};

struct CaseInput {
  std::string name;
  Shape shape;
  InputKind kind = InputKind::activation;
  int64_t range = 0;          // tokens: the number of different ones
  bool differentiate = true;  // whether the operator has a gradient for it
  double scale = 1.0;         // standard deviation
  double mean = 0.0;
};

// A tensor on the host, row-major, in double.
struct HostTensor {
  Shape shape;
  std::vector<double> values;

  explicit operator bool() const { return !values.empty(); }
  double operator[](int64_t index) const { return values[static_cast<size_t>(index)]; }
  double& operator[](int64_t index) { return values[static_cast<size_t>(index)]; }
};
using HostTensors = std::map<std::string, HostTensor>;

inline HostTensor host_zeros(const Shape& shape) {
  return {shape, std::vector<double>(static_cast<size_t>(numel(shape)), 0.0)};
}

// The tensor of that name; an empty one when there is none.
inline HostTensor host_input(const HostTensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  return found != tensors.end() ? found->second : HostTensor{};
}

// The number of `dtype` next to value: for those places where SPEC rounds before the last step.
inline double round_to(DType dtype, double value) {
  switch (dtype) {
    case DType::float32:
      return static_cast<float>(value);
    case DType::bfloat16:
      return static_cast<float>(static_cast<bfloat16>(static_cast<float>(value)));
    case DType::float16:
      return static_cast<float>(static_cast<float16>(static_cast<float>(value)));
    default:
      return value;
  }
}

// Forward in plain loops over doubles, straight from the specification: outputs by name. `dtype` is the storage dtype
// of the activations; results need not be rounded to it.
using Reference = std::function<HostTensors(const ConfigNode& options, const HostTensors& inputs, DType dtype)>;

struct OpCase {
  std::string name;     // unique: "rms_norm residual gate pre silu"
  std::string op;       // row of the registry
  std::string options;  // YAML
  std::vector<CaseInput> inputs;
  Reference reference;
  double tolerance = 1.0;  // multiplies what the dtype allows
  // How many times a number is rounded to the storage dtype on its way through a chain of operators, in forward and
  // backward. 0: gradients are computed from the inputs and rounded once.
  int roundings = 0;
  // Roundings to the storage dtype on the way that only the GPU's 16-bit kernels make: operands of its tensor cores.
  int gpu_roundings = 0;
  bool large = false;  // too large for finite differences: forward and gradients in float32 and bfloat16 only
};

// act(x) by the name a config gives it.
inline double activate(const std::string& act, double x) {
  if (act == "relu") return x > 0.0 ? x : 0.0;
  if (act == "sigmoid") return 1.0 / (1.0 + std::exp(-x));
  if (act == "silu") return x / (1.0 + std::exp(-x));
  if (act == "elu1") return x > 0.0 ? x + 1.0 : std::exp(x);
  check(act == "none", "unknown activation {}", act);
  return x;
}

}  // namespace heddle::test
