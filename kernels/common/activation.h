// Elementwise activations that fused kernels share.
//   none x · relu max(x, 0), relu'(0) = 0 · sigmoid 1/(1+exp(-x)) · silu x sigmoid(x) · elu1 x > 0 ? x + 1 : exp(x)
#pragma once

#include <cstdint>

namespace heddle::kernels {

enum class Activation : uint8_t { none, relu, sigmoid, silu, elu1 };

}  // namespace heddle::kernels
