// Elementwise activations that fused kernels share. Every kernel that takes an Activation computes all of them, forward
// and backward, on both devices. At an infinite argument value and derivative are the limits of the function; NaN gives
// NaN.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/runtime/host_device.h"

namespace heddle::kernels {

enum class Activation : uint8_t {
  none,     // x
  relu,     // max(x, 0); the derivative at 0 is 0
  sigmoid,  // 1 / (1 + exp(-x))
  silu,     // x / (1 + exp(-x))
  elu1,     // x > 0 ? x + 1 : exp(x), that is elu(x) + 1: positive, a feature map of linear attention
};

// The name of an activation in YAML, in messages and in tests.
struct ActivationName {
  std::string_view name;
  Activation activation;
};

// The gradient of x, given that of act(x) and act'(x). Where relu is flat it is 0, also when `upstream` is infinite.
template <class A>
HEDDLE_HOST_DEVICE inline A chain_rule(Activation act, A upstream, A derivative) {
  return act == Activation::relu && derivative == A(0) ? A(0) : upstream * derivative;
}
template <Activation act, class A>
HEDDLE_HOST_DEVICE inline A chain_rule(A upstream, A derivative) {
  return chain_rule(act, upstream, derivative);
}

// All activations. An operator that accepts an activation accepts every name of this table.
inline constexpr ActivationName kActivations[] = {
    {"none", Activation::none}, {"relu", Activation::relu}, {"sigmoid", Activation::sigmoid},
    {"silu", Activation::silu}, {"elu1", Activation::elu1},
};

}  // namespace heddle::kernels
