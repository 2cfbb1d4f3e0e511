// Enumerations as a config names them.
//   DType dtype = node.get_choice<DType>("dtype", DType::float32, dtype_choices());
#pragma once

#include <span>
#include <string>

#include "core/config/config_node.h"
#include "core/tensor/dtype.h"
#include "kernels/common/activation.h"
#include "kernels/common/views.h"
#include "kernels/norm/norm.h"

namespace heddle {

// The storage dtypes: float64 | float32 | bfloat16 | float16.
inline Choices<DType> dtype_choices() {
  Choices<DType> choices;
  for (DType dtype : {DType::float64, DType::float32, DType::bfloat16, DType::float16}) {
    choices.emplace_back(std::string(name(dtype)), dtype);
  }
  return choices;
}

inline Choices<kernels::Activation> choices_of(std::span<const kernels::ActivationName> activations) {
  Choices<kernels::Activation> choices;
  for (const auto& [name, activation] : activations) choices.emplace_back(std::string(name), activation);
  return choices;
}
// Of layers that fuse the activation with other work: none | relu | sigmoid | silu | elu1
inline const Choices<kernels::Activation>& activation_choices() {
  static const Choices<kernels::Activation> choices = choices_of(kernels::kActivations);
  return choices;
}
// Of the elementwise layers, these and more: relu2 | tanh | gelu | gelu_tanh
inline const Choices<kernels::Activation>& elementwise_activation_choices() {
  static const Choices<kernels::Activation> choices = choices_of(kernels::kElementwiseActivations);
  return choices;
}

// Where a gate multiplies: before the norm or after it.
inline const Choices<kernels::GatePosition>& gate_position_choices() {
  static const Choices<kernels::GatePosition> choices = {{"pre", kernels::GatePosition::pre},
                                                         {"post", kernels::GatePosition::post}};
  return choices;
}

// The order of the dimensions of x (B, N, H, D) or (B, H, N, D).
inline const Choices<kernels::Layout>& layout_choices() {
  static const Choices<kernels::Layout> choices = {{"bnhd", kernels::Layout::bnhd}, {"bhnd", kernels::Layout::bhnd}};
  return choices;
}

}  // namespace heddle
