// Linear attention with a feature map on q and k.                              docs/layers.md#linear-attention-mixer
//   [q k v] = x W_qkv;  q, k = act(q), act(k);  o = linear_attention(lrpe(q), lrpe(k), v)
//   y = srms_norm(o), each head by itself, W_out;   with normalizer: y = (o / max(q . z, eps)) W_out, z the sum of k
// x, y: (B, N, dim). Sources: Katharopoulos et al., arXiv:2006.16236, for the normalizer; Qin et al., arXiv:2210.10340,
// for the norm in its place.
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
    Softmax softmax = Softmax::none;  // in place of act: of the features of a head
    std::optional<Lrpe::Options> lrpe = {};
    bool decay = false;       // the slopes of lightning, or none
    bool normalizer = false;  // o is divided by q . z instead of normed
  };

  LinearAttentionMixer(const Options& options, const ModuleBuilder& builder, const BlockPlace& place);

 private:
  Variable mix(Tape& tape, const Variable& x, State* state, const Tensor& segments) const override;
  Variable feature_map(Tape& tape, const Variable& x) const;

  Options options_;
  int64_t kv_heads_, head_dim_;
  const Buffer* log_decay_ = nullptr;
  std::optional<Lrpe> lrpe_;
  Linear qkv_, out_;
};

// The section {type: linear_attention, heads, kv_heads, act, act_dim, lrpe, decay, normalizer} of a model config.
struct LinearAttentionMixerConfig : MixerOptions {
  LinearAttentionMixer::Options options;

  std::optional<int64_t> fixed_length() const override {
    return options.lrpe ? options.lrpe->fixed_length() : std::nullopt;
  }
  bool takes_segments() const override { return !options.lrpe || !options.lrpe->counts_from_start(); }
  void describe(ConfigFields& fields, const ModelSize& model) override;
  std::unique_ptr<Mixer> make(const ModuleBuilder& builder, const BlockPlace& place) const override;
};

}  // namespace heddle
