#include "layers/modules/ffn.h"

#include "core/runtime/error.h"

namespace heddle {

NamedVariables apply_ffn(Tape& tape, const ConfigNode& options, const NamedVariables& inputs) {
  const auto act = options.get_choice<Activation>("act", Activation::relu, activation_choices());
  const Variable &w1 = inputs.at("w1"), &w2 = inputs.at("w2");
  check(w1.value.rank() == 2, "[ffn] w1 has shape {}, expected (hidden, dim)", to_string(w1.shape()));
  const int64_t hidden = options.find<int64_t>("hidden").value_or(w1.shape()[0]);
  options.finish();
  check(w1.shape()[0] == hidden, "[ffn] w1 has shape {}, expected ({}, dim): hidden", to_string(w1.shape()), hidden);
  return {{"y", linear(tape, activation(tape, linear(tape, inputs.at("x"), w1), act), w2)}};
}

Ffn::Options Ffn::Options::read(const ConfigNode& section) {
  section.require_name("type", {"ffn"});
  Options options;
  options.hidden = section.require<int64_t>("hidden", Range::at_least(1));
  options.act = section.get_choice<Activation>("act", options.act, activation_choices());
  section.finish();
  return options;
}

Ffn::Ffn(const Options& options, const ModuleBuilder& builder, int64_t dim)
    : options_(options),
      w1_({}, builder.child("w1"), dim, options.hidden),
      w2_({}, builder.child("w2"), options.hidden, dim) {}

Variable Ffn::forward(Tape& tape, const Variable& x) const {
  return w2_.forward(tape, activation(tape, w1_.forward(tape, x), options_.act));
}

}  // namespace heddle
