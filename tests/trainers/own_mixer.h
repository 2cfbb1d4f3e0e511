// What a program of a user brings: a mixer of its own, under the name "dense", in a registry of its own.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "core/config/config_fields.h"
#include "core/tensor/transfer.h"
#include "layers/modules/linear.h"
#include "layers/registry.h"

namespace heddle::testing {

// Counts the tokens that it has seen.
struct DenseState : MixerState {
  int64_t tokens = 0;

  std::map<std::string, Tensor> save(Context& context) const override {
    const Tensor saved = Tensor::empty(context, {1}, DType::int32);
    write_values(context, saved, {static_cast<double>(tokens)});
    return {{"tokens", saved}};
  }
};

// y = W x for each token: it mixes nothing, but it has all that a mixer has.
class DenseMixer : public Mixer {
 public:
  DenseMixer(const Linear::Options& options, const ModuleBuilder& builder, int64_t dim)
      : linear_(options, builder.child("dense"), dim, dim) {}

  Variable forward(Tape& tape, const Variable& x, MixerState* state, const Tensor&) const override {
    if (state != nullptr) dynamic_cast<DenseState&>(*state).tokens += x.shape()[1];
    return linear_.forward(tape, x);
  }
  std::unique_ptr<MixerState> make_state() const override { return std::make_unique<DenseState>(); }
  std::unique_ptr<MixerState> load_state(Context& context,
                                         const std::map<std::string, Tensor>& tensors) const override {
    auto state = std::make_unique<DenseState>();
    state->tokens = static_cast<int64_t>(read_values(context, tensors.at("tokens"))[0]);
    return state;
  }

 private:
  Linear linear_;
};

struct DenseOptions : MixerOptions {
  Linear::Options linear;

  void describe(ConfigFields& fields, const ModelSize& model) override {
    fields.field("bias", linear.bias);
    fields.field("init_std", linear.init_std, Range::at_least(0));
    if (fields.reads() && model.dim < 2) fields.fail("init_std", "found a model of one feature, expected more");
  }
  std::unique_ptr<Mixer> make(const ModuleBuilder& builder, const BlockPlace& place) const override {
    return std::make_unique<DenseMixer>(linear, builder, place.dim);
  }
};

inline Registry registry_with_dense_mixer() {
  Registry registry = built_in_registry();
  registry.add_mixer("dense", [] { return std::make_unique<DenseOptions>(); });
  return registry;
}

}  // namespace heddle::testing
