#include "trainers/model/language_model.h"

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/runtime/error.h"
#include "core/tensor/random.h"
#include "layers/ops/check.h"
#include "layers/ops/cross_entropy.h"
#include "layers/ops/dropout.h"
#include "layers/ops/linear.h"
#include "layers/ops/linear_cross_entropy.h"
#include "layers/ops/recompute.h"
#include "trainers/data/dataset.h"

namespace heddle {
namespace {

// What a mixer or channel layer made. It may be one of the user's program, and have made nothing.
template <class Made>
Made checked(std::string_view layer, std::string_view function, Made made) {
  check(made != nullptr, "[{}] {}() returned nullptr", layer, function);
  return made;
}

// The same of what it computed from x.
Variable checked_output(std::string_view layer, const Variable& x, Variable y) {
  check(y.defined(), "[{}] y is missing", layer);
  check_tensor(layer, "y", y, x.dtype(), x.shape(), "those of x");
  return y;
}

}  // namespace

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
    const ModuleBuilder mixer = builder.child("mixer"), channel = builder.child("channel");
    block.mixer = checked(mixer.path(), "make", config.mixer.of_layer(layer).options->make(mixer, place));
    block.mixer_parameters = parameters_since(mixer_begin);
    block.channel_norm = std::make_unique<Norm>(config.norm, builder.child("channel_norm"), config.dim);
    const size_t channel_begin = parameters_.all().size();
    block.channel = checked(channel.path(), "make", config.channel.options->make(channel, place));
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
  for (const Block& block : blocks_) {
    state.push_back(checked(block.path + ".mixer", "make_state", block.mixer->make_state()));
  }
  return state;
}

// The masks of one block: of its mixer, then of its channel layer.
struct LanguageModel::BlockMasks {
  std::array<uint64_t, 2> seeds;
  Tensor on_device;  // int64 (2), the same, or undefined
  int64_t first_sequence;

  static std::array<uint64_t, 2> seeds_of(uint64_t seed, uint64_t layer) {
    const uint64_t of_block = derived_seed(seed, layer);
    return {derived_seed(of_block, 0), derived_seed(of_block, 1)};
  }
  BlockMasks(const DropoutMasks& masks, size_t layer)
      : seeds(seeds_of(masks.seed, layer)), first_sequence(masks.first_sequence) {
    if (masks.seeds.defined()) on_device = masks.seeds.select(0, static_cast<int64_t>(layer));
  }

  DropoutOptions options(double p, size_t place, const Variable& x) const {
    DropoutOptions options{.p = p, .seed = seeds[place]};
    options.first_element = first_sequence * x.shape()[1] * x.shape()[2];
    if (on_device.defined()) options.seed_on_device = on_device.select(0, static_cast<int64_t>(place));
    return options;
  }
};

std::vector<uint64_t> LanguageModel::dropout_seeds(uint64_t seed) const {
  std::vector<uint64_t> seeds;
  if (dropout_ == 0.0) return seeds;
  for (size_t layer = 0; layer < blocks_.size(); ++layer) {
    for (const uint64_t of_layer : BlockMasks::seeds_of(seed, layer)) seeds.push_back(of_layer);
  }
  return seeds;
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
                              Recompute recomputed, const Observer& observer, const BlockMasks& masks) const {
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
  size_t place = 0;  // in the block: the mixer, then the channel layer
  const auto run_layer = [&](const std::string& part, const auto& layer, const std::vector<Parameter*>& parameters,
                             bool is_recomputed) {
    stream.x = run_part(tape, part, observer, [&] {
      const Variable y = apply(layer, parameters, is_recomputed);
      return dropout(tape, y, masks.options(dropout_, place++, y));
    });
  };
  normalize(tape, block.path + ".mixer_norm", *block.mixer_norm, stream, observer);
  run_layer(
      block.path + ".mixer",
      [&block, state, segments](Tape& inner, const Variable& x) {
        return checked_output(block.path + ".mixer", x, block.mixer->forward(inner, x, state, segments));
      },
      block.mixer_parameters, recomputed == Recompute::mixer);
  normalize(tape, block.path + ".channel_norm", *block.channel_norm, stream, observer);
  run_layer(
      block.path + ".channel",
      [&block](Tape& inner, const Variable& x) {
        return checked_output(block.path + ".channel", x, block.channel->forward(inner, x));
      },
      block.channel_parameters, recomputed == Recompute::channel);
}

Variable LanguageModel::features(Tape& tape, const ModelInput& input, ModelState* state, const Observer& observer,
                                 const DropoutMasks& masks) const {
  const Recompute recomputed = tape.mode() == Tape::Mode::record ? recompute_ : Recompute::none;
  Stream stream;
  stream.x = run_part(tape, "embedding", observer, [&] { return embedding_->forward(tape, input.tokens); });
  for (size_t i = 0; i < blocks_.size(); ++i) {
    run_block(tape, blocks_[i], stream, state != nullptr ? (*state)[i].get() : nullptr, input.segments, recomputed,
              observer, BlockMasks(masks, i));
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
