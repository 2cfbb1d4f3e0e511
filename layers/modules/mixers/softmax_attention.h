// The mixer of a transformer: softmax attention with rotary positions.      docs/layers.md#softmax-attention-mixer
//   [q k v] = x W_qkv;  q, k = rotate(q), rotate(k);  y = softmax_attention(q, k, v) W_out
// x, y: (B, N, dim). Heads of k and v may be fewer than those of q. Sources: Vaswani et al., arXiv:1706.03762; Su et
// al., arXiv:2104.09864; Ainslie et al., arXiv:2305.13245.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "layers/modules/linear.h"
#include "layers/modules/module.h"
#include "layers/modules/position.h"

namespace heddle {

class SoftmaxAttentionMixer : public Mixer {
 public:
  struct Options {
    int64_t heads = 1;
    int64_t kv_heads = 0;   // of k and v, a divisor of heads; 0: as many
    int64_t window = 0;     // a token sees the last `window` tokens, itself included; 0: all
    double base = 10000.0;  // of the rotation
  };

  SoftmaxAttentionMixer(const Options& options, const ModuleBuilder& builder, const BlockPlace& place);
  // The state holds the keys and values of the tokens before, in memory that grows in steps (category `cache`). With a
  // window it keeps those that a later token may still see.
  Variable forward(Tape& tape, const Variable& x, MixerState* state, const Tensor& segments) const override;
  std::unique_ptr<MixerState> make_state() const override;
  std::unique_ptr<MixerState> load_state(Context& context, const std::map<std::string, Tensor>& tensors) const override;

 private:
  Options options_;
  int64_t dim_, kv_heads_, head_dim_;
  Lrpe rotary_;
  Linear qkv_, out_;
};

// The section {type: softmax_attention, heads, kv_heads, window, base} of a model config.
struct SoftmaxAttentionMixerConfig : MixerOptions {
  SoftmaxAttentionMixer::Options options;

  void describe(ConfigFields& fields, const ModelSize& model) override;
  std::unique_ptr<Mixer> make(const ModuleBuilder& builder, const BlockPlace& place) const override;
  bool takes_segments() const override { return true; }
};

}  // namespace heddle
