#include "trainers/model/language_model.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor/random.h"
#include "layers/ops/cross_entropy.h"
#include "layers/ops/dropout.h"
#include "layers/ops/linear.h"
#include "layers/ops/linear_cross_entropy.h"
#include "layers/ops/recompute.h"
#include "trainers/data/dataset.h"

namespace heddle {

LanguageModel::LanguageModel(const ModelConfig& config)
    : vocab_size_(config.vocab_size),
      recompute_(config.recompute),
      dropout_(config.dropout),
      loss_chunk_(config.loss_chunk) {
  const ModuleBuilder root(parameters_);
  embedding_ =
      std::make_unique<Embedding>(Embedding::Options{}, root.child("embedding"), config.vocab_size, config.dim);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const BlockPlace place{config.dim, layer, config.layers};
    Block& block = blocks_.emplace_back();
    block.path = fmt::format("blocks.{}", layer);
    const size_t begin = parameters_.all().size();
    const ModuleBuilder builder = root.child(block.path);
    block.mixer_norm = std::make_unique<Norm>(config.norm, builder.child("mixer_norm"), config.dim);
    const size_t mixer_begin = parameters_.all().size();
    block.mixer = config.mixer.of_layer(layer).options->make(builder.child("mixer"), place);
    block.mixer_parameters = parameters_since(mixer_begin);
    block.channel_norm = std::make_unique<Norm>(config.norm, builder.child("channel_norm"), config.dim);
    const size_t channel_begin = parameters_.all().size();
    block.channel = config.channel.options->make(builder.child("channel"), place);
    block.channel_parameters = parameters_since(channel_begin);
    block.parameters = parameters_since(begin);
  }
  final_norm_ = std::make_unique<Norm>(config.norm, root.child("final_norm"), config.dim);
  if (!config.tie_embeddings) {
    head_ = std::make_unique<Linear>(Linear::Options{}, root.child("head"), config.dim, config.vocab_size);
  }
}

std::vector<Parameter*> LanguageModel::parameters_since(size_t begin) {
  std::vector<Parameter*> parameters;
  for (size_t i = begin; i < parameters_.all().size(); ++i) parameters.push_back(&parameters_.all()[i]);
  return parameters;
}

ModelState LanguageModel::initial_state() const {
  ModelState state;
  for (const Block& block : blocks_) state.push_back(block.mixer->make_state());
  return state;
}

// x and the sum of what came before it, which every norm adds x to.
struct LanguageModel::Stream {
  Variable x, residual;
};

namespace {

// Runs one part in its own memory scope.
template <class Compute>
Variable run_part(Tape& tape, std::string_view part, const LanguageModel::Observer& observer, const Compute& compute) {
  const MemoryScope scope(tape.context(), part, MemoryCategory::activation);
  Variable output = compute();
  if (observer) observer(part, output);
  return output;
}

}  // namespace

void LanguageModel::normalize(Tape& tape, const std::string& part, const Norm& norm, Stream& stream,
                              const Observer& observer) {
  stream.x = run_part(tape, part, observer, [&] {
    Normed normed = norm.forward(tape, stream.x, stream.residual);
    stream.residual = std::move(normed.r);
    return std::move(normed.y);
  });
}

