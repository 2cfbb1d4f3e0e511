// The section `model` of a training config: the sizes of a language model and the options of its layers.
#pragma once

#include <cstdint>
#include <optional>

#include "layers/modules/norm.h"
#include "layers/registry.h"

namespace heddle {

// What is not kept for backward but computed again there: nothing, all inside a block, or all inside one of its parts.
enum class Recompute { none, block, mixer, channel };

struct ModelConfig {
  std::int64_t vocab_size = 0;
  std::int64_t dim = 0;         // features of a token
  std::int64_t layers = 0;      // blocks, each a mixer and a channel layer
  bool tie_embeddings = false;  // the head uses the embedding's weight
  Recompute recompute = Recompute::none;
  double dropout = 0.0;         // of what each mixer and each channel layer adds to the stream, in training
  std::int64_t loss_chunk = 0;  // tokens whose logits exist at a time in a training step; 0: all
  Norm::Options norm;           // of all norms between the layers
  MixerPattern mixer;
  ChannelSection channel;
};

// The tokens of every sequence, where a mixer takes no other number of them and a text cannot be continued.
std::optional<std::int64_t> fixed_length(const ModelConfig& model);

// Whether all mixers can tell apart the documents that are packed into a sequence.
bool takes_segments(const ModelConfig& model);

// Reads or writes the model with the options of its layers, whose types `registry` knows.
void describe(ConfigFields& fields, ModelConfig& model, const Registry& registry);

}  // namespace heddle
