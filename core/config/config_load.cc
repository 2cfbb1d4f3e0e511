#include "core/config/config_load.h"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <ios>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "core/config/config_tree.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using Kind = ConfigValue::Kind;

std::string read_text(const std::string& path, const Location& asked_at) {
  std::error_code ignored;
  std::string reason = "it is a folder";
  if (path.find('\0') != std::string::npos) {
    reason = "it has a NUL byte";
  } else if (!fs::is_directory(path, ignored)) {
    std::ifstream stream(path, std::ios::binary);
    std::string text;
    constexpr std::size_t kChunk = std::size_t{1} << 16, kMost = std::size_t{1} << 24;
    while (stream && text.size() <= kMost) {  // a device may never end
      const std::size_t before = text.size();
      text.resize(before + kChunk);
      stream.read(text.data() + before, kChunk);
      text.resize(before + static_cast<std::size_t>(stream.gcount()));
    }
    if (stream.eof()) return text;
    reason = stream ? "it has more than 16 MiB, expected a config" : std::strerror(errno);
  }
  throw ConfigError(asked_at, "cannot read '" + path + "': " + reason);
}

// What the other keys of a section belong to: its `type`, or in a section without one its `kinds`. Empty: not said.
std::string written_type(const ConfigValue& map) {
  const ConfigEntry* entry = map.find("type");
  if (entry == nullptr) return map.find("kinds") == nullptr ? "" : "{kinds}";
  return entry->value->kind == Kind::scalar ? entry->value->scalar : "";
}

bool types_differ(const ConfigValue& a, const ConfigValue& b) {
  const std::string a_type = written_type(a), b_type = written_type(b);
  return !a_type.empty() && !b_type.empty() && a_type != b_type;
}

ConfigTree merge(const ConfigTree& under, const ConfigTree& over, bool over_is_override);

// The list in which an override, as {0: x, 2: y}, is laid over the items that it addresses by their index.
ConfigTree with_items(const ConfigValue& list, const ConfigValue& by_index) {
  auto changed = std::make_shared<ConfigValue>(list);
  for (const ConfigEntry& entry : by_index.entries) {
    const char* end = entry.name.data() + entry.name.size();
    std::size_t index = 0;
    const auto parsed = std::from_chars(entry.name.data(), end, index);
    if (parsed.ec != std::errc() || parsed.ptr != end || index >= list.items.size()) {
      throw ConfigError(entry.location, "found index '" + entry.name + "', expected less than " +
                                            std::to_string(list.items.size()) + ", the length of the list");
    }
    changed->items[index] = merge(list.items[index], entry.value, true);
  }
  return changed;
}

// What `over` says, laid over `under`; both stay as they are. Indexes into lists come from overrides only: in a file a
// map over a list replaces it.
ConfigTree merge(const ConfigTree& under, const ConfigTree& over, bool over_is_override) {
  if (over_is_override && over->kind == Kind::map && under->kind == Kind::sequence) return with_items(*under, *over);
  if (under->kind != Kind::map || over->kind != Kind::map || types_differ(*under, *over)) return over;
  auto merged = std::make_shared<ConfigValue>(*under);
  merged->location = over->location;
  for (const ConfigEntry& entry : over->entries) {
    if (ConfigEntry* existing = merged->find(entry.name)) {
      existing->location = entry.location;
      existing->value = merge(existing->value, entry.value, over_is_override);
    } else {
      merged->entries.push_back(entry);
    }
  }
  return merged;
}

// The map in which sections that write no type have their default one.
ConfigTree with_default_types(const ConfigTree& root, const DefaultTypes& default_types) {
  auto typed = std::make_shared<ConfigValue>(*root);
  for (const auto& [name, default_type] : default_types) {
    ConfigEntry* const entry = typed->find(name);
    if (entry == nullptr || entry->value->kind != Kind::map || entry->value->find("type") != nullptr) continue;
    auto type = std::make_shared<ConfigValue>();
    type->kind = Kind::scalar;
    type->location = entry->location;
    type->scalar = default_type;
    auto section = std::make_shared<ConfigValue>(*entry->value);
    section->entries.push_back({"type", entry->location, type});
    entry->value = section;
  }
  return typed;
}

// The file `name` of a folder, without detours in its path. The `..` of a linked folder leads elsewhere than the name
// of the link says; there the path stays as it is.
fs::path path_in(const fs::path& folder, const std::string& name) {
  const fs::path path = folder / name, direct = path.lexically_normal();
  std::error_code unreadable;
  const bool leads_elsewhere = fs::exists(path, unreadable) && !fs::equivalent(path, direct, unreadable);
  return leads_elsewhere ? path : direct;
}

