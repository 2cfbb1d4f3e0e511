// Linearized relative position encodings (LRPE).                                        docs/layers.md#lrpe-rotate
//   rotate:  a = act(x);  phi[n, h, k] = (n + offset) * theta[h, k];  the pair (k, k + D/2) of a turned by phi
// Source: Qin et al., "Linearized relative positional encoding", arXiv:2307.09270; Su et al., "RoFormer",
// arXiv:2104.09864.
#pragma once

#include <memory>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/autograd/tape.h"
#include "core/config/config_node.h"
#include "kernels/lrpe_rotate.h"
#include "layers/fixed_values.h"
#include "layers/module.h"
#include "layers/operator.h"

namespace heddle {

using kernels::Activation;
using kernels::Layout;
using kernels::Pairing;
using kernels::Softmax;

struct LrpeRotateOptions : kernels::LrpeRotateOptions {
  Layout layout = Layout::bnhd;
};

// x: (B, N, H, D), (B, H, N, D) with layout bhnd, or (B, N, D): one head; of a floating dtype, heads and tokens may be
// strided. theta: (H, E) or (1, E), E <= D/2, float32 (float64 for float64 x), may require a gradient.
// Kept for backward: x, unless there is neither an activation nor a gradient of theta; two numbers per batch, head and
// feature for a softmax over the sequence. Throws Error naming the argument and both shapes when they do not fit.
Variable lrpe_rotate(Tape& tape, const Variable& x, const Variable& theta, const LrpeRotateOptions& options = {});

// The operator of the registry: inputs x, theta; output y; options act, act_dim, pairing, layout, offset.
NamedVariables apply_lrpe_rotate(Tape& tape, const ConfigNode& options, const NamedVariables& inputs);

// The frequencies a theta starts with.
enum class ThetaInit {
  rope,       // base^(-2k/D) for all k
  low_half,   // the first half of the angles is 0: the low frequencies are kept
  high_half,  // the second half is 0
};

// base^(-2k/dim) for k < angles, with the half that `init` leaves out set to 0.
std::vector<double> theta_values(ThetaInit init, double base, int64_t angles, int64_t dim);

// A rotation as a part of a mixer, with its theta: fixed, or a parameter `theta` that is learned.
class Lrpe {
 public:
  struct Options {
    ThetaInit theta_init = ThetaInit::rope;
    double base = 10000.0;
    bool learnable = false;
    bool per_head = false;  // a row of theta for each head, else one for all
    Activation act = Activation::none;
    Softmax softmax = Softmax::none;  // of features only: over the sequence it would look ahead
    Pairing pairing = Pairing::half;
  };

  Lrpe(const Options& options, const ModuleBuilder& builder, int64_t heads, int64_t head_dim);

  // x (B, N, H, D); `offset` is the position of the first token.
  Variable forward(Tape& tape, const Variable& x, int64_t offset = 0) const;
  const Options& options() const { return options_; }

 private:
  Options options_;
  FixedValues fixed_theta_;
  Parameter* parameter_ = nullptr;  // the theta that is learned
};

// The section {type: lrpe_rotate, theta_init, base, learnable, per_head, act, act_dim, pairing, layers} of a mixer, to
// its finish(). Null when `layers` is given and does not list place.layer. `act` is the default of the key act: a mixer
// gives its own activation of q and k, which then runs fused with the rotation and must not be applied again.
std::unique_ptr<Lrpe> make_lrpe(const ConfigNode& section, const ModuleBuilder& builder, const BlockPlace& place,
                                int64_t heads, int64_t head_dim, Activation act = Activation::none);

}  // namespace heddle
