#include "layers/modules/mixers/lightning.h"

#include <cmath>
#include <cstdint>

#include "core/runtime/error.h"
#include "layers/modules/choices.h"
#include "layers/modules/mixers/heads.h"
#include "layers/ops/linear_attention.h"
#include "layers/ops/view.h"

namespace heddle {
namespace {

// The options, when a mixer can have them. Its heads have been checked.
const Lightning::Options& checked(const Lightning::Options& options) {
  check(!options.gate || options.gate->rank >= 0, "[lightning] gate.rank is {}, expected 0, for a full one, or more",
        options.gate ? options.gate->rank : 0);
  return options;
}

}  // namespace

std::vector<double> lightning_log_decay(int64_t heads, int64_t layer, int64_t layers) {
  const double depth = layers > 1 ? static_cast<double>(layer) / static_cast<double>(layers - 1) : 0.0;
  std::vector<double> result;
  for (int64_t head = 0; head < heads; ++head) {
    const double slope = std::exp2(-8.0 * static_cast<double>(head + 1) / static_cast<double>(heads));
    result.push_back(-slope * (1.0 - depth + 1e-5));
  }
  return result;
}

void LightningConfig::describe(ConfigFields& fields, const ModelSize& model) {
  describe_heads(fields, model, options.heads);
  fields.choice("act", options.act, activation_choices());
  fields.optional_section<Lrpe::Options>("lrpe", options.lrpe, [&](ConfigFields& section, Lrpe::Options& lrpe) {
    describe_lrpe(section, model, model.dim / options.heads, lrpe);
  });
  fields.optional_section<LightningGate>("gate", options.gate, [](ConfigFields& section, LightningGate& gate) {
    section.choice("act", gate.act, activation_choices());
    section.choice("position", gate.position, gate_position_choices());
    section.field("rank", gate.rank, Range::between(0, Range::count().high));
  });
}

std::unique_ptr<Mixer> LightningConfig::make(const ModuleBuilder& builder, const BlockPlace& place) const {
  return std::make_unique<Lightning>(options, builder, place);
}

Lightning::Lightning(const Options& options, const ModuleBuilder& builder, const BlockPlace& place)
    : RecurrentMixer("lightning", place, options.heads),
      options_(checked(options)),
      log_decay_(builder.add_buffer("log_decay", {options.heads},
                                    lightning_log_decay(options.heads, place.layer, place.layers))),
      lrpe_(make_lrpe(options.lrpe, builder, place, options.heads)),
      qkv_({}, builder.child("qkv"), place.dim, 3 * place.dim),
      out_({.bias = false, .init_std = out_init_std(place, place.dim)}, builder.child("out"), place.dim, place.dim) {
  if (!options.gate) return;
  const ModuleBuilder gate = builder.child("gate");
  const int64_t rank = options.gate->rank;
  if (rank > 0) gate_down_.emplace(Linear::Options{}, gate.child("down"), dim(), rank);
  gate_.emplace(Linear::Options{}, rank > 0 ? gate.child("up") : gate, rank > 0 ? rank : dim(), dim());
}

Variable Lightning::gate_of(Tape& tape, const Variable& x) const {
  if (!gate_) return {};
  return gate_->forward(tape, gate_down_ ? gate_down_->forward(tape, x) : x);
}

Variable Lightning::mix(Tape& tape, const Variable& x, State* state, const Tensor& segments) const {
  const int64_t head_dim = dim() / heads();
  const Shape head_shape{x.shape()[0], x.shape()[1], 3 * heads(), head_dim};

  const Variable qkv = activation(tape, qkv_.forward(tape, x), options_.act);
  const std::vector<Variable> parts = tape.split(reshape(tape, qkv, head_shape), 2, {heads(), heads(), heads()});
  Variable q = parts[0], k = parts[1];
  const TokensBefore before = tokens_before(state);
  if (lrpe_) {
    lrpe_->check_segments(segments);
    q = lrpe_->forward(tape, q, before);
    k = lrpe_->forward(tape, k, before);
  }
  const Variable o =
      attend(tape, q, k, parts[2], tape.constant(log_decay_->value),
             {.decay = Decay::constant, .scale = 1.0 / std::sqrt(static_cast<double>(head_dim))}, state, segments);

  NormOptions norm_options;
  norm_options.groups = heads();
  norm_options.return_residual = false;
  if (options_.gate) {
    norm_options.gate_act = options_.gate->act;
    norm_options.gate_position = options_.gate->position;
  }
  NormInputs norm_inputs;
  norm_inputs.gate = gate_of(tape, x);
  const Variable y = norm(tape, reshape(tape, o, x.shape()), norm_inputs, norm_options, "lightning").y;
  return out_.forward(tape, y);
}

}  // namespace heddle
