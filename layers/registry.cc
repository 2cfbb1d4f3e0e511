#include "layers/registry.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <string_view>
#include <type_traits>
#include <utility>

#include "core/config/nearest_name.h"
#include "core/runtime/error.h"
#include "layers/modules/feed_forward.h"
#include "layers/modules/mixers/lightning.h"
#include "layers/modules/mixers/linear_attention.h"
#include "layers/modules/mixers/retention.h"
#include "layers/modules/mixers/softmax_attention.h"
#include "layers/operators/operators.h"

namespace heddle {
namespace {

template <class Rows>
bool holds(const Rows& rows, const std::string& type) {
  return std::any_of(rows.begin(), rows.end(), [&](const auto& row) { return row.first == type; });
}

template <class Rows, class Make>
void add_row(Rows& rows, std::string_view what, const std::string& type, Make make) {
  check(!type.empty(), "a {} without a type was added to the registry", what);
  check(!holds(rows, type), "two {}s are called {}", what, type);
  check(make != nullptr, "{} {} has no function that makes its options", what, type);
  rows.emplace_back(type, std::move(make));
}

template <class Rows, class Section>
void describe_section(const Rows& rows, ConfigFields& fields, const ModelSize& model, Section& section) {
  std::vector<std::string> types;
  for (const auto& [type, make] : rows) types.push_back(type);
  fields.required_name("type", section.type, types);
  const auto row =
      std::find_if(rows.begin(), rows.end(), [&](const auto& other) { return other.first == section.type; });
  if (fields.reads()) {
    auto options = row->second();
    check(options != nullptr, "the function of type {} returned no options", section.type);
    options->describe(fields, model);
    section.options = std::move(options);
  } else {
    // Writing changes nothing, but one description serves both ways.
    using Options = std::remove_const_t<typename std::remove_reference_t<decltype(*section.options)>>;
    const_cast<Options&>(*section.options).describe(fields, model);
  }
}

// Adding an operator is adding a row.
Registry make_built_in() {
  Registry registry;
  for (Operator& op : norm_operators()) registry.add(std::move(op));
  registry.add(linear_operator());
  registry.add(embedding_operator());
  registry.add(activation_operator());
  registry.add(glu_product_operator());
  registry.add(glu_operator());
  registry.add(ffn_operator());
  registry.add(dropout_operator());
  registry.add(cross_entropy_operator());
  registry.add(log_sigmoid_operator());
  registry.add(softmax_operator());
  registry.add(guarded_divide_operator());
  registry.add(linear_cross_entropy_operator());
  registry.add(linear_attention_operator());
  registry.add(softmax_attention_operator());
  registry.add(lrpe_rotate_operator());
  registry.add(lrpe_cosine_operator());

  registry.add_mixer("lightning", [] { return std::make_unique<LightningConfig>(); });
  registry.add_mixer("softmax_attention", [] { return std::make_unique<SoftmaxAttentionMixerConfig>(); });
  registry.add_mixer("linear_attention", [] { return std::make_unique<LinearAttentionMixerConfig>(); });
  registry.add_mixer("retention", [] { return std::make_unique<RetentionConfig>(Retention::Kind::retention); });
  registry.add_mixer("simple_gla", [] { return std::make_unique<RetentionConfig>(Retention::Kind::simple_gla); });

  registry.add_channel("glu", [] { return std::make_unique<FeedForwardConfig>(FeedForwardType::glu); });
  registry.add_channel("ffn", [] { return std::make_unique<FeedForwardConfig>(FeedForwardType::ffn); });
  return registry;
}

}  // namespace

void Registry::add(Operator op) {
  check(!op.name.empty(), "an operator without a name was added to the registry");
  check(
      std::none_of(operators_.begin(), operators_.end(), [&](const Operator& other) { return other.name == op.name; }),
      "two operators are called {}", op.name);
  check(op.make != nullptr, "operator {} has no function: set Operator::make", op.name);
  check(!op.inputs.empty() && !op.outputs.empty(), "operator {} names no {}: set Operator::{}", op.name,
        op.inputs.empty() ? "inputs" : "outputs", op.inputs.empty() ? "inputs" : "outputs");
  check(op.cases != nullptr, "operator {} has no cases to be checked by: write them in layers/operators/{}.cc", op.name,
        op.name);
  operators_.push_back(std::move(op));
}

void Registry::add_mixer(const std::string& type, MakeMixerOptions make) {
  add_row(mixers_, "mixer", type, std::move(make));
}

void Registry::add_channel(const std::string& type, MakeChannelOptions make) {
  add_row(channels_, "channel layer", type, std::move(make));
}

std::vector<std::string> Registry::operator_names() const {
  std::vector<std::string> names;
  for (const Operator& op : operators_) names.push_back(op.name);
  return names;
}

const Operator& Registry::find(const std::string& name) const {
  for (const Operator& op : operators_) {
    if (op.name == name) return op;
  }
  const std::vector<std::string> names = operator_names();
  const std::string hint = did_you_mean(name, names);
  fail("no operator is called '{}'{}", name, hint.empty() ? ", expected one of " + join_names(names) : hint);
}

void Registry::describe_mixer(ConfigFields& fields, const ModelSize& model, MixerSection& mixer) const {
  describe_section(mixers_, fields, model, mixer);
}

const MixerSection& MixerPattern::of_layer(int64_t layer) const {
  if (pattern.empty()) return kinds.at(0).second;
  const std::string& name = pattern[static_cast<size_t>(layer) % pattern.size()];
  return std::find_if(kinds.begin(), kinds.end(), [&](const auto& kind) { return kind.first == name; })->second;
}

void Registry::describe_mixers(ConfigFields& fields, const ModelSize& model, MixerPattern& mixers) const {
  const bool has_pattern =
      fields.reads() ? fields.node().has("pattern") || fields.node().has("kinds") : !mixers.pattern.empty();
  if (!has_pattern) {
    if (fields.reads()) mixers.kinds.assign(1, {});
    describe_mixer(fields, model, mixers.kinds.at(0).second);
    return;
  }
  fields.refuse("type", "each of the `kinds` has a type of its own");
  fields.required("pattern", mixers.pattern);
  fields.required_section("kinds", [&](ConfigFields& kinds) {
    if (fields.reads()) {
      mixers.kinds.clear();
      for (const std::string& name : kinds.node().keys()) {
        if (kinds.node().has(name)) mixers.kinds.emplace_back(name, MixerSection{});  // null takes one of a base away
      }
    }
    for (auto& kind : mixers.kinds) {
      kinds.required_section(kind.first, [&](ConfigFields& section) { describe_mixer(section, model, kind.second); });
    }
  });
  if (!fields.reads()) return;
  if (mixers.kinds.empty()) fields.fail("kinds", "found none, expected a section for each name of the pattern");
  if (mixers.pattern.empty()) fields.fail("pattern", "found an empty list, expected names of `kinds`");
  std::vector<std::string> known;
  for (const auto& [name, mixer] : mixers.kinds) {
    known.push_back(name);
    if (std::find(mixers.pattern.begin(), mixers.pattern.end(), name) != mixers.pattern.end()) continue;
    fields.fail("kinds", fmt::format("'{}' is not in the pattern", name));
  }
  for (const std::string& name : mixers.pattern) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string hint = did_you_mean(name, known);
    fields.fail("pattern",
                fmt::format("found '{}'{}", name, hint.empty() ? ", expected one of " + join_names(known) : hint));
  }
}

void Registry::describe_channel(ConfigFields& fields, const ModelSize& model, ChannelSection& channel) const {
  describe_section(channels_, fields, model, channel);
}

const Registry& built_in_registry() {
  static const Registry registry = make_built_in();
  return registry;
}

}  // namespace heddle
