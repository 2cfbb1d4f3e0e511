#include "layers/modules/mixers/linear_attention.h"

#include <cmath>
#include <vector>

#include "core/runtime/error.h"
#include "layers/modules/choices.h"
#include "layers/modules/mixers/heads.h"
#include "layers/modules/mixers/lightning.h"
#include "layers/ops/activation.h"
#include "layers/ops/guarded_divide.h"
#include "layers/ops/norm.h"
#include "layers/ops/softmax.h"
#include "layers/ops/view.h"

namespace heddle {
namespace {

constexpr const char* kLinearAttention = "linear_attention";
constexpr double kNormalizerEps = 1e-6;

// The options, when a mixer can have them. Its heads have been checked.
const LinearAttentionMixer::Options& checked(const LinearAttentionMixer::Options& options) {
  check_kv_heads(kLinearAttention, options.heads, options.kv_heads);
  const bool has_fewer_keys = options.kv_heads != 0 && options.kv_heads != options.heads;
  check(!has_fewer_keys || !options.lrpe || !options.lrpe->per_head,
        "[{}] lrpe.per_head is true, expected false: q has {} heads and k {}", kLinearAttention, options.heads,
        options.kv_heads);
  return options;
}

}  // namespace

void LinearAttentionMixerConfig::describe(ConfigFields& fields, const ModelSize& model) {
  describe_heads(fields, model, options.heads);
  describe_kv_heads(fields, options.heads, options.kv_heads);
  describe_feature_map(fields, options.act, options.softmax);
  fields.optional_section<Lrpe::Options>("lrpe", options.lrpe, [&](ConfigFields& section, Lrpe::Options& lrpe) {
    describe_lrpe(section, model, model.dim / options.heads, lrpe);
  });
  fields.field("decay", options.decay);
  fields.field("normalizer", options.normalizer);
  const bool has_fewer_keys = options.kv_heads != 0 && options.kv_heads != options.heads;
  if (fields.reads() && has_fewer_keys && options.lrpe && options.lrpe->per_head) {
    fields.fail("lrpe",
                "found per_head: true, expected false: with fewer heads of k than of q, all have the same angles");
  }
}

std::unique_ptr<Mixer> LinearAttentionMixerConfig::make(const ModuleBuilder& builder, const BlockPlace& place) const {
  return std::make_unique<LinearAttentionMixer>(options, builder, place);
}

LinearAttentionMixer::LinearAttentionMixer(const Options& options, const ModuleBuilder& builder,
                                           const BlockPlace& place)
    : RecurrentMixer(kLinearAttention, place, options.heads, options.normalizer ? KeySums::kept : KeySums::none),
      options_(checked(options)),
      kv_heads_(options.kv_heads > 0 ? options.kv_heads : options.heads),
      head_dim_(place.dim / options.heads),
      lrpe_(make_lrpe(options.lrpe, builder, place, options.heads)),
      qkv_({}, builder.child("qkv"), place.dim, (options.heads + 2 * kv_heads_) * head_dim_),
      out_({.bias = false, .init_std = out_init_std(place, place.dim)}, builder.child("out"), place.dim, place.dim) {
  if (options.decay) {
    log_decay_ =
        builder.add_buffer("log_decay", {options.heads}, lightning_log_decay(options.heads, place.layer, place.layers));
  }
}

// x (B, N, some heads of features).
Variable LinearAttentionMixer::feature_map(Tape& tape, const Variable& x) const {
  if (options_.softmax != Softmax::none) return softmax(tape, x, x.shape()[-1] / head_dim_);
  return activation(tape, x, options_.act);
}

Variable LinearAttentionMixer::mix(Tape& tape, const Variable& x, State* state, const Tensor& segments) const {
  if (lrpe_) lrpe_->check_segments(segments);
  const int64_t key_dim = kv_heads_ * head_dim_;
  const std::vector<Variable> parts = split_last(tape, qkv_.forward(tape, x), {dim(), key_dim, key_dim});
  const auto by_head = [&](const Variable& part) {
    return reshape(tape, part, {x.shape()[0], x.shape()[1], part.shape()[-1] / head_dim_, head_dim_});
  };
  const auto encoded = [&, before = tokens_before(state)](const Variable& features) {
    return lrpe_ ? lrpe_->forward(tape, features, before) : features;
  };
  const Variable q = by_head(feature_map(tape, parts[0])), k = by_head(feature_map(tape, parts[1]));
  LinearAttentionOptions options;
  options.decay = log_decay_ != nullptr ? Decay::constant : Decay::none;
  options.scale = 1.0 / std::sqrt(static_cast<double>(head_dim_));
  const Variable log_decay = log_decay_ != nullptr ? tape.constant(log_decay_->value) : Variable{};
  const Variable o = reshape(
      tape, attend(tape, encoded(q), encoded(k), by_head(parts[2]), log_decay, options, state, segments), x.shape());
  if (options_.normalizer) {
    const Variable sums = attend_to_ones(tape, q, k, log_decay, options, state, segments);
    return out_.forward(tape, guarded_divide(tape, o, sums, kNormalizerEps));
  }
  NormOptions norm_options;
  norm_options.groups = heads();
  norm_options.return_residual = false;
  return out_.forward(tape, norm(tape, o, {}, norm_options, kLinearAttention).y);
}

}  // namespace heddle
