#include "trainers/model/language_model.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>

#include "layers/ops/linear.h"

namespace heddle {

LanguageModel::LanguageModel(const ModelConfig& config) : vocab_size_(config.vocab_size) {
  const ModuleBuilder root(parameters_);
  embedding_ =
      std::make_unique<Embedding>(Embedding::Options{}, root.child("embedding"), config.vocab_size, config.dim);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const BlockPlace place{config.dim, layer, config.layers};
    Block& block = blocks_.emplace_back();
    block.path = fmt::format("blocks.{}", layer);
    const ModuleBuilder builder = root.child(block.path);
    block.mixer_norm = std::make_unique<Norm>(config.norm, builder.child("mixer_norm"), config.dim);
    block.mixer = config.mixer.options->make(builder.child("mixer"), place);
    block.channel_norm = std::make_unique<Norm>(config.norm, builder.child("channel_norm"), config.dim);
    block.channel = config.channel.options->make(builder.child("channel"), place);
  }
  final_norm_ = std::make_unique<Norm>(config.norm, root.child("final_norm"), config.dim);
  if (!config.tie_embeddings) {
    head_ = std::make_unique<Linear>(Linear::Options{}, root.child("head"), config.dim, config.vocab_size);
  }
}

ModelState LanguageModel::initial_state() const {
  ModelState state;
  for (const Block& block : blocks_) state.push_back(block.mixer->make_state());
  return state;
}

Variable LanguageModel::forward(Tape& tape, const Tensor& tokens, ModelState* state, const Observer& observer) const {
  // Runs one part in its own memory scope.
  const auto run = [&](std::string_view part, const auto& compute) {
    const MemoryScope scope(tape.context(), part, MemoryCategory::activation);
    Variable output = compute();
    if (observer) observer(part, output);
    return output;
  };

  Variable x = run("embedding", [&] { return embedding_->forward(tape, tokens); });
  Variable residual;
  const auto normalize = [&](std::string_view part, const Norm& norm) {
    x = run(part, [&] {
      const Normed normed = norm.forward(tape, x, residual);
      residual = normed.r;
      return normed.y;
    });
  };
  for (size_t i = 0; i < blocks_.size(); ++i) {
    const Block& block = blocks_[i];
    normalize(block.path + ".mixer_norm", *block.mixer_norm);
    x = run(block.path + ".mixer",
            [&] { return block.mixer->forward(tape, x, state != nullptr ? (*state)[i].get() : nullptr); });
    normalize(block.path + ".channel_norm", *block.channel_norm);
    x = run(block.path + ".channel", [&] { return block.channel->forward(tape, x); });
  }
  normalize("final_norm", *final_norm_);
  return run("head", [&] { return head_ ? head_->forward(tape, x) : linear(tape, x, embedding_->weight(tape)); });
}

}  // namespace heddle
