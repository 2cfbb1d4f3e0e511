#include "trainers/model/model_config.h"

#include "core/config/config_fields.h"

namespace heddle {

void describe(ConfigFields& fields, ModelConfig& model, const Registry& registry) {
  fields.required("vocab_size", model.vocab_size, Range::at_least(2));
  fields.required("dim", model.dim, Range::positive());
  fields.required("layers", model.layers, Range::positive());
  fields.field("tie_embeddings", model.tie_embeddings);
  const ModelSize size{model.dim, model.layers};
  fields.required_section("norm", [&](ConfigFields& norm) { describe_norm(norm, size, model.norm); });
  fields.required_section("mixer", [&](ConfigFields& mixer) { registry.describe_mixer(mixer, size, model.mixer); });
  fields.required_section("channel",
                          [&](ConfigFields& channel) { registry.describe_channel(channel, size, model.channel); });
}

}  // namespace heddle
