// What this program adds to heddle. heddle has a header layers/module.h of its own kind, too; as that one is
// "heddle/layers/modules/module.h", the two never meet.
#pragma once

#include <memory>

#include "heddle/layers/operator.h"
#include "heddle/layers/registry.h"

namespace outside {

// y = cap * tanh(x / cap)
heddle::Operator softcap_operator();

// Causal linear attention without decay: {type: recall, heads: 2, act: elu1}.
std::unique_ptr<heddle::MixerOptions> make_recall_options();

}  // namespace outside
