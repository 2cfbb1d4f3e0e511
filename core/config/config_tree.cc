#include "core/config/config_tree.h"

#include <fmt/format.h>
#include <yaml-cpp/emitter.h>
#include <yaml-cpp/emittermanip.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <sstream>
#include <string_view>
#include <utility>

#include "core/config/config_scalar.h"
#include "core/runtime/utf8.h"

namespace heddle {
namespace {

using Kind = ConfigValue::Kind;

// Maps and lists inside of each other. yaml-cpp has a limit, too, but does not say where it is passed.
constexpr size_t kMostLevels = 100;

// Builds the tree from yaml-cpp's events, which (unlike YAML::Node) carry exact marks and show duplicate keys.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(std::string file, const Location* fixed_location)
      : file_(std::move(file)), fixed_location_(fixed_location) {}

  ConfigTree root() const { return root_; }

  Location location(const YAML::Mark& mark) const {
    if (fixed_location_ != nullptr) return *fixed_location_;
    if (mark.line < 0) return {file_, 0, 0};
    return {file_, mark.line + 1, mark.column + 1};
  }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_as_key(mark, "nothing");
    const auto value = make(Kind::null, mark);
    // yaml-cpp marks a missing value at the next token, which may be lines away.
    if (!open_.empty() && open_.back().value->kind == Kind::map) {
      value->location = open_.back().key_location;
    }
    add(value, anchor);
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_as_key(mark, "an alias");
    const auto found = anchored_.find(anchor);
    if (found == anchored_.end()) {
      throw ConfigError(location(mark), "found an alias inside its own anchor");
    }
    add(found->second, 0);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& text) override {
    if (tag != "?" && tag != "!" && !tag.empty()) refuse_tag(mark, tag);
    if (expects_key()) {
      open_key(mark, text);
      return;
    }
    const auto value = make(Kind::scalar, mark);
    value->scalar = text;
    value->quoted = tag == "!";
    add(value, anchor);
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(Kind::sequence, mark, tag, anchor, "a list");
  }
  void OnSequenceEnd() override { close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(Kind::map, mark, tag, anchor, "a map");
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    std::shared_ptr<ConfigValue> value;
    YAML::anchor_t anchor;
    bool has_key = false;
    std::string key;
    Location key_location;
  };

  std::shared_ptr<ConfigValue> make(Kind kind, const YAML::Mark& mark) const {
    auto value = std::make_shared<ConfigValue>();
    value->kind = kind;
    value->location = location(mark);
    return value;
  }

  bool expects_key() const { return !open_.empty() && open_.back().value->kind == Kind::map && !open_.back().has_key; }

  void refuse_as_key(const YAML::Mark& mark, const std::string& found) const {
    if (!expects_key()) return;
    throw ConfigError(location(mark), "found " + found + " as a key, expected a name (or is a bracket not closed?)");
  }

  [[noreturn]] void refuse_tag(const YAML::Mark& mark, const std::string& tag) const {
    throw ConfigError(location(mark), "found the YAML tag '" + tag + "', expected a value without a tag");
  }

  void open_key(const YAML::Mark& mark, const std::string& name) {
    Open& map = open_.back();
    if (name == "<<") {
      throw ConfigError(
          location(mark),
          "found the merge key '<<', which is not supported; use 'base: FILE' to inherit from another file");
    }
    if (const ConfigEntry* first = map.value->find(name)) {
      throw ConfigError(location(mark), "duplicate key '" + name + "', first given at " + first->location.to_string());
    }
    map.has_key = true;
    map.key = name;
    map.key_location = location(mark);
  }

  void open(Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            const std::string& found) {
    refuse_as_key(mark, found);
    if (tag != "?" && !tag.empty()) refuse_tag(mark, tag);
    if (open_.size() == kMostLevels) {
      throw ConfigError(location(mark),
                        fmt::format("found {} inside of {} others, expected fewer", found, kMostLevels));
    }
    open_.push_back({make(kind, mark), anchor, false, "", {}});
  }

  void close() {
    const Open done = std::move(open_.back());
    open_.pop_back();
    add(done.value, done.anchor);
  }