// The parts whose values are not kept go through recompute(). Observers see each part once, as it is first computed.
void LanguageModel::run_block(Tape& tape, const Block& block, Stream& stream, MixerState* state, const Tensor& segments,
                              Recompute recomputed, const Observer& observer, const DropoutMasks& masks) const {
  if (recomputed == Recompute::block) {
    const std::vector<Variable> outputs = recompute(
        tape, {stream.x, stream.residual}, block.parameters,
        [this, &block, segments, observer, masks, calls = 0](Tape& inner, const std::vector<Variable>& in) mutable {
          Stream again{in[0], in[1]};
          run_block(inner, block, again, nullptr, segments, Recompute::none, calls++ == 0 ? observer : Observer{},
                    masks);
          return std::vector<Variable>{again.x, again.residual};
        });
    stream = {outputs[0], outputs[1]};
    return;
  }
  const auto apply = [&](const auto& layer, const std::vector<Parameter*>& parameters, bool is_recomputed) {
    if (!is_recomputed) return layer(tape, stream.x);
    return recompute(tape, {stream.x}, parameters, [layer](Tape& inner, const std::vector<Variable>& in) {
      return std::vector<Variable>{layer(inner, in[0])};
    })[0];
  };
  uint64_t place = 0;  // in the block: the mixer, then the channel layer
  const auto run_layer = [&](const std::string& part, const auto& layer, const std::vector<Parameter*>& parameters,
                             bool is_recomputed) {
    const uint64_t seed = derived_seed(masks.seed, place++);
    stream.x = run_part(tape, part, observer, [&] {
      const Variable y = apply(layer, parameters, is_recomputed);
      const int64_t before = masks.first_sequence * y.shape()[1] * y.shape()[2];
      return dropout(tape, y, {.p = dropout_, .seed = seed, .first_element = before});
    });
  };
  normalize(tape, block.path + ".mixer_norm", *block.mixer_norm, stream, observer);
  run_layer(
      block.path + ".mixer",
      [&mixer = *block.mixer, state, segments](Tape& inner, const Variable& x) {
        return mixer.forward(inner, x, state, segments);
      },
      block.mixer_parameters, recomputed == Recompute::mixer);
  normalize(tape, block.path + ".channel_norm", *block.channel_norm, stream, observer);
  run_layer(
      block.path + ".channel",
      [&channel = *block.channel](Tape& inner, const Variable& x) { return channel.forward(inner, x); },
      block.channel_parameters, recomputed == Recompute::channel);
}

Variable LanguageModel::features(Tape& tape, const ModelInput& input, ModelState* state, const Observer& observer,
                                 const DropoutMasks& masks) const {
  const Recompute recomputed = tape.mode() == Tape::Mode::record ? recompute_ : Recompute::none;
  Stream stream;
  stream.x = run_part(tape, "embedding", observer, [&] { return embedding_->forward(tape, input.tokens); });
  for (size_t i = 0; i < blocks_.size(); ++i) {
    run_block(tape, blocks_[i], stream, state != nullptr ? (*state)[i].get() : nullptr, input.segments, recomputed,
              observer, {derived_seed(masks.seed, i), masks.first_sequence});
  }
  normalize(tape, "final_norm", *final_norm_, stream, observer);
  return stream.x;
}

Variable LanguageModel::head_weight(Tape& tape) const { return head_ ? head_->weight(tape) : embedding_->weight(tape); }

Variable LanguageModel::forward(Tape& tape, const ModelInput& input, ModelState* state, const Observer& observer,
                                const DropoutMasks& masks) const {
  const Variable read = features(tape, input, state, observer, masks);
  return run_part(tape, "head", observer, [&] { return linear(tape, read, head_weight(tape)); });
}

Variable LanguageModel::loss(Tape& tape, const Variable& features, const Tensor& targets) const {
  if (loss_chunk_ == 0) {
    const Variable logits = run_part(tape, "head", {}, [&] { return linear(tape, features, head_weight(tape)); });
    return language_model_loss(tape, logits, targets);
  }
  return run_part(tape, "loss", {}, [&] {
    return linear_cross_entropy(tape, features, head_weight(tape), targets,
                                {.loss = {.ignore_index = kIgnoredTarget}, .chunk = loss_chunk_});
  });
}

Variable language_model_loss(Tape& tape, const Variable& logits, const Tensor& targets) {
  const MemoryScope scope(tape.context(), "loss", MemoryCategory::activation);
  return cross_entropy(tape, logits, targets, {.ignore_index = kIgnoredTarget});
}

}  // namespace heddle
