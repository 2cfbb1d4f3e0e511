#include "layers/modules/mixers/retention.h"

#include <cmath>
#include <utility>

#include "core/runtime/error.h"
#include "layers/modules/mixers/heads.h"
#include "layers/ops/log_sigmoid.h"
#include "layers/ops/view.h"

namespace heddle {
namespace {

// The number of features that `factor` times those of x are; 0 unless each head gets a whole number of them, at
// least 1.
int64_t expanded(int64_t dim, double factor, int64_t heads) {
  const double features = static_cast<double>(dim) * factor;
  const auto whole = static_cast<int64_t>(std::lround(features));
  return std::abs(features - static_cast<double>(whole)) < 1e-6 && whole > 0 && whole % heads == 0 ? whole : 0;
}

Norm::Options norm_options(const Retention::Options& options) {
  Norm::Options norm = Norm::Options::of(NormType::rms_norm);
  norm.norm.eps = options.eps;
  norm.norm.return_residual = false;
  norm.norm.gate_act = Activation::silu;
  norm.norm.gate_position = GatePosition::post;
  return norm;
}

const char* name(Retention::Kind kind) { return kind == Retention::Kind::retention ? "retention" : "simple_gla"; }

// The options, when a mixer can have them. Its heads have been checked.
const Retention::Options& checked(const Retention::Options& options, const BlockPlace& place) {
  const char* const type = name(options.kind);
  for (const auto& [option, factor] :
       {std::pair{"expand_k", options.expand_k}, std::pair{"expand_v", options.expand_v}}) {
    check(expanded(place.dim, factor, options.heads) > 0,
          "[{}] {} is {}, expected a number above 0 that makes dim {} a multiple of the {} heads", type, option, factor,
          place.dim, options.heads);
  }
  check_positive(type, "eps", options.eps);
  if (options.kind == Retention::Kind::simple_gla) check_positive(type, "divisor", options.divisor);
  return options;
}

}  // namespace

std::vector<double> retention_log_decay(int64_t heads) {
  std::vector<double> result;
  for (int64_t head = 0; head < heads; ++head) {
    result.push_back(std::log1p(-std::exp2(-5.0 - static_cast<double>(head))));
  }
  return result;
}

RetentionConfig::RetentionConfig(Retention::Kind kind) {
  options.kind = kind;
  if (kind == Retention::Kind::simple_gla) options.expand_v = 1.0;
}

void RetentionConfig::describe(ConfigFields& fields, const ModelSize& model) {
  describe_heads(fields, model, options.heads);
  fields.field("expand_k", options.expand_k, Range::positive());
  fields.field("expand_v", options.expand_v, Range::positive());
  fields.field("eps", options.eps, Range::positive());
  if (options.kind == Retention::Kind::retention) {
    fields.field("base", options.base, Range::positive());
  } else {
    fields.field("divisor", options.divisor, Range::positive());
  }
  if (!fields.reads()) return;
  for (const auto& [key, factor] : {std::pair{"expand_k", options.expand_k}, std::pair{"expand_v", options.expand_v}}) {
    if (expanded(model.dim, factor, options.heads) > 0) continue;
    fields.fail(key, fmt::format("found {}: {} times dim {} is no multiple of the {} heads", factor, factor, model.dim,
                                 options.heads));
  }
  const int64_t head_dim = expanded(model.dim, options.expand_k, options.heads) / options.heads;
  if (options.kind == Retention::Kind::retention && head_dim % 2 != 0) {
    fields.fail("heads", fmt::format("found {}: heads of q have {} features, expected an even number to rotate",
                                     options.heads, head_dim));
  }
}

std::unique_ptr<Mixer> RetentionConfig::make(const ModuleBuilder& builder, const BlockPlace& place) const {
  return std::make_unique<Retention>(options, builder, place);
}

Retention::Retention(const Options& options, const ModuleBuilder& builder, const BlockPlace& place)
    : RecurrentMixer(name(options.kind), place, options.heads),
      options_(checked(options, place)),
      key_dim_(expanded(place.dim, options.expand_k, options.heads)),
      value_dim_(expanded(place.dim, options.expand_v, options.heads)),
      q_({}, builder.child("q_proj"), place.dim, key_dim_),
      k_({}, builder.child("k_proj"), place.dim, key_dim_),
      v_({}, builder.child("v_proj"), place.dim, value_dim_),
      gate_({}, builder.child("g_proj"), place.dim, value_dim_),
      norm_(norm_options(options), builder.child("g_norm_swish_gate"), value_dim_ / options.heads),
      out_({.bias = false, .init_std = out_init_std(place, value_dim_)}, builder.child("o_proj"), value_dim_,
           place.dim) {
  if (options.kind == Kind::simple_gla) {
    decay_.emplace(Linear::Options{.bias = true}, builder.child("gk_proj"), place.dim, options.heads);
    return;
  }
  log_decay_ = builder.add_buffer("log_decay", {options.heads}, retention_log_decay(options.heads));
  rotary_.emplace(Lrpe::Options{.base = options.base}, builder.child("rotary"), options.heads,
                  key_dim_ / options.heads);
}

Variable Retention::mix(Tape& tape, const Variable& x, State* state, const Tensor& segments) const {
  const int64_t batch = x.shape()[0], length = x.shape()[1];
  const auto by_head = [&](const Variable& all) {
    return reshape(tape, all, {batch, length, heads(), all.shape()[-1] / heads()});
  };
  const TokensBefore before = tokens_before(state);
  const int64_t head_dim = key_dim_ / heads();
  std::vector<Variable> qkv;
  if (rotary_) {  // q and k are let go of once they are rotated; as parts of one tensor they would stay as long as v
    qkv = Linear::forward(tape, x, {&q_, &k_});
    qkv.push_back(v_.forward(tape, x));
  } else {
    qkv = Linear::forward(tape, x, {&q_, &k_, &v_});
  }
  Variable q = by_head(qkv[0]), k = by_head(qkv[1]);
  const Variable v = by_head(qkv[2]);
  qkv.clear();
  if (rotary_) {
    q = rotary_->forward(tape, q, before);
    k = rotary_->forward(tape, k, before);
  }
  const Variable log_decay =
      decay_ ? log_sigmoid(tape, decay_->forward(tape, x), options_.divisor) : tape.constant(log_decay_->value);
  const Variable o =
      attend(tape, q, k, v, log_decay,
             {.decay = decay_ ? Decay::data : Decay::constant, .scale = 1.0 / std::sqrt(static_cast<double>(head_dim))},
             state, segments);
  const Variable y = norm_.forward(tape, o, {}, by_head(gate_.forward(tape, x))).y;
  return out_.forward(tape, reshape(tape, y, {batch, length, value_dim_}));
}

}  // namespace heddle
