// Elementwise activations that fused kernels share. Every kernel that takes an Activation computes all of them, forward
// and backward, on both devices.
#pragma once

#include <cstdint>
#include <string_view>

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

// All activations. An operator that accepts an activation accepts every name of this table.
inline constexpr ActivationName kActivations[] = {
    {"none", Activation::none}, {"relu", Activation::relu}, {"sigmoid", Activation::sigmoid},
    {"silu", Activation::silu}, {"elu1", Activation::elu1},
};

}  // namespace heddle::kernels
