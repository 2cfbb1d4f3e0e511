// One map of a configuration, read strictly: every value has a place
// (file:line:col), every key that is not asked for is an error.
//
//   NormOptions read_norm(const ConfigNode& node) {
//     NormOptions options;
//     options.eps = node.get<double>("eps", 1e-5, Range::positive());
//     options.groups = node.get<std::int64_t>("groups", 1, Range::at_least(1));
//     options.position = node.get_choice<Position>(
//         "position", Position::post, {{"pre", Position::pre},
//                                      {"post", Position::post}});
//     node.finish();  // "unknown key 'epz' in model.norm; did you mean 'eps'?"
//     return options;
//   }
//
// Known keys are those that were asked for, so a schema and its list of keys
// cannot drift apart. Defaults handed to get() are written into the tree, so
// dump() is the complete configuration; a key that was not given takes the
// default of the latest get(). Use find() where a default must not be recorded.
//
// A node is a handle: copies share the tree (and what was asked of it). Not
// thread-safe. All errors are ConfigError.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/config/config_error.h"
#include "core/config/config_scalar.h"
#include "core/config/config_tree.h"

namespace heddle {

template <class T>
struct IsScalarList : std::false_type {};
template <ConfigScalar T>
struct IsScalarList<std::vector<T>> : std::true_type {};

// What get, require and find read: a scalar, or a std::vector of one. A Range
// holds for every item of a list.
template <class T>
concept ConfigReadable = ConfigScalar<T> || IsScalarList<T>::value;

// Names of an enumeration as a config writes them.
template <class E>
using Choices = std::vector<std::pair<std::string, E>>;

class ConfigNode {
 public:
  ConfigNode();  // an empty map without a place
  // The root of a document; `root` must be a map.
  explicit ConfigNode(const std::shared_ptr<ConfigValue>& root);

  // Where the section was written (its key), and its dotted name ("" at top).
  const Location& location() const { return location_; }
  const std::string& path() const { return path_; }
  // "model.norm.eps" for key "eps" of "model.norm".
  std::string path_of(std::string_view key) const;
  // Place of the value of `key`, or of this section when it was not written.
  Location location_of(std::string_view key) const;

  // The written keys, in order; asking for them makes none of them known.
  std::vector<std::string> keys() const;

  // Whether `key` is written with a value other than null. Makes it known.
  bool has(const std::string& key) const;

  // The value, or the default when the key is not written. A key written with
  // no value (null) is an error.
  template <ConfigReadable T>
  T get(const std::string& key, const std::type_identity_t<T>& otherwise, const Range& range = {}) const;
  // The value; "missing key" when it is not written.
  template <ConfigReadable T>
  T require(const std::string& key, const Range& range = {}) const;
  // The value, or nullopt when it is not written or null.
  template <ConfigReadable T>
  std::optional<T> find(const std::string& key, const Range& range = {}) const;

  // One of a list of names: as text, or as the value paired with the name.
  std::string get_name(const std::string& key, const std::string& otherwise,
                       const std::vector<std::string>& names) const;
  std::string require_name(const std::string& key, const std::vector<std::string>& names) const;
  template <class E>
  E get_choice(const std::string& key, std::type_identity_t<E> otherwise, const Choices<E>& choices) const;
  template <class E>
  E require_choice(const std::string& key, const Choices<E>& choices) const;

  // The map under `key`. section(): an empty one when it is not written, so
  // that all its defaults apply; find_section(): nullopt when not written or
  // null.
  ConfigNode section(const std::string& key) const;
  ConfigNode require_section(const std::string& key) const;
  std::optional<ConfigNode> find_section(const std::string& key) const;
  // A list of maps; empty when it is not written.
  std::vector<ConfigNode> list(const std::string& key) const;

  // A copy of this map, read anew, with each of its scalars as `replace` gives
  // it; places are those of the original.
  ConfigNode with_scalars(const std::function<std::string(const std::string&)>& replace) const;

  // Call when every key has been read: refuses the first key nobody asked for.
  // Sections have their own finish(), called by whoever reads them.
  void finish() const;

  // Errors of the reader's own checks: "PATH: MESSAGE" at the section, or
  // "PATH.KEY: MESSAGE" at the value.
  [[noreturn]] void fail(const std::string& message) const;
  [[noreturn]] void fail(std::string_view key, const std::string& message) const;

  // YAML of this map with the defaults filled in so far; reading it gives an
  // equal configuration.
  std::string dump() const;

 private:
  ConfigNode(std::shared_ptr<ConfigValue> value, Location location, std::string path);

  // The written value or nullptr, after making the key known.
  const ConfigValue* ask(const std::string& key) const;
  [[noreturn]] void fail_missing(const std::string& key, const std::string& expected) const;
  void record_default(const std::string& key, std::shared_ptr<ConfigValue> value) const;
  ConfigNode child(const std::string& key, const ConfigEntry& entry) const;
  std::string check_name(const std::string& key, const ConfigValue& value, const std::vector<std::string>& names) const;

  template <ConfigReadable T>
  T parse(const std::string& key, const ConfigValue& value, const Range& range) const;

  std::shared_ptr<ConfigValue> value_;
  Location location_;
  std::string path_;
};

template <class E>
E ConfigNode::get_choice(const std::string& key, std::type_identity_t<E> otherwise, const Choices<E>& choices) const {
  std::vector<std::string> names;
  std::string otherwise_name;
  for (const auto& [name, value] : choices) {
    names.push_back(name);
    if (value == otherwise && otherwise_name.empty()) otherwise_name = name;
  }
  const std::string chosen = get_name(key, otherwise_name, names);
  for (const auto& [name, value] : choices) {
    if (name == chosen) return value;
  }
  return otherwise;
}

template <class E>
E ConfigNode::require_choice(const std::string& key, const Choices<E>& choices) const {
  std::vector<std::string> names;
  for (const auto& [name, value] : choices) names.push_back(name);
  const std::string chosen = require_name(key, names);
  for (const auto& [name, value] : choices) {
    if (name == chosen) return value;
  }
  return choices.front().second;
}

}  // namespace heddle