// Adds the file to `including`, which holds those that led to it, and then its bases.
ConfigTree load_file(const std::string& path, const Location& asked_at, const DefaultTypes& default_types,
                     std::vector<fs::path>& including);

// The map that a parsed file stands for: what its `base: FILE` says, with the rest of the file laid over it.
ConfigTree resolve_base(const ConfigTree& document, const std::string& path, const DefaultTypes& default_types,
                        std::vector<fs::path>& including) {
  auto root = std::make_shared<ConfigValue>(*document);
  if (root->kind == Kind::null) root->kind = Kind::map;
  if (root->kind != Kind::map) {
    throw ConfigError(root->location, "found a document that is not a map, expected 'key: value' lines");
  }
  const auto base =
      std::find_if(root->entries.begin(), root->entries.end(), [](auto& entry) { return entry.name == "base"; });
  if (base == root->entries.end()) return root;
  const ConfigTree value = base->value;
  if (value->kind != Kind::scalar || value->scalar.empty()) {
    throw ConfigError(value->location, "base: expected the name of another config file");
  }
  root->entries.erase(base);
  const std::string base_path = path_in(fs::path(path).parent_path(), value->scalar).string();
  const ConfigTree under = load_file(base_path, value->location, default_types, including);
  return merge(with_default_types(under, default_types), root, false);
}

ConfigTree load_file(const std::string& path, const Location& asked_at, const DefaultTypes& default_types,
                     std::vector<fs::path>& including) {
  std::error_code ignored;
  const fs::path identity = fs::weakly_canonical(path, ignored);
  if (std::find(including.begin(), including.end(), identity) != including.end()) {
    throw ConfigError(asked_at, "base: '" + path + "' includes itself, directly or through its own base");
  }
  including.push_back(identity);
  return resolve_base(parse_yaml(read_text(path, asked_at), path), path, default_types, including);
}

// A value that begins with '*' is text, such as a pattern of files. In YAML it would be an alias, of which a single
// value can define none.
ConfigTree parse_override_value(const std::string& text, const Location& location) {
  if (!text.starts_with('*')) return parse_yaml(text, location.file, &location);
  auto value = std::make_shared<ConfigValue>();
  value->kind = Kind::scalar;
  value->location = location;
  value->scalar = text;
  return value;
}

// "a.b=VALUE" as the tree {a: {b: VALUE}}.
ConfigTree parse_override(const std::string& text) {
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
  ConfigTree value = parse_override_value(text.substr(equals + 1), location);
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    auto map = std::make_shared<ConfigValue>();
    map->kind = Kind::map;
    map->location = location;
    map->entries.push_back({*name, location, value});
    value = map;
  }
  return value;
}

// The overrides are merged among themselves first: `mixer.type=x mixer.heads=8` is one change, in either order, so a
// new type drops only what the files say.
ConfigTree apply_overrides(const ConfigTree& root, std::span<const std::string> overrides,
                           const DefaultTypes& default_types) {
  ConfigTree all;
  for (const std::string& text : overrides) {
    const ConfigTree one = parse_override(text);
    all = all == nullptr ? one : merge(all, one, true);
  }
  if (all == nullptr) return root;
  auto changed = std::make_shared<ConfigValue>(*merge(with_default_types(root, default_types), all, true));
  changed->location = root->location;
  return changed;
}

}  // namespace

ConfigNode load_config(const std::string& path, std::span<const std::string> overrides,
                       const DefaultTypes& default_types) {
  std::vector<fs::path> including;
  const ConfigTree root = load_file(path, {path, 0, 0}, default_types, including);
  ConfigNode node(apply_overrides(root, overrides, default_types));
  node.has("base");  // It was read here: an error that lists the keys of a file shall name it, too.
  return node;
}

std::vector<fs::path> config_files(const std::string& path) {
  std::vector<fs::path> files;
  try {
    load_file(path, {path, 0, 0}, {}, files);
  } catch (const ConfigError&) {  // whoever loads it says what is wrong
  }
  return files;
}

ConfigNode parse_config(const std::string& text, const std::string& name, std::span<const std::string> overrides,
                        const DefaultTypes& default_types) {
  std::error_code ignored;
  std::vector<fs::path> including{fs::weakly_canonical(name, ignored)};
  const ConfigTree root = resolve_base(parse_yaml(text, name), name, default_types, including);
  return ConfigNode(apply_overrides(root, overrides, default_types));
}

}  // namespace heddle