  void add(const ConfigTree& value, YAML::anchor_t anchor) {
    if (anchor != 0) anchored_[anchor] = value;
    if (open_.empty()) {
      root_ = value;
    } else if (open_.back().value->kind == Kind::sequence) {
      open_.back().value->items.push_back(value);
    } else {
      Open& map = open_.back();
      map.value->entries.push_back({map.key, map.key_location, value});
      map.has_key = false;
    }
  }

  std::string file_;
  const Location* fixed_location_;
  ConfigTree root_;
  std::vector<Open> open_;
  std::map<YAML::anchor_t, ConfigTree> anchored_;
};

// Throws ConfigError at the first byte that is no UTF-8: yaml-cpp would put another character in its place.
void check_is_utf8(std::string_view text, const std::string& file) {
  int line = 1, column = 1;
  while (!text.empty()) {
    const size_t length = character_length(text);
    if (length == 0) {
      throw ConfigError({file, line, column}, fmt::format("found the byte 0x{:02x}, which is no UTF-8; expected a file "
                                                          "in UTF-8",
                                                          static_cast<uint8_t>(text[0])));
    }
    ++column;
    if (text[0] == '\n') {
      ++line;
      column = 1;
    }
    text.remove_prefix(length);
  }
}

bool holds_only_scalars(const ConfigValue& value) {
  for (const ConfigTree& item : value.items) {
    if (item->kind == Kind::sequence || item->kind == Kind::map) return false;
  }
  return true;
}

void emit_text(YAML::Emitter& out, const std::string& text, bool quoted) {
  if (quoted) out << YAML::DoubleQuoted;
  // YAML wants DEL escaped, but by default the emitter writes it as it is.
  if (text.find('\x7f') != std::string::npos) out << YAML::EscapeNonAscii;
  out << text;
}

void emit(YAML::Emitter& out, const ConfigValue& value) {
  switch (value.kind) {
    case Kind::null:
      out << YAML::Null;
      return;
    case Kind::scalar:
      emit_text(out, value.scalar, value.quoted);
      return;
    case Kind::sequence:
      if (holds_only_scalars(value)) out << YAML::Flow;
      out << YAML::BeginSeq;
      for (const ConfigTree& item : value.items) emit(out, *item);
      out << YAML::EndSeq;
      return;
    case Kind::map:
      out << YAML::BeginMap;
      for (const ConfigEntry& entry : value.entries) {
        out << YAML::Key;
        emit_text(out, entry.name, needs_quotes(entry.name));
        out << YAML::Value;
        emit(out, *entry.value);
      }
      out << YAML::EndMap;
      return;
  }
}

}  // namespace

const ConfigEntry* ConfigValue::find(std::string_view name) const {
  for (const ConfigEntry& entry : entries) {
    if (entry.name == name) return &entry;
  }
  return nullptr;
}

ConfigEntry* ConfigValue::find(std::string_view name) {
  return const_cast<ConfigEntry*>(std::as_const(*this).find(name));
}

ConfigTree parse_yaml(const std::string& text, const std::string& file, const Location* fixed_location) {
  if (fixed_location == nullptr) check_is_utf8(text, file);
  TreeBuilder builder(file, fixed_location);
  try {
    // yaml-cpp misses an unclosed quote when the text ends in a line break, but not when a comment follows.
    std::istringstream stream(text + (text.ends_with('\n') ? "#" : "\n#"));
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder)) {
      auto empty = std::make_shared<ConfigValue>();
      empty->location = fixed_location != nullptr ? *fixed_location : Location{file, 1, 1};
      return empty;
    }
    ConfigTree root = builder.root();
    if (parser.HandleNextDocument(builder)) {
      throw ConfigError(builder.root()->location, "found a second YAML document, expected one");
    }
    return root;
  } catch (const YAML::Exception& error) {
    throw ConfigError(builder.location(error.mark), "not valid YAML: " + error.msg);
  }
}

std::string to_yaml(const ConfigValue& value) {
  YAML::Emitter out;
  emit(out, value);
  return std::string(out.c_str()) + "\n";
}

std::string to_line(const ConfigValue& value) {
  YAML::Emitter out;
  out.SetSeqFormat(YAML::Flow);
  out.SetMapFormat(YAML::Flow);
  emit(out, value);
  return out.c_str();
}

}  // namespace heddle
