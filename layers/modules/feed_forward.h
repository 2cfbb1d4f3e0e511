// The channel layers of a block, without biases.                                            docs/layers.md#glu
//   ffn   y = w2 act(w1 x)                  w1.weight (hidden, dim), w2.weight (dim, hidden)
//   glu   y = w3 (act(w1 x) * (w2 x))       w12.weight (2 * hidden, dim), w3.weight (dim, hidden)
// w12 holds w1 above w2, so that x is read once.
#pragma once

#include <cstdint>
#include <memory>

#include "layers/modules/linear.h"
#include "layers/modules/module.h"
#include "layers/ops/activation.h"

namespace heddle {

enum class FeedForwardType { ffn, glu };

class FeedForward : public Channel {
 public:
  struct Options {
    FeedForwardType type = FeedForwardType::glu;
    int64_t hidden = 0;
    Activation act = Activation::silu;
  };

  FeedForward(const Options& options, const ModuleBuilder& builder, int64_t dim);
  Variable forward(Tape& tape, const Variable& x) const override;

 private:
  FeedForwardType type_;
  int64_t dim_;
  Activation act_;
  Linear in_, out_;
};

// The section {type: ffn | glu, hidden, act} of a model config. act is relu by default in ffn and silu in glu.
struct FeedForwardConfig : ChannelOptions {
  explicit FeedForwardConfig(FeedForwardType type);

  FeedForward::Options options;

  void describe(ConfigFields& fields, const ModelSize& model) override;
  std::unique_ptr<Channel> make(const ModuleBuilder& builder, const BlockPlace& place) const override;
};

}  // namespace heddle
