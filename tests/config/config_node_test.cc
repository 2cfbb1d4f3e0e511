#include "core/config/config_node.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "tests/error_of.h"

namespace heddle {
namespace {

using testing::error_of;

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

TEST(ConfigNodeTest, NumbersAreDecimalAndFinite) {
  const auto number = [](const std::string& text) { return parse_config("x: " + text + "\n").require<double>("x"); };
  EXPECT_EQ(number("-.25e+2"), -25.0);
  EXPECT_EQ(number("5."), 5.0);
  EXPECT_EQ(number("0.1"), 0.1);
  EXPECT_EQ(number("1E-7"), 1e-7);
  EXPECT_EQ(number("5e-324"), 5e-324);
  for (const char* text : {"0x10", "0x1p3", "inf", "-nan", ".inf", "1e", "1e+", ".", "e5", "--1", "++1", "+-1", "1,5",
                           "1.5.2", "1 2", "1_000", "1f"}) {
    EXPECT_EQ(error_of([&] { number(text); }), std::string("config:1:4: x: found '") + text + "', expected a number");
  }
  for (const char* text : {"1e400", "-1e400", "1e-400"}) {
    EXPECT_EQ(error_of([&] { number(text); }),
              std::string("config:1:4: x: found '") + text + "', which 64 bits cannot hold, expected a number");
  }
  EXPECT_EQ(number("0e-400"), 0.0);
  EXPECT_EQ(error_of([] { parse_config("x: +-1\n").require<int>("x"); }),
            "config:1:4: x: found '+-1', expected an integer");
  EXPECT_EQ(parse_config("x: +12\n").require<int>("x"), 12);
}

TEST(ConfigNodeTest, AbsentKeysGiveDefaults) {
  const ConfigNode node = parse_config("nothing: ~\nempty: {}\n");
  EXPECT_EQ(node.get<double>("eps", 1e-5), 1e-5);
  EXPECT_EQ(node.get<double>("eps", 1e-6), 1e-6) << "no default is kept";
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
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:2:1: unknown key 'group', expected one of type");
  node.get<std::int64_t>("groups", 1);
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:2:1: unknown key 'group'; did you mean 'groups'?");
  node.get<std::int64_t>("group", 1);
  node.finish();
}

TEST(ConfigNodeTest, CopiesAndSectionsAskedForTwiceShareWhatWasAsked) {
  const ConfigNode node = parse_config("norm: {eps: 1, groups: 2}\nlayers:\n- {dim: 3}\n", "m.yaml");
  const ConfigNode copy = node;
  const ConfigNode first = node.section("norm");
  const ConfigNode second = copy.require_section("norm");
  first.get<double>("eps", 0);
  EXPECT_EQ(error_of([&] { second.finish(); }), "m.yaml:1:16: unknown key 'groups' in norm, expected one of eps");
  second.get<int>("groups", 1);
  first.finish();
  EXPECT_EQ(error_of([&] { copy.finish(); }), "m.yaml:2:1: unknown key 'layers', expected one of norm");
  node.list("layers").front().require<int>("dim");
  copy.list("layers").front().finish();
  copy.finish();
}

TEST(ConfigNodeTest, FinishReachesEverySectionThatWasAskedFor) {
  const ConfigNode node = parse_config(
      "model:\n  norm: {epz: 1}\n  blocks:\n  - {dim: 3}\n  - {dim: 4, dmi: 5}\n  gate: {rank: 3}\n", "m.yaml");
  const ConfigNode model = node.section("model");
  model.section("norm").get<double>("eps", 0);
  for (const ConfigNode& block : model.list("blocks")) block.require<int>("dim");
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:6:3: unknown key 'gate' in model, expected one of norm, blocks")
      << "a section comes before what is in it";
  EXPECT_TRUE(model.find_section("gate").has_value());
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:2:10: unknown key 'epz' in model.norm; did you mean 'eps'?");
  EXPECT_EQ(error_of([&] { model.finish(); }), error_of([&] { node.finish(); })) << "from any node on the way";
  model.section("norm").get<double>("epz", 0);
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:5:14: unknown key 'dmi' in model.blocks.1; did you mean 'dim'?");
  model.list("blocks")[0].finish();
  EXPECT_NE(error_of([&] { model.list("blocks")[1].finish(); }), "no error");
  model.list("blocks")[1].get<int>("dmi", 0);
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:6:10: unknown key 'rank' in model.gate, expected no keys")
      << "asking for a section does not read it";
  model.section("gate").require<int>("rank");
  node.finish();
}

TEST(ConfigNodeTest, FinishReachesSectionsOfSectionsThatAreNotWritten) {
  const ConfigNode node = parse_config("seed: 1\n");
  node.section("model").section("norm").get<double>("eps", 0);
  EXPECT_EQ(error_of([&] { node.finish(); }), "config:1:1: unknown key 'seed', expected one of model");
  node.get<int>("seed", 0);
  node.finish();
}

TEST(ConfigNodeTest, AKeyOfASectionBelowIsSuggested) {
  const ConfigNode node = parse_config("lr: 1\nblocks:\n- {}\n- {}\n- {}\n- {}\n", "m.yaml");
  node.section("optimizer").get<double>("lr", 0);
  for (const ConfigNode& block : node.list("blocks")) block.section("norm").get<double>("eps", 0);
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:1:1: unknown key 'lr'; did you mean 'optimizer.lr'?");
  node.section("model").section("head").get<double>("lr", 0);
  EXPECT_EQ(error_of([&] { node.finish(); }),
            "m.yaml:1:1: unknown key 'lr'; did you mean 'optimizer.lr' or 'model.head.lr'?");
  const ConfigNode many = parse_config("eps: 1\nblocks: [{}, {}, {}, {}]\n", "m.yaml");
  for (const ConfigNode& block : many.list("blocks")) block.get<double>("eps", 0);
  EXPECT_EQ(error_of([&] { many.finish(); }), "m.yaml:1:1: unknown key 'eps', expected one of blocks");
}

TEST(ConfigNodeTest, AliasesAreReadApart) {
  const ConfigNode node = parse_config("a: &same {x: 1, y: 2}\nb: *same\n", "m.yaml");
  for (const char* key : {"x", "y"}) node.section("a").require<int>(key);
  node.section("b").require<int>("x");
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:1:17: unknown key 'y' in b, expected one of x");
}

TEST(ConfigNodeTest, ReadingChangesNothing) {
  const std::string text = "seed: 1\nmodel:\n  norm:\n    eps: 1\nblocks:\n  - dim: 3\n";
  const ConfigTree tree = parse_yaml(text, "m.yaml");
  for (int pass = 0; pass < 2; ++pass) {
    const ConfigNode node(tree);
    EXPECT_EQ(node.get<int>("seed", 7), 1);
    EXPECT_EQ(node.get<int>("steps", 100 + pass), 100 + pass);
    EXPECT_EQ(node.get_name("type", "adamw", {"adamw"}), "adamw");
    EXPECT_EQ(node.section("trainer").get<int>("batch", 8), 8);
    EXPECT_EQ(node.section("model").section("norm").get<double>("eps", 0), 1);
    EXPECT_EQ(node.list("blocks").at(0).get<int>("dim", 0), 3);
    EXPECT_FALSE(node.has("steps"));
    EXPECT_EQ(node.keys(), (std::vector<std::string>{"seed", "model", "blocks"}));
    EXPECT_EQ(node.location_of("steps").to_string(), "m.yaml:1:1") << "the place of a key that is not written";
    EXPECT_EQ(node.dump(), text);
    node.finish();
  }
  EXPECT_EQ(to_yaml(*tree), text);
}

TEST(ConfigNodeTest, TwoReadersOfOneTreeAreApart) {
  const ConfigTree tree = parse_yaml("norm: {eps: 1}\n", "m.yaml");
  const ConfigNode first(tree);
  const ConfigNode second(tree);
  first.section("norm").require<double>("eps");
  first.finish();
  second.section("norm");
  EXPECT_EQ(error_of([&] { second.finish(); }), "m.yaml:1:8: unknown key 'eps' in norm, expected no keys");
  EXPECT_EQ(error_of([&] { ConfigNode(tree).finish(); }), "m.yaml:1:1: unknown key 'norm', expected no keys");
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

TEST(ConfigNodeTest, TheReaderOfACopyFinishesIt) {
  const ConfigNode node = parse_config("options: {dim: n, gate: {rank: n}}\nseed: 1\n", "m.yaml");
  const ConfigNode copy = node.section("options").with_scalars([](const std::string&) { return "4"; });
  EXPECT_EQ(error_of([&] { node.finish(); }), "m.yaml:2:1: unknown key 'seed', expected one of options");
  node.require<int>("seed");
  node.finish();
  EXPECT_EQ(copy.require<int>("dim"), 4);
  EXPECT_EQ(error_of([&] { copy.finish(); }), "m.yaml:1:19: unknown key 'gate' in options, expected one of dim");
  copy.section("gate").require<int>("rank");
  copy.finish();
}

TEST(ConfigNodeTest, ChoicesAreNames) {
  enum class Position { pre, post };
  const Choices<Position> choices = {{"pre", Position::pre}, {"post", Position::post}};
  const ConfigNode node = parse_config("position: pre\nbad: [1]\n", "m.yaml");
  EXPECT_EQ(node.get_choice<Position>("position", Position::post, choices), Position::pre);
  EXPECT_EQ(node.get_choice<Position>("absent", Position::post, choices), Position::post);
  EXPECT_EQ(node.require_choice<Position>("position", choices), Position::pre);
  EXPECT_EQ(error_of([&] { node.require_choice<Position>("bad", choices); }),
            "m.yaml:2:6: bad: found a list, expected one of pre, post");
  EXPECT_EQ(error_of([&] { node.require_choice<Position>("absent", choices); }),
            "m.yaml:1:1: missing key 'absent', expected one of pre, post");
  EXPECT_EQ(node.get_choice<Position>("absent", Position::post, {{"pre", Position::pre}}), Position::post)
      << "a default needs no name";
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
  const std::string text = node.dump();
  const ConfigNode again = parse_config(text);
  EXPECT_EQ(again.dump(), text);
  EXPECT_EQ(again.require<std::string>("line"), "a: b\n\t- é #");
  EXPECT_EQ(again.require<std::string>("null_text"), "null");
  EXPECT_EQ(again.require<std::string>("empty_text"), "");
  EXPECT_EQ(again.require<std::string>("multiline"), "a\nb\n");
  EXPECT_EQ(again.require<double>("number"), 1e-6);
  EXPECT_EQ(again.section("nested").section("empty").keys(), std::vector<std::string>{});
  EXPECT_FALSE(again.section("nested").has("none"));
  EXPECT_TRUE(again.require<std::vector<int>>("empty_list").empty());
  EXPECT_THROW(again.require<int>("text"), ConfigError) << "quoted text stays text";
}

}  // namespace
}  // namespace heddle
