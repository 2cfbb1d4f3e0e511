// Elementwise activation.   y = act(x)     act: none | relu | sigmoid | silu                docs/layers.md#activation
// relu'(0) = 0. Backward writes over the incoming gradient where nobody else holds it.
#pragma once

#include "core/autograd/tape.h"
#include "core/config/config_node.h"
#include "kernels/common/activation.h"
#include "layers/operator.h"

namespace heddle {

using kernels::Activation;

// x: (..., dim), rows may be strided. With Activation::none the result is x itself.
Variable activation(Tape& tape, const Variable& x, Activation act);

// The operator of the registry: input x; output y; option act.
NamedVariables apply_activation(Tape& tape, const ConfigNode& options, const NamedVariables& inputs);

// The activations by the names of a config.
const Choices<Activation>& activation_choices();

}  // namespace heddle
