#include "layers/modules/mixers/lightning.h"

#include <cmath>
#include <cstdint>
#include <map>
#include <string>

#include "core/runtime/error.h"
#include "core/tensor/transfer.h"
#include "layers/modules/choices.h"
#include "layers/ops/linear_attention.h"
#include "layers/ops/view.h"

namespace heddle {
namespace {

// The recurrent state of each head, and the position of the next token.
struct LightningState : MixerState {
  Tensor state;  // (B, H, D, Dv), accumulate type; undefined: zeros
  int64_t position = 0;

  std::map<std::string, Tensor> save(Context& context) const override {
    const Tensor at = Tensor::empty(context, {1}, DType::int32);
    write_values(context, at, {static_cast<double>(position)});
    std::map<std::string, Tensor> tensors{{"position", at}};
    if (state.defined()) tensors["state"] = state;
    return tensors;
  }
};

// The branches of all blocks, a mixer and a channel each, add up: with this deviation of the last projection the sum
// keeps its size for any number of layers (Radford et al., GPT-2).
double out_init_std(const BlockPlace& place) {
  return 1.0 / std::sqrt(2.0 * static_cast<double>(place.layers) * static_cast<double>(place.dim));
}

std::optional<Lrpe> make_lrpe(const Lightning::Options& options, const ModuleBuilder& builder,
                              const BlockPlace& place) {
  if (!options.lrpe || !options.lrpe->is_on(place.layer)) return {};
  return Lrpe(*options.lrpe, builder.child("lrpe"), options.heads, place.dim / options.heads);
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
  int64_t& heads = options.heads;
  fields.required("heads", heads, Range::count());
  if (fields.reads() && model.dim % heads != 0) {
    fields.fail("heads", fmt::format("found {}, expected a divisor of dim, which is {}", heads, model.dim));
  }
  fields.choice("act", options.act, activation_choices());
  fields.optional_section<Lrpe::Options>("lrpe", options.lrpe, [&](ConfigFields& section, Lrpe::Options& lrpe) {
    describe_lrpe(section, model, model.dim / heads, lrpe);
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
    : options_(options),
      dim_(place.dim),
      log_decay_(builder.add_buffer("log_decay", {options.heads},
                                    lightning_log_decay(options.heads, place.layer, place.layers))),
      lrpe_(make_lrpe(options, builder, place)),
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

std::unique_ptr<MixerState> Lightning::make_state() const { return std::make_unique<LightningState>(); }

std::unique_ptr<MixerState> Lightning::load_state(Context& context,
                                                  const std::map<std::string, Tensor>& tensors) const {
  auto loaded = std::make_unique<LightningState>();
  for (const auto& [name, tensor] : tensors) {
    if (name == "position" && tensor.numel() == 1) {
      loaded->position = static_cast<int64_t>(read_values(context, tensor)[0]);
    } else if (name == "state" && tensor.rank() == 4 && tensor.size(1) == options_.heads) {
      loaded->state = tensor;
    } else {
      fail("[lightning] a state has no tensor {} of shape {}", name, to_string(tensor.shape()));
    }
  }
  check(tensors.contains("position"), "[lightning] a state needs its position");
  return loaded;
}

Variable Lightning::gate_of(Tape& tape, const Variable& x) const {
  if (!gate_) return {};
  return gate_->forward(tape, gate_down_ ? gate_down_->forward(tape, x) : x);
}

Variable Lightning::forward(Tape& tape, const Variable& x, MixerState* mixer_state) const {
  check(x.value.rank() == 3 && x.shape()[-1] == dim_, "[lightning] x has shape {}, expected (batch, length, {})",
        to_string(x.shape()), dim_);
  auto* const state = dynamic_cast<LightningState*>(mixer_state);
  check(mixer_state == nullptr || state != nullptr, "[lightning] the state is that of another mixer");
  const int64_t heads = options_.heads, head_dim = dim_ / heads;
  const Shape head_shape{x.shape()[0], x.shape()[1], 3 * heads, head_dim};

  const Variable qkv = activation(tape, qkv_.forward(tape, x), options_.act);
  const std::vector<Variable> parts = tape.split(reshape(tape, qkv, head_shape), 2, {heads, heads, heads});
  Variable q = parts[0], k = parts[1];
  if (lrpe_) {
    const int64_t offset = state != nullptr ? state->position : 0;
    q = lrpe_->forward(tape, q, offset);
    k = lrpe_->forward(tape, k, offset);
  }
  LinearAttentionInputs inputs;
  inputs.log_decay = tape.constant(log_decay_->value);
  if (state != nullptr) inputs.initial_state = tape.constant(state->state);
  const LinearAttention attention = linear_attention(tape, q, k, parts[2], inputs,
                                                     {.decay = Decay::constant,
                                                      .scale = 1.0 / std::sqrt(static_cast<double>(head_dim)),
                                                      .return_final_state = state != nullptr});
  if (state != nullptr) {
    state->state = attention.final_state.value;
    state->position += x.shape()[1];
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

}  // namespace heddle
