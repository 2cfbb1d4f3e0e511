// Every key of the tables in docs/config.md: what it is when a config leaves it out, and which values it takes.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <regex>
#include <sstream>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "core/io/atomic_file.h"
#include "trainers/train_config.h"

namespace heddle::config_docs_test {
namespace {

using Strings = std::vector<std::string>;

struct Key {
  std::string section;  // "trainer.sample"; "" at the top
  std::string name, type, otherwise;

  std::string path() const { return section.empty() ? name : section + "." + name; }
};

std::vector<Key> documented_keys() {
  std::istringstream page(read_file(std::filesystem::path(HEDDLE_SOURCE_DIR) / "docs/config.md"));
  std::vector<Key> keys;
  std::string section;
  const std::regex heading("### `(.*)`"), row(R"(\| `(\w+)` \| (.*?) \| (.*?) \| .*\|)");
  for (std::string line; std::getline(page, line);) {
    std::smatch found;
    if (std::regex_match(line, found, heading)) section = found[1];
    if (std::regex_match(line, found, row)) keys.push_back({section, found[1], found[2], found[3]});
  }
  return keys;
}

// What a config must say and no more, with the section `data` that has the key.
TrainConfig minimal_config(const Key& key, const Strings& overrides = {}) {
  std::string data = "{type: tokens, path: x}", vocabulary = "300";
  if (key.section == "trainer.sample" || key.name == "sample") data = "{type: text, path: x}";
  if (key.name == "num_pairs" || key.name == "num_queries") data = "{type: mqar}";
  if (key.name == "length") data = "{type: copy}";
  std::string section = key.section == "trainer.sample" ? ", sample: {}" : "";
  if (key.section == "trainer.profile") section = ", profile: {steps: [1, 2]}";
  if (key.section == "trainer.parallel") section = ", parallel: {}";
  std::string optimizer = "adamw";
  if (key.name == "momentum" || key.name == "nesterov") optimizer = "sgd";
  const bool is_of_muon = key.name == "newton_schulz_steps" || key.name == "scale" || key.name == "adamw";
  if (is_of_muon || key.section == "optimizer.adamw") optimizer = "muon";
  const std::string schedule = key.name.starts_with("decay_") ? "wsd" : "cosine";
  return read_train_config(parse_config(
      fmt::format("data: {}\n"
                  "model: {{vocab_size: {}, dim: 1, layers: 1, norm: {{type: rms_norm}}, mixer: {{type: lightning, "
                  "heads: 1}}, channel: {{type: ffn, hidden: 2}}}}\n"
                  "optimizer: {{type: {}}}\n"
                  "schedule: {{type: {}}}\n"
                  "trainer: {{steps: 7{}}}\n",
                  data, vocabulary, optimizer, schedule, section),
      "minimal.yaml", overrides));
}

// The value that the resolved config holds; nothing when it holds none.
std::optional<std::string> resolved(const Key& key) {
  const ConfigValue tree = to_tree(minimal_config(key));
  const ConfigValue* value = &tree;
  std::istringstream names(key.path());
  for (std::string name; std::getline(names, name, '.');) {
    const ConfigEntry* entry = value->find(name);
    if (entry == nullptr) return std::nullopt;
    value = entry->value.get();
  }
  return to_line(*value);
}

std::string refusal(const Key& key, const std::string& value) {
  try {
    minimal_config(key, {fmt::format("{}={}", key.path(), value)});
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(ConfigDocsTest, EveryDefaultIsThatOfTheTables) {
  int checked = 0;
  for (const Key& key : documented_keys()) {
    const bool has_no_default = key.otherwise == "none";  // not the word `none`
    std::string expected = std::regex_replace(key.otherwise, std::regex("`"), "");
    if (expected == "required" || expected == "its defaults" || key.name == "loss_scale") continue;
    if (expected == "num_pairs") {  // is not written
      EXPECT_FALSE(resolved(key).has_value()) << key.path();
      continue;
    }
    if (expected == "a line break") expected = "\"\\n\"";
    const std::optional<std::string> found = resolved(key);
    if (has_no_default) {
      EXPECT_FALSE(found.has_value()) << key.path();
    } else {
      // A number may be written in several ways.
      const auto as_written = [](const std::string& text) { return to_line(*parse_yaml(text, "")); };
      const bool is_number = !expected.empty() && expected.find_first_not_of("0123456789.e-") == std::string::npos;
      ASSERT_TRUE(found.has_value()) << key.path();
      if (is_number) {
        EXPECT_EQ(std::stod(*found), std::stod(expected)) << key.path();
      } else {
        EXPECT_EQ(as_written(*found), as_written(expected)) << key.path();
      }
    }
    ++checked;
  }
  EXPECT_GE(checked, 30);
}

TEST(ConfigDocsTest, EveryKeyTakesTheValuesOfTheTables) {
  int checked = 0;
  for (const Key& key : documented_keys()) {
    Strings good, bad;
    std::smatch found;
    const std::string type = key.type.substr(0, key.type.find(", `"));
    if (type == "integer > 0") good = {"1"}, bad = {"0", "-1", "1.5"};
    if (type == "integer >= 0") good = {"0"}, bad = {"-1", "0.5"};
    if (type == "number > 0") good = {"1.0e-9", "3"}, bad = {"0", "-1.0e-9"};
    if (type == "number >= 0") good = {"0"}, bad = {"-1.0e-9"};
    if (type == "number in (0, 1)") good = {"1.0e-9", "0.999"}, bad = {"0", "1"};
    if (type == "two numbers in [0, 1)") good = {"[0, 0.999]"}, bad = {"[0, 1]", "[-1.0e-9, 0]", "[0.9]", "[0, 0, 0]"};
    if (std::regex_search(type, found, std::regex(R"(integer in \[(\d+), )"))) {
      good = {found[1]}, bad = {std::to_string(std::stoll(found[1]) - 1)};
      const std::string end = found.suffix();
      if (end == "2^31)") good.push_back("2147483647"), bad.push_back("2147483648");
      if (end == "65536]") good.push_back("65536"), bad.push_back("65537");
    }
    const std::regex quoted("`(\\w+)`");
    for (std::sregex_iterator word(key.type.begin(), key.type.end(), quoted), end; word != end; ++word) {
      if (key.path() != "data.type" && key.name != "loss_scale") good.push_back((*word)[1]);
      bad.push_back("no_such_word");
    }
    if (key.name == "min_lr") bad.push_back("0.0011");  // more than lr
    if (key.name == "num_pairs" || key.name == "num_queries" || key.name == "length")
      good.resize(1);                                         // of long sequences
    if (key.name == "loss_scale") good.clear(), bad.clear();  // a key of float16
    for (const std::string& value : good) {
      EXPECT_EQ(refusal(key, value), "accepted") << key.path() << " = " << value;
    }
    for (const std::string& value : bad) {
      EXPECT_THAT(refusal(key, value),
                  ::testing::AllOf(::testing::HasSubstr(key.path()), ::testing::HasSubstr("found")))
          << key.path() << " = " << value;
    }
    checked += good.empty() ? 0 : 1;
  }
  EXPECT_GE(checked, 28);
}

// The rows | [`type`](..) | `key: default`, `key` (required or none), .. | of the mixers.
TEST(ConfigDocsTest, EveryOptionOfAMixerIsInItsRow) {
  std::istringstream page(read_file(std::filesystem::path(HEDDLE_SOURCE_DIR) / "docs/config.md"));
  const std::regex row(R"(\| \[`(\w+)`\]\(.*?\) \| (.*) \|)"), option(R"(`(\w+)(: [^`]+)?`)");
  int mixers = 0;
  for (std::string line; std::getline(page, line);) {
    std::smatch found;
    if (!std::regex_match(line, found, row)) continue;
    const std::string type = found[1], options = found[2];
    std::string documented = "type: " + type;
    for (std::sregex_iterator it(options.begin(), options.end(), option), end; it != end; ++it) {
      const std::string rest = it->suffix();
      if (rest.starts_with(" (none)")) continue;
      documented += ", " + it->str(1) + (rest.starts_with(" (required)") ? ": 1" : it->str(2));
    }
    // As a map of the same order, with numbers as they are written there.
    const std::string written = fmt::format("model.mixer={{type: {}, heads: 1}}", type);
    const Key mixer{"model", "mixer", "", ""};
    const auto tree_of = [&](const std::string& override) {
      const ConfigValue tree = to_tree(minimal_config(mixer, {"model.dim=2", override}));
      return to_line(*tree.find("model")->value->find("mixer")->value);
    };
    EXPECT_EQ(tree_of(written), tree_of("model.mixer={" + documented + "}")) << "a default of " << type;
    const size_t keys = static_cast<size_t>(std::count(documented.begin(), documented.end(), ','));
    const std::string resolved_keys = tree_of(written);
    EXPECT_EQ(static_cast<size_t>(std::count(resolved_keys.begin(), resolved_keys.end(), ',')), keys)
        << type << " has other options than its row: " << resolved_keys;
    ++mixers;
  }
  EXPECT_EQ(mixers, 5);
}

}  // namespace
}  // namespace heddle::config_docs_test
