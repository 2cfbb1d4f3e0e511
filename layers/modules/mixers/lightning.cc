#include "layers/modules/mixers/lightning.h"

#include <cmath>

#include "core/runtime/error.h"
#include "layers/ops/linear_attention.h"
#include "layers/ops/view.h"

namespace heddle {
namespace {

std::optional<Lightning::Gate> read_gate(const ConfigNode& mixer) {
  const std::optional<ConfigNode> section = mixer.find_section("gate");
  if (!section) return {};
  Lightning::Gate gate;
  gate.act = section->get_choice<Activation>("act", gate.act, activation_choices());
  gate.position = section->get_choice<GatePosition>("position", gate.position,
                                                    {{"post", GatePosition::post}, {"pre", GatePosition::pre}});
  gate.rank = section->get<int64_t>("rank", gate.rank, Range::at_least(0));
  section->finish();
  return gate;
}

// The branches of all blocks, a mixer and a channel each, add up: with this deviation of the last projection the sum
// keeps its size for any number of layers (Radford et al., GPT-2).
double out_init_std(const BlockPlace& place) {
  return 1.0 / std::sqrt(2.0 * static_cast<double>(place.layers) * static_cast<double>(place.dim));
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

Lightning::Lightning(const Options& options, std::unique_ptr<Lrpe> lrpe, const ModuleBuilder& builder,
                     const BlockPlace& place)
    : options_(options),
      dim_(place.dim),
      log_decay_({options.heads}, lightning_log_decay(options.heads, place.layer, place.layers)),
      lrpe_(std::move(lrpe)),
      qkv_({}, builder.child("qkv"), dim_, 3 * dim_),
      out_({.bias = false, .init_std = out_init_std(place)}, builder.child("out"), dim_, dim_) {
  check(options.heads >= 1 && dim_ % options.heads == 0, "[lightning] heads is {}, expected a divisor of dim {}",
        options.heads, dim_);
  if (!options.gate) return;
  const ModuleBuilder gate = builder.child("gate");
  const int64_t rank = options.gate->rank;
  if (rank > 0) gate_down_.emplace(Linear::Options{}, gate.child("down"), dim_, rank);
  gate_.emplace(Linear::Options{}, rank > 0 ? gate.child("up") : gate, rank > 0 ? rank : dim_, dim_);
}

Variable Lightning::gate_of(Tape& tape, const Variable& x) const {
  if (!gate_) return {};
  return gate_->forward(tape, gate_down_ ? gate_down_->forward(tape, x) : x);
}

Variable Lightning::forward(Tape& tape, const Variable& x, MixerState* state) const {
  check(x.value.rank() == 3 && x.shape()[-1] == dim_, "[lightning] x has shape {}, expected (batch, length, {})",
        to_string(x.shape()), dim_);
  const int64_t heads = options_.heads, head_dim = dim_ / heads;
  const Shape head_shape{x.shape()[0], x.shape()[1], 3 * heads, head_dim};

  const Variable qkv = activation(tape, qkv_.forward(tape, x), options_.act);
  const std::vector<Variable> parts = tape.split(reshape(tape, qkv, head_shape), 2, {heads, heads, heads});
  Variable q = parts[0], k = parts[1];
  if (lrpe_) {
    const int64_t offset = state != nullptr ? state->offset : 0;
    q = lrpe_->forward(tape, q, offset);
    k = lrpe_->forward(tape, k, offset);
  }
  LinearAttentionInputs inputs;
  inputs.log_decay = log_decay_.on(tape, accumulate_type(x.dtype()));
  if (state != nullptr) inputs.initial_state = tape.constant(state->state);
  const LinearAttention attention = linear_attention(tape, q, k, parts[2], inputs,
                                                     {.decay = Decay::constant,
                                                      .scale = 1.0 / std::sqrt(static_cast<double>(head_dim)),
                                                      .return_final_state = state != nullptr});
  if (state != nullptr) {
    state->state = attention.final_state.value;
    state->offset += x.shape()[1];
  }

  NormOptions norm_options;
  norm_options.groups = heads;
  norm_options.return_residual = false;
  if (options_.gate) {
    norm_options.gate_act = options_.gate->act;
    norm_options.gate_position = options_.gate->position;
  }
  NormInputs norm_inputs;
  norm_inputs.gate = gate_of(tape, x);
  const Variable y = norm(tape, reshape(tape, attention.o, x.shape()), norm_inputs, norm_options, "lightning").y;
  return out_.forward(tape, y);
}

std::unique_ptr<Mixer> make_lightning(const ConfigNode& section, const ModuleBuilder& builder,
                                      const BlockPlace& place) {
  Lightning::Options options;
  options.heads = section.require<int64_t>("heads", Range::at_least(1));
  if (place.dim % options.heads != 0) {
    section.fail("heads", fmt::format("found {}, expected a divisor of dim, which is {}", options.heads, place.dim));
  }
  options.act = section.get_choice<Activation>("act", options.act, activation_choices());
  std::unique_ptr<Lrpe> lrpe;
  if (const std::optional<ConfigNode> encoding = section.find_section("lrpe")) {
    lrpe = make_lrpe(*encoding, builder.child("lrpe"), place, options.heads, place.dim / options.heads);
  }
  options.gate = read_gate(section);
  section.finish();
  return std::make_unique<Lightning>(options, std::move(lrpe), builder, place);
}

}  // namespace heddle
