// One description of a struct that reads it from a section of a configuration and writes it as one.
//
//   void describe(ConfigFields& fields, NormOptions& options) {
//     fields.field("eps", options.eps, Range::positive());
//     fields.choice("position", options.position, {{"pre", Position::pre}, {"post", Position::post}});
//     fields.optional_section<GateOptions>("gate", options.gate, describe_gate);
//     if (fields.reads() && options.eps > 1) fields.fail("eps", "found a number that is too large");
//   }
//
//   const ConfigNode config = load_config("norm.yaml");  // reading
//   NormOptions options;
//   ConfigFields fields(config);
//   describe(fields, options);
//   config.finish();
//
//   ConfigValue map;  // writing
//   ConfigFields fields(map);
//   describe(fields, options);
//   const std::string text = to_yaml(map);
//
// What is written reads back as an equal struct, and equal structs give equal text. The defaults are those of the
// struct; whoever makes the outermost ConfigNode calls finish() on it.
//
// Errors: reading throws ConfigError. Writing throws Error for what could not be read back: a number that is not
// finite, a choice without a name, a key that is described twice. Not thread-safe.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "core/config/config_node.h"

namespace heddle {

class ConfigFields {
 public:
  // Reads from `section`. The handle is copied.
  explicit ConfigFields(const ConfigNode& section);
  // Writes into `map`, which becomes a map and must outlive this, in the order of the calls.
  explicit ConfigFields(ConfigValue& map);

  bool reads() const { return node_.has_value(); }
  // The section that is read. Throws Error while writing.
  const ConfigNode& node() const;

  // Reading keeps `value`, the default, where the key is not written. Writing changes nothing in the struct.
  template <ConfigReadable T>
  void field(const std::string& key, T& value, const Range& range = {});
  // The same for a default that follows from other keys. It is not written: who changes one of these would have to
  // change it as well.
  template <ConfigReadable T>
  void field_or(const std::string& key, T& value, const std::type_identity_t<T>& otherwise, const Range& range = {});
  template <ConfigReadable T>
  void required(const std::string& key, T& value, const Range& range = {});
  // Is written only when it has a value; a key that is not written, or null, reads as none, whatever the default.
  template <ConfigReadable T>
  void optional(const std::string& key, std::optional<T>& value, const Range& range = {});

  // A number, or the name `word` for none: the word is what none is written as.
  template <ConfigScalar T>
  void number_or_word(const std::string& key, std::optional<T>& value, const std::string& word,
                      const Range& range = {});

  // One of a list of names. Where several names mean one value, the first is written.
  template <class E>
  void choice(const std::string& key, E& value, const Choices<E>& choices);
  template <class E>
  void required_choice(const std::string& key, E& value, const Choices<E>& choices);
  void required_name(const std::string& key, std::string& value, const std::vector<std::string>& names);

  // A section; its defaults apply where it is not written.
  void section(const std::string& key, const std::function<void(ConfigFields&)>& describe);
  void required_section(const std::string& key, const std::function<void(ConfigFields&)>& describe);
  // Is written only when it has a value; a section that is not written, or null, reads as none, whatever the default.
  template <class S>
  void optional_section(const std::string& key, std::optional<S>& value,
                        const std::type_identity_t<std::function<void(ConfigFields&, S&)>>& describe);

  // A list of sections, each described by `describe`. It is written only when it has items; a list that is not written,
  // or null, reads as none.
  template <class S>
  void optional_list(const std::string& key, std::vector<S>& items,
                     const std::type_identity_t<std::function<void(ConfigFields&, S&)>>& describe);

  // Reading throws ConfigError when `key`, which has no meaning beside what else is written, has a value; `reason` is a
  // sentence that says why. Writing leaves it out.
  void refuse(const std::string& key, const std::string& reason) const {
    if (reads()) node_->refuse(key, reason);
  }

  // Reading throws ConfigError where `path`, the value of `key`, names no file: see ConfigNode::check_path().
  void check_path(const std::string& key, const std::string& path, const std::string& expected) const {
    if (reads()) node_->check_path(key, path, expected);
  }

