// Linear attention with a feature map on q and k.                              docs/layers.md#linear-attention-mixer
//   [q k v] = x W_qkv;  q, k = lrpe(act(q)), lrpe(act(k));  o = linear_attention(q, k, v)
//   y = srms_norm(o), each head by itself, W_out
// x, y: (B, N, dim). Source: Katharopoulos et al., arXiv:2006.16236, with a norm in place of the sum that it divides
// by.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "layers/modules/linear.h"
#include "layers/modules/mixers/recurrent_mixer.h"
#include "layers/modules/module.h"
#include "layers/modules/position.h"

namespace heddle {

class LinearAttentionMixer : public RecurrentMixer {
 public:
  struct Options {
    int64_t heads = 1;
    int64_t kv_heads = 0;  // of k and v, a divisor of heads; 0: as many
    Activation act = Activation::elu1;
    std::optional<Lrpe::Options> lrpe = {};
    bool decay = false;  // the slopes of lightning, or none
  };

  LinearAttentionMixer(const Options& options, const ModuleBuilder& builder, const BlockPlace& place);
  Variable forward(Tape& tape, const Variable& x, MixerState* state) const override;

 private:
  Options options_;
  int64_t kv_heads_, head_dim_;
  const Buffer* log_decay_ = nullptr;
  std::optional<Lrpe> lrpe_;
  Linear qkv_, out_;
};

// The section {type: linear_attention, heads, kv_heads, act, lrpe, decay} of a model config.
struct LinearAttentionMixerConfig : MixerOptions {
  LinearAttentionMixer::Options options;

  void describe(ConfigFields& fields, const ModelSize& model) override;
  std::unique_ptr<Mixer> make(const ModuleBuilder& builder, const BlockPlace& place) const override;
};

}  // namespace heddle
