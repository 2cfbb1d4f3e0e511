#include "core/config/config_load.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <utility>
#include <vector>

#include "core/config/config_tree.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using Kind = ConfigValue::Kind;
using ValuePointer = std::shared_ptr<ConfigValue>;

std::string read_text(const std::string& path, const Location& asked_at) {
  std::error_code ignored;
  std::string reason = "it is a folder";
  if (!fs::is_directory(path, ignored)) {
    std::ifstream stream(path, std::ios::binary);
    if (stream) {
      return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    }
    reason = std::strerror(errno);
  }
  throw ConfigError(asked_at, "cannot read '" + path + "': " + reason);
}

const std::string* written_type(const ConfigValue& map) {
  const ConfigEntry* entry = map.find("type");
  if (entry == nullptr || entry->value->kind != Kind::scalar) return nullptr;
  return &entry->value->scalar;
}

bool types_differ(const ConfigValue& a, const ConfigValue& b) {
  const std::string* a_type = written_type(a);
  const std::string* b_type = written_type(b);
  return a_type != nullptr && b_type != nullptr && *a_type != *b_type;
}

// Keys of an override that address the items of a list: {0: x, 2: y}.
void set_items(ConfigValue& list, const ConfigValue& by_index) {
  for (const ConfigEntry& entry : by_index.entries) {
    const char* end = entry.name.data() + entry.name.size();
    std::size_t index = 0;
    const auto parsed = std::from_chars(entry.name.data(), end, index);
    if (parsed.ec != std::errc() || parsed.ptr != end || index >= list.items.size()) {
      throw ConfigError(entry.location, "found index '" + entry.name + "', expected less than " +
                                            std::to_string(list.items.size()) + ", the length of the list");
    }
    list.items[index] = entry.value;
  }
}

// What `over` says, laid over `under`. Indexes into lists come from overrides
// only: in a file a map over a list replaces it.
ValuePointer merge(const ValuePointer& under, const ValuePointer& over, bool over_is_override) {
  if (over_is_override && over->kind == Kind::map && under->kind == Kind::sequence) {
    set_items(*under, *over);
    return under;
  }
  if (under->kind != Kind::map || over->kind != Kind::map || types_differ(*under, *over)) {
    return over;
  }
  for (ConfigEntry& entry : over->entries) {
    if (ConfigEntry* existing = under->find(entry.name)) {
      existing->location = entry.location;
      existing->value = merge(existing->value, entry.value, over_is_override);
    } else {
      under->entries.push_back(entry);
    }
  }
  under->location = over->location;
  return under;
}

ValuePointer load_file(const std::string& path, const Location& asked_at, std::vector<fs::path>& including);

// Replaces `base: FILE` of a parsed file by what that file says.
ValuePointer resolve_base(ValuePointer root, const std::string& path, std::vector<fs::path>& including) {
  if (root->kind == Kind::null) root->kind = Kind::map;
  if (root->kind != Kind::map) {
    throw ConfigError(root->location, "found a document that is not a map, expected 'key: value' lines");
  }
  const auto base =
      std::find_if(root->entries.begin(), root->entries.end(), [](auto& entry) { return entry.name == "base"; });
  if (base == root->entries.end()) return root;
  const ConfigValue value = *base->value;
  if (value.kind != Kind::scalar || value.scalar.empty()) {
    throw ConfigError(value.location, "base: expected the name of another config file");
  }
  root->entries.erase(base);
  const fs::path folder = fs::path(path).parent_path();
  const std::string base_path = (folder / value.scalar).lexically_normal().string();
  return merge(load_file(base_path, value.location, including), root, false);
}

ValuePointer load_file(const std::string& path, const Location& asked_at, std::vector<fs::path>& including) {
  std::error_code ignored;
  const fs::path identity = fs::weakly_canonical(path, ignored);
  if (std::find(including.begin(), including.end(), identity) != including.end()) {
    throw ConfigError(asked_at, "base: '" + path +
                                    "' includes itself, directly or through "
                                    "its own base");
  }
  including.push_back(identity);
  const std::string text = read_text(path, asked_at);
  ValuePointer root = resolve_base(parse_yaml(text, path), path, including);
  including.pop_back();
  return root;
}

// "a.b=VALUE" as the tree {a: {b: VALUE}}.
ValuePointer parse_override(const std::string& text) {
  const Location location{"--set " + text, 0, 0};
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos) {
    throw ConfigError(location, "found no '=', expected --set KEY=VALUE");
  }
  std::vector<std::string> names;
  for (std::size_t begin = 0; begin <= equals;) {
    const std::size_t end = std::min(text.find('.', begin), equals);
    names.push_back(text.substr(begin, end - begin));
    if (names.back().empty()) {
      throw ConfigError(location,
                        "found an empty name in '" + text.substr(0, equals) + "', expected names joined by dots");
    }
    begin = end + 1;
  }
  if (names.front() == "base") {
    throw ConfigError(location, "base cannot be overridden, write it in the file");
  }
  ValuePointer value = parse_yaml(text.substr(equals + 1), location.file, &location);
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    auto map = std::make_shared<ConfigValue>();
    map->kind = Kind::map;
    map->location = location;
    map->entries.push_back({*name, location, value});
    value = map;
  }
  return value;
}

// The overrides are merged among themselves first: `mixer.type=x mixer.heads=8`
// is one change, in either order, so a new type drops only what the files say.
ValuePointer apply_overrides(ValuePointer root, std::span<const std::string> overrides) {
  ValuePointer all;
  for (const std::string& text : overrides) {
    const ValuePointer one = parse_override(text);
    all = all == nullptr ? one : merge(all, one, true);
  }
  if (all == nullptr) return root;
  const Location location = root->location;
  root = merge(root, all, true);
  root->location = location;
  return root;
}

ConfigNode make_node(const ValuePointer& root) {
  root->known.push_back("base");  // read here, so that readers need not ask for it
  return ConfigNode(root);
}

}  // namespace

ConfigNode load_config(const std::string& path, std::span<const std::string> overrides) {
  std::vector<fs::path> including;
  return make_node(apply_overrides(load_file(path, {path, 0, 0}, including), overrides));
}

ConfigNode parse_config(const std::string& text, const std::string& name, std::span<const std::string> overrides) {
  std::error_code ignored;
  std::vector<fs::path> including{fs::weakly_canonical(name, ignored)};
  return make_node(apply_overrides(resolve_base(parse_yaml(text, name), name, including), overrides));
}

}  // namespace heddle
