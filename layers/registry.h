// The operators, mixers and channel layers that YAML knows by name. A registry is a value: a program copies the
// built-in one, adds rows of its own, and gives it to whatever reads YAML.
//
//   Registry registry = built_in_registry();
//   registry.add(softcap_operator());
//   registry.add_mixer("my_mixer", [] { return std::make_unique<MyMixerOptions>(); });
//   return cli::run_command_line(argc, argv, registry);
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "layers/modules/module.h"
#include "layers/operator.h"

namespace heddle {

// A section of a model config that names a type: the options are those of the type, constant once they are read.
struct MixerSection {
  std::string type;
  std::shared_ptr<const MixerOptions> options;
};
// The mixers of a model: one for all blocks, or kinds of mixers by name and a pattern of these names that is repeated
// over the blocks.
//   mixer: {type: lightning, heads: 4}
//   mixer: {pattern: [a, a, a, b], kinds: {a: {type: lightning, heads: 4}, b: {type: softmax_attention, heads: 4}}}
struct MixerPattern {
  std::vector<std::string> pattern;                         // empty: the first of `kinds` for all
  std::vector<std::pair<std::string, MixerSection>> kinds;  // without a pattern one, whose name is ""

  const MixerSection& of_layer(int64_t layer) const;
};
struct ChannelSection {
  std::string type;
  std::shared_ptr<const ChannelOptions> options;
};

class Registry {
 public:
  // Options with their defaults, one object a call.
  using MakeMixerOptions = std::function<std::unique_ptr<MixerOptions>()>;
  using MakeChannelOptions = std::function<std::unique_ptr<ChannelOptions>()>;

  // Throws Error when the name is taken, and when the row lacks its inputs, its function or its cases.
  void add(Operator op);
  void add_mixer(const std::string& type, MakeMixerOptions make);
  void add_channel(const std::string& type, MakeChannelOptions make);

  // In the order of adding. References stay valid until the registry is gone.
  const std::deque<Operator>& operators() const { return operators_; }
  std::vector<std::string> operator_names() const;
  // Throws Error with the nearest name.
  const Operator& find(const std::string& name) const;

  // Reads or writes a section {type: ..., ...}. Throws ConfigError for an unknown type, bad values, and values that do
  // not fit the model.
  void describe_mixer(ConfigFields& fields, const ModelSize& model, MixerSection& mixer) const;
  void describe_mixers(ConfigFields& fields, const ModelSize& model, MixerPattern& mixers) const;
  void describe_channel(ConfigFields& fields, const ModelSize& model, ChannelSection& channel) const;

 private:
  std::deque<Operator> operators_;
  std::vector<std::pair<std::string, MakeMixerOptions>> mixers_;
  std::vector<std::pair<std::string, MakeChannelOptions>> channels_;
};

// All that heddle brings.
const Registry& built_in_registry();

}  // namespace heddle
