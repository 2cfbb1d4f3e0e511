// Elementwise activations. Every kernel that takes an Activation computes those of kActivations, forward and backward;
// activation and glu (kernels/dense/elementwise.h) also compute the others. Both devices compute the same ones. At an
// infinite argument value and derivative are the limits of the function; NaN gives NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/runtime/host_device.h"

namespace heddle::kernels {

enum class Activation : uint8_t {
  none,     // x
  relu,     // max(x, 0); the derivative at 0 is 0
  sigmoid,  // 1 / (1 + exp(-x))
  silu,     // x / (1 + exp(-x))
  elu1,     // x > 0 ? x + 1 : exp(x), that is elu(x) + 1: positive, a feature map of linear attention
  // Of the elementwise kernels only:
  relu2,      // max(x, 0)^2
  tanh,       // tanh(x)
  gelu,       // x P(x), P the distribution function of the standard normal distribution: (1 + erf(x / sqrt(2))) / 2
  gelu_tanh,  // x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2
};

// The name of an activation in YAML, in messages and in tests.
struct ActivationName {
  std::string_view name;
  Activation activation;
};

// The value and the derivative of an activation.
template <class A>
struct Activated {
  A value, derivative;
};

// The gradient of x, given that of act(x) and act'(x). Where relu and relu2 are flat it is 0, also when `upstream` is
// infinite.
template <class A>
HEDDLE_HOST_DEVICE inline A chain_rule(Activation act, A upstream, A derivative) {
  const bool has_flat_part = act == Activation::relu || act == Activation::relu2;
  return has_flat_part && derivative == A(0) ? A(0) : upstream * derivative;
}
template <Activation act, class A>
HEDDLE_HOST_DEVICE inline A chain_rule(A upstream, A derivative) {
  return chain_rule(act, upstream, derivative);
}

// The same where act(x) is multiplied by a factor. The derivative, which is 0 far from x = 0 for sigmoids, comes first:
// upstream * factor could be infinite, and 0 times that NaN. That of relu2 may be any number: above 1 it meets the
// smaller of the others first, else the larger. Then no product of two leaves the range where that of all three does
// not.
template <Activation act, class A>
HEDDLE_HOST_DEVICE inline A chain_rule(A upstream, A derivative, A factor) {
  if constexpr (act == Activation::relu2) {
    const bool is_upstream_first = (derivative > A(1)) == (std::fabs(upstream) < std::fabs(factor));
    const A first = is_upstream_first ? upstream : factor, second = is_upstream_first ? factor : upstream;
    return derivative == A(0) ? A(0) : derivative * first * second;
  }
  return act == Activation::relu && derivative == A(0) ? A(0) : upstream * derivative * factor;
}

// `value`, which is act(x), times a factor. That of relu2 is a square, which may leave the range where the product does
// not.
template <Activation act, class A>
HEDDLE_HOST_DEVICE inline A gated(A x, A value, A factor) {
  if constexpr (act == Activation::relu2) {
    const A root = x <= A(0) ? A(0) : x;
    return root * (root * factor);
  }
  return value * factor;
}

// All activations, which the elementwise operators accept by these names.
inline constexpr ActivationName kElementwiseActivations[] = {
    {"none", Activation::none}, {"relu", Activation::relu}, {"sigmoid", Activation::sigmoid},
    {"silu", Activation::silu}, {"elu1", Activation::elu1}, {"relu2", Activation::relu2},
    {"tanh", Activation::tanh}, {"gelu", Activation::gelu}, {"gelu_tanh", Activation::gelu_tanh},
};

// Those of every kernel. An operator that fuses an activation with other work accepts these names.
inline constexpr std::span<const ActivationName> kActivations{kElementwiseActivations, 5};

constexpr bool is_fused_activation(Activation act) { return act <= Activation::elu1; }

// The name of an activation.
constexpr std::string_view name(Activation act) {
  for (const ActivationName& known : kElementwiseActivations) {
    if (known.activation == act) return known.name;
  }
  return {};
}

}  // namespace heddle::kernels
