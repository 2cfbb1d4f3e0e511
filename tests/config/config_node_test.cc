#include "core/config/config_node.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "layers/dtype_choices.h"

namespace heddle {
namespace {

std::string error_of(const std::function<void()>& read) {
  try {
    read();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(ConfigNodeTest, ReadsEachType) {
  const ConfigNode node = parse_config(
      "int: -3\nbig: 18446744073709551615\nnumber: 1.0e-6\nplus: +.5\nwhole: 7\nflag: true\n"
      "text: 12\nquoted: \"no\"\nnumbers: [1, 2.5]\nwords: [a, b]\nnone: []\n");
  EXPECT_EQ(node.require<std::int64_t>("int"), -3);
  EXPECT_EQ(node.require<std::uint64_t>("big"), 18446744073709551615u);
  EXPECT_EQ(node.require<double>("number"), 1e-6);
  EXPECT_EQ(node.require<float>("plus"), 0.5f);
  EXPECT_EQ(node.require<double>("whole"), 7.0);
  EXPECT_TRUE(node.require<bool>("flag"));
  EXPECT_EQ(node.require<std::string>("text"), "12");
  EXPECT_EQ(node.require<std::string>("quoted"), "no");
  EXPECT_EQ(node.require<std::vector<double>>("numbers"), (std::vector<double>{1, 2.5}));
  EXPECT_EQ(node.require<std::vector<std::string>>("words"), (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(node.require<std::vector<std::int64_t>>("none").empty());
  node.finish();
}

TEST(ConfigNodeTest, AbsentKeysGiveDefaults) {
  const ConfigNode node = parse_config("nothing: ~\nempty: {}\n");
  EXPECT_EQ(node.get<double>("eps", 1e-5), 1e-5);
  EXPECT_EQ(node.get<double>("eps", 1e-6), 1e-6) << "an unwritten key takes the default of the latest get";
  EXPECT_FALSE(node.find<double>("other").has_value());
  EXPECT_FALSE(node.find<double>("nothing").has_value());
  EXPECT_FALSE(node.find_section("nothing").has_value());
  EXPECT_FALSE(node.find_section("absent").has_value());
  EXPECT_TRUE(node.find_section("empty").has_value());
  EXPECT_EQ(node.section("gate").get<std::int64_t>("rank", 4), 4);
  EXPECT_TRUE(node.list("absent_list").empty());
  EXPECT_FALSE(node.has("eps")) << "a default is not written";
  node.finish();
}

TEST(ConfigNodeTest, SectionsNameTheirPath) {
  const ConfigNode node = parse_config("model:\n  norm: {eps: x}\n  blocks:\n  - {dim: 3}\n  - {dm: 4}\n", "m.yaml");
  const ConfigNode model = node.require_section("model");
  EXPECT_EQ(error_of([&] { model.section("norm").get<double>("eps", 0); }),
            "m.yaml:2:15: model.norm.eps: found 'x', expected a number");
  const std::vector<ConfigNode> blocks = model.list("blocks");
  ASSERT_EQ(blocks.size(), 2u);
  EXPECT_EQ(blocks[0].require<int>("dim"), 3);
  EXPECT_EQ(error_of([&] { blocks[1].require<int>("dim"); }),
            "m.yaml:5:5: missing key 'dim' in model.blocks.1, expected an integer; is 'dm' at m.yaml:5:6 meant?");
  EXPECT_EQ(error_of([&] { blocks[0].fail("dim", "found 3, expected an even number"); }),
            "m.yaml:4:11: model.blocks.0.dim: found 3, expected an even number");
  EXPECT_EQ(error_of([&] { model.fail("no norm fits"); }), "m.yaml:1:1: model: no norm fits");
  EXPECT_EQ(error_of([&] { model.fail("heads", "found 4"); }), "m.yaml:1:1: model.heads: found 4")
      << "an unwritten key is reported at its section";
}

TEST(ConfigNodeTest, KnownKeysAreThoseAskedFor) {
  const ConfigNode node = parse_config("type: rms_norm\ngroup: 2\n", "m.yaml");
  node.require<std::string>("type");
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:2:1: unknown key 'group', expected one of base, type");
  node.get<std::int64_t>("groups", 1);
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:2:1: unknown key 'group'; did you mean 'groups'?");
  node.get<std::int64_t>("group", 1);
  node.finish();
}

TEST(ConfigNodeTest, CopiesShareWhatWasAsked) {
  const ConfigNode node = parse_config("norm: {eps: 1}\n");
  const ConfigNode first = node.section("norm");
  const ConfigNode second = node.section("norm");
  first.get<double>("eps", 0);
  second.finish();
}

TEST(ConfigNodeTest, ScalarsAreReplacedInACopy) {
  const ConfigNode node = parse_config("norm: {dim: n, name: n}\nshape: [n, 3]\n", "m.yaml");
  const ConfigNode copy = node.with_scalars([](const std::string& text) { return text == "n" ? "4" : text; });
  EXPECT_EQ(copy.require<std::vector<int>>("shape"), (std::vector<int>{4, 3}));
  EXPECT_EQ(copy.section("norm").require<int>("dim"), 4);
  EXPECT_EQ(error_of([&] { copy.section("norm").finish(); }),
            "m.yaml:1:16: unknown key 'name' in norm, expected one of dim")
      << "with the places of the original";
  EXPECT_EQ(node.section("norm").require<std::string>("dim"), "n");
  EXPECT_EQ(node.require<std::vector<std::string>>("shape"), (std::vector<std::string>{"n", "3"}));
}

TEST(ConfigNodeTest, ChoicesAreNames) {
  enum class Position { pre, post };
  const Choices<Position> choices = {{"pre", Position::pre}, {"post", Position::post}};
  const ConfigNode node = parse_config("position: pre\nbad: [1]\ndtype: float16\n", "m.yaml");
  EXPECT_EQ(node.get_choice<Position>("position", Position::post, choices), Position::pre);
  EXPECT_EQ(node.get_choice<Position>("absent", Position::post, choices), Position::post);
  EXPECT_EQ(node.require_choice<Position>("position", choices), Position::pre);
  EXPECT_EQ(error_of([&] { node.require_choice<Position>("bad", choices); }),
            "m.yaml:2:6: bad: found a list, expected one of pre, post");
  EXPECT_EQ(node.require_choice<DType>("dtype", dtype_choices()), DType::float16);
  EXPECT_NE(node.dump().find("absent: post"), std::string::npos);
}

TEST(ConfigNodeTest, RangesDescribeThemselves) {
  EXPECT_EQ(Range::any().describe(), "");
  EXPECT_EQ(Range::positive().describe(), " > 0");
  EXPECT_EQ(Range::at_least(1).describe(), " >= 1");
  EXPECT_EQ(Range::between(0, 0.5).describe(), " in [0, 0.5]");
  EXPECT_EQ(Range::inside(0, 1).describe(), " in (0, 1)");
  EXPECT_EQ(Range::from_below(0, 1).describe(), " in [0, 1)");
  EXPECT_FALSE(Range::inside(0, 1).contains(1));
  EXPECT_FALSE(Range::inside(0, 1).contains(0));
  EXPECT_TRUE(Range::from_below(0, 1).contains(0));
}

TEST(ConfigNodeTest, DumpReadsBackEqual) {
  const ConfigNode node = parse_config(
      "text: \"12\"\nnull_text: \"null\"\nline: \"a: b\\n\\t- é #\"\nempty_text: ''\nnumber: 1.0e-6\n"
      "nested: {list: [1, [2, 3], {a: b}], empty: {}, none: ~}\nempty_list: []\nmultiline: |\n  a\n  b\n");
  node.get<double>("pi", 3.141592653589793);
  node.get<float>("tenth", 0.1f);
  node.get<bool>("flag", false);
  node.get<std::string>("blank", "");
  node.get<std::string>("odd", "- *x: {");
  node.get<std::vector<double>>("betas", {0.9, 0.95});
  const std::string text = node.dump();
  const ConfigNode again = parse_config(text);
  EXPECT_EQ(again.dump(), text);
  EXPECT_EQ(again.require<std::string>("line"), "a: b\n\t- é #");
  EXPECT_EQ(again.require<std::string>("null_text"), "null");
  EXPECT_EQ(again.require<std::string>("multiline"), "a\nb\n");
  EXPECT_EQ(again.require<std::string>("blank"), "");
  EXPECT_EQ(again.require<std::string>("odd"), "- *x: {");
  EXPECT_EQ(again.require<double>("pi"), 3.141592653589793);
  EXPECT_EQ(again.require<float>("tenth"), 0.1f);
  EXPECT_EQ(again.require<std::vector<double>>("betas"), (std::vector<double>{0.9, 0.95}));
  EXPECT_THROW(again.require<int>("text"), ConfigError) << "quoted text stays text";
}

}  // namespace
}  // namespace heddle
