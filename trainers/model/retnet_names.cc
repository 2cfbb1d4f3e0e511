#include "trainers/model/retnet_names.h"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "core/runtime/error.h"
#include "layers/modules/feed_forward.h"
#include "layers/modules/mixers/retention.h"

namespace heddle {
namespace {

constexpr int64_t kMostKeyFeatures = 256;  // of a head, as its rotation is written
constexpr double kRotaryBase = 10000.0;    // it has no field for another one

const Retention::Options* retention_of(const ModelConfig& model) {
  const auto* const config = dynamic_cast<const RetentionConfig*>(model.mixer.of_layer(0).options.get());
  const bool is_retention = config != nullptr && config->options.kind == Retention::Kind::retention;
  return model.mixer.pattern.empty() && is_retention ? &config->options : nullptr;
}

const FeedForward::Options* glu_of(const ModelConfig& model) {
  const auto* const config = dynamic_cast<const FeedForwardConfig*>(model.channel.options.get());
  return config != nullptr && config->options.type == FeedForwardType::glu ? &config->options : nullptr;
}

// The names of the parts that a block and the model have.
constexpr std::array<std::pair<std::string_view, std::string_view>, 4> kBlockParts = {
    {{"mixer_norm.", "attn_norm."},
     {"mixer.", "attn."},
     {"channel_norm.", "mlp_norm."},
     {"channel.w3.", "mlp.down_proj."}}};
constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kModelParts = {
    {{"embedding.", "model.embeddings."}, {"final_norm.", "model.norm."}, {"head.", "lm_head."}}};

template <class Parts>
std::string renamed(std::string_view name, const Parts& parts) {
  for (const auto& [ours, theirs] : parts) {
    if (name.starts_with(ours)) return fmt::format("{}{}", theirs, name.substr(ours.size()));
  }
  fail("parameter '{}' has no name in RetNetForCausalLM", name);
}

}  // namespace

std::string retnet_obstacle(const ModelConfig& model) {
  const Retention::Options* const retention = retention_of(model);
  if (retention == nullptr) return "model.mixer is not one retention for all blocks";
  const Norm::Options& norm = model.norm;
  if (norm.type != NormType::rms_norm || !norm.weight || norm.bias || norm.norm.scale != 1.0) {
    return "model.norm is not rms_norm with a weight, without a bias and of scale 1";
  }
  if (!(norm.norm.eps > 0.0)) return fmt::format("model.norm.eps is {:g}, expected a number above 0", norm.norm.eps);
  if (retention->base != kRotaryBase) {
    return fmt::format("model.mixer.base is {:g}, expected {:g}", retention->base, kRotaryBase);
  }
  const double key_features = static_cast<double>(model.dim) * retention->expand_k;
  if (key_features > static_cast<double>(kMostKeyFeatures * retention->heads)) {
    return fmt::format("heads of q have more than {} features", kMostKeyFeatures);
  }
  const FeedForward::Options* const glu = glu_of(model);
  if (glu == nullptr || glu->act != Activation::silu) return "model.channel is not a glu with act silu";
  return "";
}

nlohmann::ordered_json retnet_config(const ModelConfig& model) {
  const Retention::Options& retention = *retention_of(model);
  return {{"architectures", {"RetNetForCausalLM"}},
          {"model_type", "retnet"},
          {"vocab_size", model.vocab_size},
          {"hidden_size", model.dim},
          {"num_hidden_layers", model.layers},
          {"num_heads", retention.heads},
          {"num_kv_heads", nullptr},
          {"expand_k", retention.expand_k},
          {"expand_v", retention.expand_v},
          {"hidden_ratio", nullptr},
          {"intermediate_size", glu_of(model)->hidden},
          {"hidden_act", "swish"},
          {"feature_map", nullptr},
          {"use_output_gate", true},
          {"elementwise_affine", true},
          {"norm_eps", model.norm.norm.eps},
          {"tie_word_embeddings", model.tie_embeddings},
          {"pad_token_id", nullptr},
          {"bos_token_id", nullptr},
          {"eos_token_id", nullptr}};
}

double retnet_value_scale(const ModelConfig& model, double norm_eps) {
  return std::sqrt(norm_eps / retention_of(model)->eps);
}

std::vector<NamedTensor> retnet_weights(const ParameterSet& parameters) {
  std::vector<NamedTensor> tensors;
  for (const Parameter& parameter : parameters.all()) {
    constexpr std::string_view kBlocks = "blocks.";
    std::string_view name = parameter.name;
    if (!name.starts_with(kBlocks)) {
      tensors.push_back({renamed(name, kModelParts), parameter.master});
      continue;
    }
    name.remove_prefix(kBlocks.size());
    const size_t dot = name.find('.');
    const std::string block = fmt::format("model.layers.{}.", name.substr(0, dot));
    name.remove_prefix(dot + 1);
    if (name == "channel.w12.weight") {
      const int64_t hidden = parameter.shape[0] / 2;
      tensors.push_back({block + "mlp.gate_proj.weight", parameter.master.slice(0, 0, hidden)});
      tensors.push_back({block + "mlp.up_proj.weight", parameter.master.slice(0, hidden, 2 * hidden)});
    } else {
      tensors.push_back({block + renamed(name, kBlockParts), parameter.master});
    }
  }
  return tensors;
}

}  // namespace heddle
