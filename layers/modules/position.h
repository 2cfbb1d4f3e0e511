// A linearized relative position encoding (LRPE) as a part of a mixer, with its theta.            docs/layers.md#lrpe
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "core/autograd/parameter.h"
#include "layers/modules/module.h"
#include "layers/ops/lrpe_cosine.h"
#include "layers/ops/lrpe_rotate.h"

namespace heddle {

// The frequencies a theta starts with.
enum class ThetaInit {
  rope,       // base^(-2k/D) for all k
  low_half,   // the first half of the angles is 0: the low frequencies are kept
  high_half,  // the second half is 0
};

// base^(-2k/dim) for k < angles, with the half that `init` leaves out set to 0.
std::vector<double> theta_values(ThetaInit init, double base, int64_t angles, int64_t dim);

enum class LrpeType { rotate, cosine };

// The encoding of q or k. theta is a buffer, or a parameter `theta` that is learned.
class Lrpe {
 public:
  struct Options {
    LrpeType type = LrpeType::rotate;
    ThetaInit theta_init = ThetaInit::rope;
    double base = 10000.0;
    bool learnable = false;
    bool per_head = false;  // a row of theta for each head, else one for all
    Activation act = Activation::none;
    Softmax softmax = Softmax::none;  // of features only: over the sequence it would look ahead
    Pairing pairing = Pairing::half;  // rotate
    Shape shape = {};                 // cosine: the grid that a text fills; empty: one axis of any length
    int64_t extra_tokens = 0;         // cosine: before the grid
    std::optional<std::vector<int64_t>> layers = {};  // the layers that have the encoding; nothing: all

    bool is_on(int64_t layer) const;
    // The tokens of the grid of `shape`, the extra ones included; nothing without a grid.
    std::optional<int64_t> fixed_length() const;
    // Whether positions are counted from the start of the sequence, wherever a document begins in it.
    bool counts_from_start() const { return shape.rank() > 0 || extra_tokens > 0; }
  };

  Lrpe(const Options& options, const ModuleBuilder& builder, int64_t heads, int64_t head_dim);

  // x (B, N, H, D), behind `before` tokens of its text. y has D features, or 2 D by cosine.
  Variable forward(Tape& tape, const Variable& x, const TokensBefore& before = {}) const;
  const Options& options() const { return options_; }
  // What attention sees of the encodings is the difference of two positions, which is the same wherever a document
  // begins in a sequence, so that the positions of packed documents start anew by themselves. Throws Error where
  // `segments` are defined and the options count from the start of the sequence.
  void check_segments(const Tensor& segments) const;

 private:
  LrpeCosineOptions grid_at(const TokensBefore& before, int64_t length) const;

  Options options_;
  const Buffer* buffer_ = nullptr;  // the theta that is fixed
  Parameter* parameter_ = nullptr;  // the theta that is learned
};

// The encoding of a mixer at this place, whose parts are called `lrpe`; none where the options have none for its layer.
std::optional<Lrpe> make_lrpe(const std::optional<Lrpe::Options>& options, const ModuleBuilder& builder,
                              const BlockPlace& place, int64_t heads);

// Reads or writes the section {type: lrpe_rotate, theta_init, base, learnable, per_head, act, act_dim, pairing, layers}
// of a mixer whose heads have `head_dim` features, or {type: lrpe_cosine, ..., shape, extra_tokens, layers} without
// pairing. The default of `act` is that of `options`: a mixer gives its own activation of q and k, which then runs
// fused with the encoding and must not be applied again.
void describe_lrpe(ConfigFields& fields, const ModelSize& model, int64_t head_dim, Lrpe::Options& options);

// The keys that the section of a mixer and the options of the operators have in common.
void describe_lrpe_activation(ConfigFields& fields, Activation& act, Softmax& softmax);
// Reads or writes the keys `act` and `act_dim` of a mixer, which must not look ahead: a softmax is of features only.
void describe_feature_map(ConfigFields& fields, Activation& act, Softmax& softmax);
void describe_pairing(ConfigFields& fields, Pairing& pairing);
void describe_grid(ConfigFields& fields, Shape& shape, int64_t& extra_tokens);

}  // namespace heddle
