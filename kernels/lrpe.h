// What both linearized relative position encodings have in common.                             docs/layers.md#lrpe
#pragma once

#include <cstdint>

namespace heddle::kernels {

// Instead of an activation: over the features of a row, or over the tokens of a batch, head and feature.
enum class Softmax : uint8_t { none, feature, sequence };

// Stretches of positions that d_theta is summed over one by one: a function of the length alone.
constexpr int64_t lrpe_theta_partials(int64_t length) { return length < 256 ? (length > 0 ? length : 1) : 256; }

}  // namespace heddle::kernels
