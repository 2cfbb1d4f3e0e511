#include "layers/modules/feed_forward.h"

#include <cstdint>

#include "core/runtime/error.h"
#include "layers/modules/choices.h"
#include "layers/ops/glu.h"

namespace heddle {

FeedForwardConfig::FeedForwardConfig(FeedForwardType type)
    : options{type, 0, type == FeedForwardType::glu ? Activation::silu : Activation::relu} {}

void FeedForwardConfig::describe(ConfigFields& fields, const ModelSize&) {
  fields.required("hidden", options.hidden, Range::count());
  fields.choice("act", options.act, elementwise_activation_choices());
}

std::unique_ptr<Channel> FeedForwardConfig::make(const ModuleBuilder& builder, const BlockPlace& place) const {
  return std::make_unique<FeedForward>(options, builder, place.dim);
}

namespace {

const char* name(FeedForwardType type) { return type == FeedForwardType::glu ? "glu" : "ffn"; }

// The options, when a layer can have them.
const FeedForward::Options& checked(const FeedForward::Options& options) {
  check(options.hidden >= 1, "[{}] hidden is {}, expected at least 1", name(options.type), options.hidden);
  return options;
}

}  // namespace

FeedForward::FeedForward(const Options& options, const ModuleBuilder& builder, int64_t dim)
    : type_(checked(options).type),
      dim_(dim),
      act_(options.act),
      in_({}, builder.child(type_ == FeedForwardType::glu ? "w12" : "w1"), dim,
          type_ == FeedForwardType::glu ? 2 * options.hidden : options.hidden),
      out_({}, builder.child(type_ == FeedForwardType::glu ? "w3" : "w2"), options.hidden, dim) {}

Variable FeedForward::forward(Tape& tape, const Variable& x) const {
  check(x.value.rank() >= 1 && x.shape()[-1] == dim_, "[{}] x has shape {}, expected (..., {})", name(type_), x.shape(),
        dim_);
  const Variable inner = in_.forward(tape, x);
  return out_.forward(tape,
                      type_ == FeedForwardType::glu ? glu_of_halves(tape, inner, act_) : activation(tape, inner, act_));
}

}  // namespace heddle
