// An operator as `heddle run-layer`, `heddle gradcheck`, the benchmarks and the tests see it: a function of named
// tensors (parameters among them), made from options as a config writes them, with the cases it is checked by.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/autograd/tape.h"
#include "core/config/config_node.h"
#include "core/runtime/device.h"
#include "layers/named.h"
#include "layers/operator_case.h"

namespace heddle {

// Named values: the inputs or the outputs of an operator.
using NamedVariables = Named<Variable>;

enum class InputKind {
  value,           // real numbers of the compute dtype
  full_precision,  // real numbers that stay float32 (float64 for float64) in every compute dtype: decays, states,
                   // angles
  index,           // int32 that has no gradient: tokens, targets
  segment,         // int32, non-decreasing along the sequence, that has no gradient
  // Real numbers of the compute dtype, or of full precision where they are given so: weight and bias of a norm.
  value_or_full_precision,
};

struct InputSpec {
  std::string name;  // "x", "weight"
  InputKind kind = InputKind::value;
  bool optional = false;

  bool is_real() const { return kind != InputKind::index && kind != InputKind::segment; }
  // Whether the input may be kept in float32 (float64 for float64) in every compute dtype.
  bool may_be_full_precision() const {
    return kind == InputKind::full_precision || kind == InputKind::value_or_full_precision;
  }
  // What the input is stored in when the compute dtype is `compute` and nothing else is said.
  DType dtype(DType compute) const {
    if (!is_real()) return DType::int32;
    return kind == InputKind::full_precision ? accumulate_type(compute) : compute;
  }
};

// Computes the outputs from the inputs, which are those of the operator's list, the required ones all there. Throws
// Error for shapes and dtypes that do not fit.
using OperatorFunction = std::function<NamedVariables(Tape& tape, const NamedVariables& inputs)>;

struct Operator {
  std::string name;                       // "rms_norm"
  std::vector<InputSpec> inputs = {};     // in the order of documentation
  std::vector<std::string> outputs = {};  // those it may have: "y", "r", "o", "final_state"
  // Reads the options, which the caller finishes: a key that is not read is refused by bind_operator(). Throws
  // ConfigError at the place of a bad value.
  OperatorFunction (*make)(const ConfigNode& options) = nullptr;
  // Examples that together reach each branch: tests, gradcheck and benchmarks read them.
  std::vector<OperatorCase> (*cases)() = nullptr;

  // The cases that devices of this type have kernels for.
  std::vector<OperatorCase> cases_on(DeviceType device) const;
  const InputSpec* find_input(const std::string& input) const;  // nullptr when there is none of that name
  std::vector<std::string> input_names() const;
};

// The function of these options. The options are read to their end here; every call checks the names of its inputs.
OperatorFunction bind_operator(const Operator& op, const ConfigNode& options);

// The input of that name; undefined when it was not given.
inline Variable input_or_none(const NamedVariables& inputs, const std::string& name) {
  const auto found = inputs.find(name);
  return found != inputs.end() ? found->second : Variable{};
}

}  // namespace heddle
