// Mixers from YAML, with their parameters in memory.
#pragma once

#include <memory>
#include <string>

#include "core/config/config_load.h"
#include "core/tensor/random.h"
#include "layers/registry.h"

namespace heddle::test {

inline std::unique_ptr<Mixer> make_mixer(const std::string& text, const ModuleBuilder& builder,
                                         const BlockPlace& place) {
  const ConfigNode section = parse_config(text, "model.yaml");
  ConfigFields fields(section);
  MixerSection mixer;
  built_in_registry().describe_mixer(fields, {.dim = place.dim, .layers = place.layers}, mixer);
  section.finish();
  return mixer.options->make(builder, place);
}

// A mixer with its parameters in memory.
struct MixerModel {
  MixerModel(Context& context, const std::string& options, const BlockPlace& place, DType dtype) {
    mixer = make_mixer(options, ModuleBuilder(parameters), place);
    parameters.materialize(context, dtype, 1);
  }

  ParameterSet parameters;
  std::unique_ptr<Mixer> mixer;
};

inline Tensor normal(Context& context, const Shape& shape, DType dtype) {
  Random random(3, RandomStream::test);
  Tensor tensor = Tensor::empty(context, shape, dtype);
  fill_normal(context, tensor, random, 0.0, 1.0);
  return tensor;
}

}  // namespace heddle::test
