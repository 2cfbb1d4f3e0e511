// A language model, built of layers as a config says.                                           docs/config.md#model
//   x = embedding(tokens);  N times: y, r = norm(x + r); x = mixer(y); y, r = norm(x + r); x = channel(y);
// with dropout of each mixer(y) and channel(y) in training;
//   features = norm(x + r);  logits = head(features);  loss = cross_entropy(logits, targets)
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "layers/modules/embedding.h"
#include "layers/modules/linear.h"
#include "layers/modules/module.h"
#include "layers/modules/norm.h"
#include "trainers/model/model_config.h"

namespace heddle {

// What a model keeps of the text that it has read: the state of the mixer of each block.
using ModelState = std::vector<std::unique_ptr<MixerState>>;

// What a model reads: token ids, int32 (B, N), each in [0, vocab_size), and, where several documents are packed into a
// sequence, int32 `segments` (B, N), non-decreasing along N. A token then sees tokens of its own segment only.
struct ModelInput {
  Tensor tokens;
  Tensor segments;

  ModelInput(Tensor ids) : tokens(std::move(ids)) {}  // NOLINT(google-explicit-constructor): one document a sequence
  ModelInput(Tensor ids, Tensor documents) : tokens(std::move(ids)), segments(std::move(documents)) {}
};

// The masks of dropout in one pass: equal seeds give equal masks, which are those of a batch of which this one is a
// part, from its sequence `first_sequence` on.
struct DropoutMasks {
  uint64_t seed = 0;
  int64_t first_sequence = 0;
  // int64 (layers, 2) on the device, in place of `seed`: what dropout_seeds() gives for it. A graph reads them anew
  // with each replay.
  Tensor seeds = {};
};

class LanguageModel {
 public:
  // Builds the layers; the parameters have no memory yet.
  explicit LanguageModel(const ModelConfig& config);

  ParameterSet& parameters() { return parameters_; }
  const ParameterSet& parameters() const { return parameters_; }
  int64_t vocab_size() const { return vocab_size_; }
  int64_t loss_chunk() const { return loss_chunk_; }
  // The state at the start of a text.
  ModelState initial_state() const;
  // The seeds of the masks of DropoutMasks::seed: for each block that of its mixer, then that of its channel layer.
  // None in a model without dropout.
  std::vector<uint64_t> dropout_seeds(uint64_t seed) const;

  // Is called with the output of each part as it is made: "embedding", "blocks.3.mixer", ...
  using Observer = std::function<void(std::string_view part, const Variable& output)>;

  // Returns logits (B, N, vocab_size) of the compute dtype. With `state`, which initial_state() made, the tokens
  // continue the text that it has seen, and it is advanced; for inference only, and without segments.
  Variable forward(Tape& tape, const ModelInput& input, ModelState* state = nullptr, const Observer& observer = {},
                   const DropoutMasks& masks = {}) const;
  // The same without the head: what the head reads, (B, N, dim).
  Variable features(Tape& tape, const ModelInput& input, ModelState* state = nullptr, const Observer& observer = {},
                    const DropoutMasks& masks = {}) const;
  // The mean loss of the predictions from features (..., dim) for targets int32 (...), over those that count: nats, a
  // scalar. With model.loss_chunk the logits of that many tokens exist at a time; without, backward writes their
  // gradient over the logits.
  Variable loss(Tape& tape, const Variable& features, const Tensor& targets) const;

 private:
  struct Block {
    std::string path;  // "blocks.3"
    std::unique_ptr<Norm> mixer_norm, channel_norm;
    std::unique_ptr<Mixer> mixer;
    std::unique_ptr<Channel> channel;
    std::vector<Parameter*> parameters, mixer_parameters, channel_parameters;  // all of them, and those of its layers
  };
  struct Stream;
  struct BlockMasks;

  std::vector<Parameter*> parameters_since(size_t begin);
  static void normalize(Tape& tape, const std::string& part, const Norm& norm, Stream& stream,
                        const Observer& observer);
  Variable head_weight(Tape& tape) const;
  void run_block(Tape& tape, const Block& block, Stream& stream, MixerState* state, const Tensor& segments,
                 Recompute recomputed, const Observer& observer, const BlockMasks& masks) const;

  ParameterSet parameters_;
  int64_t vocab_size_;
  Recompute recompute_;
  double dropout_;
  int64_t loss_chunk_;
  std::unique_ptr<Embedding> embedding_;
  std::vector<Block> blocks_;
  std::unique_ptr<Norm> final_norm_;
  std::unique_ptr<Linear> head_;  // nullptr: the embedding's weight
};

// The mean loss of logits (.., vocab_size) for targets int32 (..), over those that count: nats, a scalar.
Variable language_model_loss(Tape& tape, const Variable& logits, const Tensor& targets);

}  // namespace heddle
