// A language model put together from layers by a config.                                        docs/config.md#model
//   x = embedding(tokens);  N times: y, r = norm(x + r); x = mixer(y); y, r = norm(x + r); x = channel(y);
//   logits = head(norm(x + r))
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "layers/ops/embedding.h"
#include "layers/ops/linear.h"
#include "layers/registry.h"
#include "trainers/train_config.h"

namespace heddle {

// What a text read so far leaves behind: the recurrent state of every mixer. Empty at the start of a text.
using ModelState = std::vector<MixerState>;

class LanguageModel {
 public:
  // Builds the layers and fills their defaults into the config's sections; the parameters have no memory yet. Throws
  // ConfigError for options that a layer does not know.
  explicit LanguageModel(const ModelConfig& config);

  ParameterSet& parameters() { return parameters_; }
  const ParameterSet& parameters() const { return parameters_; }
  int64_t vocab_size() const { return vocab_size_; }
  ModelState initial_state() const { return ModelState(blocks_.size()); }

  // Sees the output of each part as it is made: "embedding", "blocks.3.mixer", ...
  using Observer = std::function<void(std::string_view part, const Variable& output)>;

  // tokens: int32 (B, N), each in [0, vocab_size). Returns logits (B, N, vocab_size) of the compute dtype. With `state`
  // the tokens continue the text that it has seen, and it is moved on; for inference only.
  Variable forward(Tape& tape, const Tensor& tokens, ModelState* state = nullptr, const Observer& observer = {}) const;

 private:
  struct Block {
    std::string path;  // "blocks.3"
    std::unique_ptr<Norm> mixer_norm, channel_norm;
    std::unique_ptr<Mixer> mixer;
    std::unique_ptr<Channel> channel;
  };

  ParameterSet parameters_;
  int64_t vocab_size_;
  std::unique_ptr<Embedding> embedding_;
  std::vector<Block> blocks_;
  std::unique_ptr<Norm> final_norm_;
  std::unique_ptr<Linear> head_;  // nullptr: the embedding's weight
};

}  // namespace heddle
