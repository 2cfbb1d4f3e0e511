// The mixers of RetNet and of simple gated linear attention, which differ in what makes their state decay.
//                                                                          docs/layers.md#retention-and-simple-gla
//   q, k, v = x W_q, x W_k, x W_v;  o = linear_attention(q, k, v, log_decay)
//   y = (rms_norm(o), each head by itself, * silu(x W_g)) W_o
// retention: q and k are rotated by their positions, log_decay[h] = log(1 - 2^(-5-h)).
// simple_gla: log_decay = log(sigmoid(x W_gk + b)) / divisor, one for each token and head.
// x, y: (B, N, dim). Parameters have the names and shapes of flash-linear-attention's modules, so that weights can be
// exchanged. Sources: Sun et al., arXiv:2307.08621; Yang et al., arXiv:2312.06635.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "layers/modules/linear.h"
#include "layers/modules/mixers/recurrent_mixer.h"
#include "layers/modules/module.h"
#include "layers/modules/norm.h"
#include "layers/modules/position.h"

namespace heddle {

// log(1 - 2^(-5-h)) for each head.
std::vector<double> retention_log_decay(int64_t heads);

class Retention : public RecurrentMixer {
 public:
  enum class Kind { retention, simple_gla };
  struct Options {
    Kind kind = Kind::retention;
    int64_t heads = 1;
    double expand_k = 1.0;  // features of all q over those of x, and of all k
    double expand_v = 2.0;  // features of all v over those of x
    double eps = 1e-5;      // of the norm
    double base = 10000.0;  // retention: of the rotation
    double divisor = 16.0;  // simple_gla: of the log decays
  };

  Retention(const Options& options, const ModuleBuilder& builder, const BlockPlace& place);

 private:
  Variable mix(Tape& tape, const Variable& x, State* state, const Tensor& segments) const override;
  Options options_;
  int64_t key_dim_, value_dim_;  // of all heads
  Linear q_, k_, v_, gate_;
  std::optional<Linear> decay_;        // simple_gla
  const Buffer* log_decay_ = nullptr;  // retention
  std::optional<Lrpe> rotary_;         // retention
  Norm norm_;                          // of each head by itself, with one weight for all
  Linear out_;
};

// The sections {type: retention, heads, expand_k, expand_v, eps, base} and
// {type: simple_gla, heads, expand_k, expand_v, eps, divisor} of a model config.
struct RetentionConfig : MixerOptions {
  Retention::Options options;

  explicit RetentionConfig(Retention::Kind kind);
  void describe(ConfigFields& fields, const ModelSize& model) override;
  std::unique_ptr<Mixer> make(const ModuleBuilder& builder, const BlockPlace& place) const override;
  bool takes_segments() const override { return true; }
};

}  // namespace heddle