  // Throws ConfigError "PATH.KEY: MESSAGE" at the place of the value, or of the section when it is not written. For
  // checks while reading: while writing there is no place, and a plain Error is thrown.
  [[noreturn]] void fail(const std::string& key, const std::string& message) const;

 private:
  // Instantiated for every ConfigReadable in config_fields.cc.
  template <ConfigReadable T>
  void write(const std::string& key, const T& value);
  template <class E>
  void write_choice(const std::string& key, const E& value, const Choices<E>& choices);
  [[noreturn]] static void fail_without_name(const std::string& key, const std::vector<std::string>& names);
  void write_section(const std::string& key, const std::function<void(ConfigFields&)>& describe);
  void write_list(const std::string& key, std::size_t count,
                  const std::function<void(ConfigFields&, std::size_t)>& describe);
  void add(const std::string& key, ConfigTree value);

  std::optional<ConfigNode> node_;  // what is read
  ConfigValue* map_ = nullptr;      // what is written, when nothing is read
};

template <ConfigReadable T>
void ConfigFields::field(const std::string& key, T& value, const Range& range) {
  if (!reads()) return write(key, value);
  value = node_->get<T>(key, value, range);
}

template <ConfigReadable T>
void ConfigFields::field_or(const std::string& key, T& value, const std::type_identity_t<T>& otherwise,
                            const Range& range) {
  if (reads()) {
    value = node_->get<T>(key, otherwise, range);
  } else if (value != otherwise) {
    write(key, value);
  }
}

template <ConfigReadable T>
void ConfigFields::required(const std::string& key, T& value, const Range& range) {
  if (!reads()) return write(key, value);
  value = node_->require<T>(key, range);
}

template <ConfigReadable T>
void ConfigFields::optional(const std::string& key, std::optional<T>& value, const Range& range) {
  if (reads()) {
    value = node_->find<T>(key, range);
  } else if (value) {
    write(key, *value);
  }
}

template <ConfigScalar T>
void ConfigFields::number_or_word(const std::string& key, std::optional<T>& value, const std::string& word,
                                  const Range& range) {
  if (reads()) {
    value = node_->get_number_or_word<T>(key, value, word, range);
  } else if (value) {
    write(key, *value);
  } else {
    write(key, word);
  }
}

template <class E>
void ConfigFields::choice(const std::string& key, E& value, const Choices<E>& choices) {
  if (!reads()) return write_choice(key, value, choices);
  value = node_->get_choice<E>(key, value, choices);
}

template <class E>
void ConfigFields::required_choice(const std::string& key, E& value, const Choices<E>& choices) {
  if (!reads()) return write_choice(key, value, choices);
  value = node_->require_choice<E>(key, choices);
}

template <class S>
void ConfigFields::optional_section(const std::string& key, std::optional<S>& value,
                                    const std::type_identity_t<std::function<void(ConfigFields&, S&)>>& describe) {
  if (!reads()) {
    if (value) write_section(key, [&](ConfigFields& fields) { describe(fields, *value); });
    return;
  }
  const std::optional<ConfigNode> section = node_->find_section(key);
  if (!section) return value.reset();
  if (!value) value.emplace();
  ConfigFields fields(*section);
  describe(fields, *value);
}

template <class S>
void ConfigFields::optional_list(const std::string& key, std::vector<S>& items,
                                 const std::type_identity_t<std::function<void(ConfigFields&, S&)>>& describe) {
  if (!reads()) {
    if (items.empty()) return;
    return write_list(key, items.size(), [&](ConfigFields& fields, std::size_t i) { describe(fields, items[i]); });
  }
  items.clear();
  if (!node_->has(key)) return;
  for (const ConfigNode& item : node_->list(key)) {
    ConfigFields fields(item);
    describe(fields, items.emplace_back());
  }
}

template <class E>
void ConfigFields::write_choice(const std::string& key, const E& value, const Choices<E>& choices) {
  for (const auto& [name, named] : choices) {
    if (named == value) return write(key, name);
  }
  fail_without_name(key, names_of(choices));
}

}  // namespace heddle
