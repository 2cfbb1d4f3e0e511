#include "layers/modules/mixers/linear_attention.h"

#include <cmath>
#include <vector>

#include "layers/modules/choices.h"
#include "layers/modules/mixers/heads.h"
#include "layers/modules/mixers/lightning.h"
#include "layers/ops/activation.h"
#include "layers/ops/norm.h"
#include "layers/ops/view.h"

namespace heddle {

void LinearAttentionMixerConfig::describe(ConfigFields& fields, const ModelSize& model) {
  describe_heads(fields, model, options.heads);
  describe_kv_heads(fields, options.heads, options.kv_heads);
  fields.choice("act", options.act, activation_choices());
  fields.optional_section<Lrpe::Options>("lrpe", options.lrpe, [&](ConfigFields& section, Lrpe::Options& lrpe) {
    describe_lrpe(section, model, model.dim / options.heads, lrpe);
  });
  fields.field("decay", options.decay);
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
    : RecurrentMixer("linear_attention", place, options.heads),
      options_(options),
      kv_heads_(options.kv_heads > 0 ? options.kv_heads : options.heads),
      head_dim_(place.dim / options.heads),
      qkv_({}, builder.child("qkv"), place.dim, (options.heads + 2 * kv_heads_) * head_dim_),
      out_({.bias = false, .init_std = out_init_std(place, place.dim)}, builder.child("out"), place.dim, place.dim) {
  if (options.decay) {
    log_decay_ =
        builder.add_buffer("log_decay", {options.heads}, lightning_log_decay(options.heads, place.layer, place.layers));
  }
  if (options.lrpe && options.lrpe->is_on(place.layer)) {
    lrpe_.emplace(*options.lrpe, builder.child("lrpe"), options.heads, head_dim_);
  }
}

Variable LinearAttentionMixer::forward(Tape& tape, const Variable& x, MixerState* state) const {
  check_input(x);
  const int64_t key_dim = kv_heads_ * head_dim_;
  const std::vector<Variable> parts = split_last(tape, qkv_.forward(tape, x), {dim(), key_dim, key_dim});
  const auto by_head = [&](const Variable& part) {
    return reshape(tape, part, {x.shape()[0], x.shape()[1], -1, head_dim_});
  };
  const int64_t offset = position(state);
  const auto feature_map = [&](const Variable& part) {
    const Variable mapped = by_head(activation(tape, part, options_.act));
    return lrpe_ ? lrpe_->forward(tape, mapped, offset) : mapped;
  };
  const Variable q = feature_map(parts[0]), k = feature_map(parts[1]);
  LinearAttentionOptions options;
  options.decay = log_decay_ != nullptr ? Decay::constant : Decay::none;
  options.scale = 1.0 / std::sqrt(static_cast<double>(head_dim_));
  const Variable log_decay = log_decay_ != nullptr ? tape.constant(log_decay_->value) : Variable{};
  const Variable o = attend(tape, q, k, by_head(parts[2]), log_decay, options, state);

  NormOptions norm_options;
  norm_options.groups = heads();
  norm_options.return_residual = false;
  return out_.forward(tape, norm(tape, reshape(tape, o, x.shape()), {}, norm_options, "linear_attention").y);
}

}  // namespace heddle
