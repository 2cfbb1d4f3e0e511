#include "trainers/model/model_config.h"

#include <algorithm>

#include "core/config/config_fields.h"

namespace heddle {
namespace {

constexpr int kMostLayers = 65536;  // a slip of the finger must not build blocks until the memory is gone

const Choices<Recompute> kRecomputeChoices = {{"none", Recompute::none},
                                              {"block", Recompute::block},
                                              {"mixer", Recompute::mixer},
                                              {"channel", Recompute::channel}};

}  // namespace

std::optional<std::int64_t> fixed_length(const ModelConfig& model) {
  for (const auto& [name, section] : model.mixer.kinds) {
    if (const auto length = section.options->fixed_length()) return length;
  }
  return std::nullopt;
}

bool takes_segments(const ModelConfig& model) {
  const auto& kinds = model.mixer.kinds;
  return std::all_of(kinds.begin(), kinds.end(),
                     [](const auto& kind) { return kind.second.options->takes_segments(); });
}

void describe(ConfigFields& fields, ModelConfig& model, const Registry& registry) {
  fields.required("vocab_size", model.vocab_size, Range::between(2, Range::count().high));
  fields.required("dim", model.dim, Range::count());
  fields.required("layers", model.layers, Range::between(1, kMostLayers));
  fields.field("tie_embeddings", model.tie_embeddings);
  fields.choice("recompute", model.recompute, kRecomputeChoices);
  fields.field("dropout", model.dropout, Range::from_below(0.0, 1.0));
  fields.field("loss_chunk", model.loss_chunk, Range::at_least(0));
  const ModelSize size{model.dim, model.layers};
  fields.required_section("norm", [&](ConfigFields& norm) { describe_norm(norm, size, model.norm); });
  fields.required_section("mixer", [&](ConfigFields& mixer) { registry.describe_mixers(mixer, size, model.mixer); });
  fields.required_section("channel",
                          [&](ConfigFields& channel) { registry.describe_channel(channel, size, model.channel); });
}

}  // namespace heddle
