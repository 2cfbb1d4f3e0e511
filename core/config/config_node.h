// One map of a configuration, read strictly: every value has a place (file:line:col), and every key that is not asked
// for is an error.
//
//   NormOptions read_norm(const ConfigNode& node) {
//     NormOptions options;
//     options.eps = node.get<double>("eps", options.eps, Range::positive());
//     options.groups = node.get<std::int64_t>("groups", options.groups, Range::at_least(1));
//     options.position = node.get_choice<Position>("position", options.position,
//                                                  {{"pre", Position::pre}, {"post", Position::post}});
//     return options;
//   }
//
//   const ConfigNode config = load_config("norm.yaml");
//   const NormOptions options = read_norm(config.section("norm"));
//   config.finish();  // "unknown key 'epz' in norm; did you mean 'eps'?"
//
// The known keys are those that were asked for, so a schema and its list of keys cannot drift apart. Whoever makes the
// outermost node finishes it, and with it every section that was read on the way. ConfigFields (config_fields.h) reads
// and writes a struct by one description.
//
// A node is a handle to a constant tree and to a reading state, which says what was asked for. Copies of a node, and
// all who ask for the same section, share the state; a const node notes in it what it is asked. Two nodes made from one
// tree have nothing else in common. Not thread-safe. All errors are ConfigError.
#pragma once

#include <cstddef>
#include <functional>
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

// What get, require and find read: a scalar, or a std::vector of one. A Range holds for every item of a list.
template <class T>
concept ConfigReadable = ConfigScalar<T> || IsScalarList<T>::value;

// Names of an enumeration as a config writes them.
template <class E>
using Choices = std::vector<std::pair<std::string, E>>;

class ConfigNode {
 public:
  ConfigNode();  // an empty map without a place
  // The root of a document, of which nothing was asked yet; `root` must be a map.
  explicit ConfigNode(const ConfigTree& root);

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
  // Throws ConfigError when `key`, which has no meaning beside what else is written, has a value; `reason` is a
  // sentence that says why. Makes the key known only where it is written.
  void refuse(const std::string& key, const std::string& reason) const;
  // Throws where `path`, the value of `key`, names no file: it is empty, or has a NUL byte, at which the system would
  // cut it. `expected` is what it names: "a file".
  void check_path(std::string_view key, const std::string& path, const std::string& expected) const;

  // The value, or `otherwise` when the key is not written. A key written with no value (null) is an error.
  template <ConfigReadable T>
  T get(const std::string& key, const std::type_identity_t<T>& otherwise, const Range& range = {}) const;
  // The value; "missing key" when it is not written.
  template <ConfigReadable T>
  T require(const std::string& key, const Range& range = {}) const;
  // The value, or nullopt when it is not written or null.
  template <ConfigReadable T>
  std::optional<T> find(const std::string& key, const Range& range = {}) const;

  // A number, or nullopt for the name `word`; `otherwise` when the key is not written.
  template <ConfigScalar T>
  std::optional<T> get_number_or_word(const std::string& key, const std::optional<T>& otherwise,
                                      const std::string& word, const Range& range = {}) const;

  // One of a list of names: as text, or as the value paired with the name.
  std::string get_name(const std::string& key, const std::string& otherwise,
                       const std::vector<std::string>& names) const;
  std::string require_name(const std::string& key, const std::vector<std::string>& names) const;
  template <class E>
  E get_choice(const std::string& key, std::type_identity_t<E> otherwise, const Choices<E>& choices) const;
  template <class E>
  E require_choice(const std::string& key, const Choices<E>& choices) const;

  // The map under `key`. When it is not written, section() gives an empty one, so that all its defaults apply;
  // find_section() gives nullopt then, and when it is null.
  ConfigNode section(const std::string& key) const;
  ConfigNode require_section(const std::string& key) const;
  std::optional<ConfigNode> find_section(const std::string& key) const;
  // A list of maps; empty when it is not written.
  std::vector<ConfigNode> list(const std::string& key) const;

  // A copy of this map in which each scalar is what `replace` makes of it; places are those of the original. The copy
  // is an outermost node of its own, which its reader finishes: finish() takes the original as read.
  ConfigNode with_scalars(const std::function<std::string(const std::string&)>& replace) const;

  // Calls visit(path, value) for each scalar that is written in this map and below it, in order, with its dotted name.
  // Makes no key known.
  void for_each_scalar(const std::function<void(const std::string& path, const ConfigValue& value)>& visit) const;

  // Call when all has been read: refuses the first key that nobody asked for, here and then in the sections and list
  // items that were asked for through this node, in the order of asking.
  void finish() const;

  // Errors of the reader's own checks: "PATH: MESSAGE" at the section, or "PATH.KEY: MESSAGE" at the value.
  [[noreturn]] void fail(const std::string& message) const;
  [[noreturn]] void fail(std::string_view key, const std::string& message) const;

  // YAML of this map as it was written, without defaults.
  std::string dump() const;

 private:
  struct Reading;

  ConfigNode(ConfigTree value, Location location, std::string path);

  // The written value or nullptr, after making the key known.
  const ConfigValue* ask(const std::string& key) const;
  // "; did you mean 'norm.eps'?" where sections below this one know a key of this name, else "".
  std::string did_you_mean_below(const std::string& key) const;
  [[noreturn]] void fail_missing(const std::string& key, const std::string& expected) const;
  // The node of the section under `key`, or of an item of the list there: one reading state for all who ask.
  ConfigNode child(const std::string& key, std::size_t item, const ConfigTree& value, const Location& location,
                   const std::string& path) const;
  // One of `names`, or nullopt when the key is not written.
  std::optional<std::string> find_name(const std::string& key, const std::vector<std::string>& names) const;

  template <ConfigReadable T>
  T parse(const std::string& key, const ConfigValue& value, const Range& range) const;

  ConfigTree value_;
  Location location_;
  std::string path_;
  std::shared_ptr<Reading> reading_;
};

// The names of an enumeration, in order.
template <class E>
std::vector<std::string> names_of(const Choices<E>& choices) {
  std::vector<std::string> names;
  for (const auto& [name, value] : choices) names.push_back(name);
  return names;
}

template <class E>
E ConfigNode::get_choice(const std::string& key, std::type_identity_t<E> otherwise, const Choices<E>& choices) const {
  const std::optional<std::string> chosen = find_name(key, names_of(choices));
  for (const auto& [name, value] : choices) {
    if (name == chosen) return value;
  }
  return otherwise;
}

template <class E>
E ConfigNode::require_choice(const std::string& key, const Choices<E>& choices) const {
  const std::string chosen = require_name(key, names_of(choices));
  for (const auto& [name, value] : choices) {
    if (name == chosen) return value;
  }
  return choices.front().second;
}

}  // namespace heddle
