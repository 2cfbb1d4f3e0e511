// The mixer of TransNormerLLM: linear attention with a fixed decay for each head and layer.  docs/layers.md#lightning
//   [q k v] = act(x W_qkv);  q, k = lrpe(q), lrpe(k) where the layer has it;  o = linear_attention(q, k, v)
//   y = (group_srms_norm(o) * act(gate)) W_out, one group a head
// x, y: (B, N, dim). Source: Qin et al., arXiv:2307.14995.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "layers/modules/linear.h"
#include "layers/modules/mixers/recurrent_mixer.h"
#include "layers/modules/module.h"
#include "layers/modules/position.h"
#include "layers/ops/activation.h"
#include "layers/ops/norm.h"

namespace heddle {

// log lambda of each head in layer `layer` of `layers`: -2^(-8 (h+1) / heads) * (1 - layer / (layers-1) + 1e-5), where
// the fraction is 0 in a model of one layer.
std::vector<double> lightning_log_decay(int64_t heads, int64_t layer, int64_t layers);

struct LightningGate {
  Activation act = Activation::sigmoid;
  GatePosition position = GatePosition::post;
  int64_t rank = 0;  // 0: one full projection
};

class Lightning : public RecurrentMixer {
 public:
  struct Options {
    int64_t heads = 1;
    Activation act = Activation::silu;       // of q, k and v
    std::optional<Lrpe::Options> lrpe = {};  // the encoding of the positions of q and k; nothing: none
    std::optional<LightningGate> gate = {};
  };

  Lightning(const Options& options, const ModuleBuilder& builder, const BlockPlace& place);

 private:
  Variable mix(Tape& tape, const Variable& x, State* state, const Tensor& segments) const override;
  Variable gate_of(Tape& tape, const Variable& x) const;

  Options options_;
  const Buffer* log_decay_;
  std::optional<Lrpe> lrpe_;
  Linear qkv_, out_;
  std::optional<Linear> gate_, gate_down_;  // a gate of full rank has no gate_down_
};

// The section {type: lightning, heads, act, lrpe, gate} of a model config.
struct LightningConfig : MixerOptions {
  Lightning::Options options;

  std::optional<int64_t> fixed_length() const override {
    return options.lrpe ? options.lrpe->fixed_length() : std::nullopt;
  }
  bool takes_segments() const override { return !options.lrpe || !options.lrpe->counts_from_start(); }
  void describe(ConfigFields& fields, const ModelSize& model) override;
  std::unique_ptr<Mixer> make(const ModuleBuilder& builder, const BlockPlace& place) const override;
};

}  // namespace heddle
