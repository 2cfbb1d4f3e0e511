#include "core/config/config_fields.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/config/config_load.h"
#include "tests/error_of.h"

namespace heddle {
namespace {

using testing::error_of;

enum class Position { pre, post };
const Choices<Position> positions = {{"pre", Position::pre}, {"post", Position::post}, {"behind", Position::post}};

struct Gate {
  Position position = Position::post;
  std::int64_t rank = 32;

  bool operator==(const Gate&) const = default;
};

// One member of each kind.
struct Options {
  std::string type = "lightning";
  std::int64_t steps = 1;
  int count = -3;
  std::uint64_t seed = std::numeric_limits<std::uint64_t>::max();
  float slope = 0.1f;
  double lr = 3e-4;
  bool tied = true;
  std::string text = "off";
  std::vector<double> betas = {0.9, 0.95};
  std::vector<std::string> words;
  std::vector<bool> flags = {true, false};
  std::optional<double> clip;
  std::optional<std::int64_t> batches = 20;
  Position position = Position::post;
  Position required_position = Position::pre;
  double eps = 1e-5;
  std::int64_t dim = 16;
  std::optional<Gate> gate;

  bool operator==(const Options&) const = default;
};

void describe_gate(ConfigFields& fields, Gate& gate) {
  fields.choice("position", gate.position, positions);
  fields.field("rank", gate.rank, Range::at_least(0));
}

void describe(ConfigFields& fields, Options& options) {
  fields.required_name("type", options.type, {"lightning", "retention", "12"});
  fields.required("steps", options.steps, Range::positive());
  fields.field("count", options.count);
  fields.field("seed", options.seed);
  fields.field("slope", options.slope);
  fields.field("lr", options.lr, Range::positive());
  fields.field("tied", options.tied);
  fields.field("text", options.text);
  fields.field("betas", options.betas, Range::from_below(0, 1));
  fields.field("words", options.words);
  fields.field("flags", options.flags);
  fields.optional("clip", options.clip, Range::positive());
  fields.number_or_word("batches", options.batches, "all", Range::positive());
  fields.choice("position", options.position, positions);
  fields.required_choice("required_position", options.required_position, positions);
  fields.section("norm", [&](ConfigFields& norm) { norm.field("eps", options.eps, Range::positive()); });
  fields.required_section("model", [&](ConfigFields& model) {
    model.required("dim", options.dim);
    if (model.reads() && options.dim % 2 != 0) model.fail("dim", "found an odd number, expected an even one");
  });
  fields.optional_section<Gate>("gate", options.gate, describe_gate);
}

const std::string least = "type: lightning\nsteps: 1\nrequired_position: pre\nmodel: {dim: 16}\n";

Options read(const std::string& text, Options options = {}) {
  const ConfigNode node = parse_config(text, "m.yaml");
  ConfigFields fields(node);
  describe(fields, options);
  node.finish();
  return options;
}

std::string written(Options options) {
  const Options before = options;
  ConfigValue map;
  ConfigFields fields(map);
  describe(fields, options);
  EXPECT_EQ(options, before) << "writing changes nothing in the struct";
  return to_yaml(map);
}

TEST(ConfigFieldsTest, KeepsTheDefaultsOfWhatIsNotWritten) {
  EXPECT_EQ(read(least), Options{});
  Options others;
  others.count = 5;
  others.text = "other";
  others.betas = {0.5};
  others.position = Position::pre;
  others.eps = 0.5;
  EXPECT_EQ(read(least, others), others);
}

TEST(ConfigFieldsTest, ReadsEachKind) {
  const Options options = read(
      "type: retention\nsteps: 7\ncount: 8\nseed: 9\nslope: 0.5\nlr: 1.0e-2\ntied: false\ntext: \"12\"\n"
      "betas: [0.5]\nwords: [a, b]\nflags: []\nclip: 2\nposition: pre\nrequired_position: behind\n"
      "norm: {eps: 0.25}\nmodel: {dim: 64}\ngate: {rank: 0}\n");
  EXPECT_EQ(options.type, "retention");
  EXPECT_EQ(options.steps, 7);
  EXPECT_EQ(options.count, 8);
  EXPECT_EQ(options.seed, 9u);
  EXPECT_EQ(options.slope, 0.5f);
  EXPECT_EQ(options.lr, 0.01);
  EXPECT_FALSE(options.tied);
  EXPECT_EQ(options.text, "12");
  EXPECT_EQ(options.betas, std::vector<double>{0.5});
  EXPECT_EQ(options.words, (std::vector<std::string>{"a", "b"}));
  EXPECT_TRUE(options.flags.empty());
  EXPECT_EQ(options.clip, 2.0);
  EXPECT_EQ(options.position, Position::pre);
  EXPECT_EQ(options.required_position, Position::post);
  EXPECT_EQ(options.eps, 0.25);
  EXPECT_EQ(options.dim, 64);
  EXPECT_EQ(options.gate, (Gate{Position::post, 0}));
}

TEST(ConfigFieldsTest, WritesInTheOrderOfTheDescription) {
  Options options;
  EXPECT_EQ(written(options),
            "type: lightning\nsteps: 1\ncount: -3\nseed: 18446744073709551615\nslope: 0.1\nlr: 3.0e-04\ntied: true\n"
            "text: \"off\"\nbetas: [0.9, 0.95]\nwords: []\nflags: [true, false]\nbatches: 20\nposition: post\n"
            "required_position: pre\nnorm:\n  eps: 1.0e-05\nmodel:\n  dim: 16\n");
  options.clip = 1;
  options.gate = Gate{};
  EXPECT_NE(written(options).find("clip: 1\nbatches"), std::string::npos);
  EXPECT_TRUE(written(options).ends_with("\ngate:\n  position: post\n  rank: 32\n"));
}

TEST(ConfigFieldsTest, AnOptionalIsNoneWhereItIsNullOrNotWritten) {
  Options options;
  options.clip = 3;
  options.gate = Gate{.rank = 5};
  EXPECT_EQ(read(written(options)), options);
  for (const std::string& end : {std::string(), std::string("clip: ~\ngate: ~\n")}) {
    const Options none = read(least + end, options);
    EXPECT_FALSE(none.clip.has_value());
    EXPECT_FALSE(none.gate.has_value());
    EXPECT_EQ(read(written(none), options), none);
  }
  EXPECT_EQ(read(least + "gate: {}\n", options).gate, (Gate{.rank = 5})) << "its defaults are those of the struct";
  EXPECT_EQ(read(least + "gate: {}\n").gate, Gate{});
}

TEST(ConfigFieldsTest, AWordMayStandForNoNumber) {
  EXPECT_EQ(read(least).batches, 20);
  EXPECT_EQ(read(least + "batches: 3\n").batches, 3);
  const Options all = read(least + "batches: all\n");
  EXPECT_FALSE(all.batches.has_value());
  EXPECT_NE(written(all).find("batches: all\n"), std::string::npos);
  EXPECT_EQ(read(written(all)), all);
  EXPECT_EQ(error_of([] { read(least + "batches: 0\n"); }),
            "m.yaml:5:10: batches: found '0', expected an integer > 0, or all");
  EXPECT_EQ(error_of([] { read(least + "batches:\n"); }),
            "m.yaml:5:1: batches: found nothing, expected an integer > 0, or all");
}

TEST(ConfigFieldsTest, ErrorsNameTheirPlace) {
  EXPECT_EQ(error_of([] { read("steps: 1\n"); }),
            "m.yaml:1:1: missing key 'type', expected one of lightning, retention, 12");
  EXPECT_EQ(error_of([] { read("type: lightnin\n"); }),
            "m.yaml:1:7: type: found 'lightnin', expected one of lightning, retention, 12; did you mean 'lightning'?");
  EXPECT_EQ(error_of([] { read("type: lightning\n"); }), "m.yaml:1:1: missing key 'steps', expected an integer > 0");
  EXPECT_EQ(error_of([] { read(least + "lr: 0\n"); }), "m.yaml:5:5: lr: found '0', expected a number > 0");
  EXPECT_EQ(error_of([] { read(least + "count:\n"); }), "m.yaml:5:1: count: found nothing, expected an integer");
  EXPECT_EQ(error_of([] { read(least + "betas: [0, 1]\n"); }),
            "m.yaml:5:12: betas.1: found '1', expected a number in [0, 1)");
  EXPECT_EQ(error_of([] { read(least + "clip: -1\n"); }), "m.yaml:5:7: clip: found '-1', expected a number > 0");
  EXPECT_EQ(error_of([] { read(least + "position: pst\n"); }),
            "m.yaml:5:11: position: found 'pst', expected one of pre, post, behind; did you mean 'post'?");
  EXPECT_EQ(error_of([] { read("type: lightning\nsteps: 1\n"); }),
            "m.yaml:1:1: missing key 'required_position', expected one of pre, post, behind");
  EXPECT_EQ(error_of([] { read("type: lightning\nsteps: 1\nrequired_position: pre\n"); }),
            "m.yaml:1:1: missing key 'model', expected a map of keys and values");
  EXPECT_EQ(error_of([] { read(least + "norm: {eps: x}\n"); }),
            "m.yaml:5:13: norm.eps: found 'x', expected a number > 0");
  EXPECT_EQ(error_of([] { read(least + "gate: {rank: -1}\n"); }),
            "m.yaml:5:14: gate.rank: found '-1', expected an integer >= 0");
  EXPECT_EQ(error_of([] { read("type: lightning\nsteps: 1\nrequired_position: pre\nmodel: {dim: 3}\n"); }),
            "m.yaml:4:14: model.dim: found an odd number, expected an even one");
}

TEST(ConfigFieldsTest, TheRootFinishesWhatIsDescribed) {
  EXPECT_EQ(error_of([] { read(least + "wheels: 4\n"); }).substr(0, 33), "m.yaml:5:1: unknown key 'wheels',");
  EXPECT_EQ(error_of([] { read(least + "norm: {epz: 1}\n"); }),
            "m.yaml:5:8: unknown key 'epz' in norm; did you mean 'eps'?");
  EXPECT_EQ(error_of([] { read(least + "gate: {ranc: 1}\n"); }),
            "m.yaml:5:8: unknown key 'ranc' in gate; did you mean 'rank'?");
}

TEST(ConfigFieldsTest, EqualValuesGiveEqualText) {
  const std::vector<std::pair<std::string, std::string>> same = {{"lr: 0.01", "lr: 1.0e-2"},
                                                                 {"lr: 3", "lr: +3.00"},
                                                                 {"slope: 0.1", "slope: 1.0e-1"},
                                                                 {"count: 7", "count: +7"},
                                                                 {"text: abc", "text: 'abc'"},
                                                                 {"text: 12", "text: \"12\""},
                                                                 {"words: [a, b]", "words:\n- a\n- \"b\""},
                                                                 {"position: post", "position: behind"},
                                                                 {"norm: {}", "count: -3"},
                                                                 {"betas: [0.9, 0.95]", "betas: [9.0e-1, 0.950]"},
                                                                 {"clip: ~", "gate: ~"},
                                                                 {"gate: {}", "gate:\n  rank: 32"}};
  for (const auto& [one, other] : same) {
    EXPECT_EQ(written(read(least + one + "\n")), written(read(least + other + "\n"))) << one;
  }
}

TEST(ConfigFieldsTest, NumbersReadBackEqual) {
  for (const double value : {0.1, 1.0 / 3, 1e-300, 5e-324, 1.7976931348623157e308, 123456789.0, 1e22, 100.0, 2.5e-5}) {
    for (const double number : {value, -value}) {
      Options options;
      options.lr = value;
      options.words = {"x"};
      options.betas = {0.0, value < 1 ? value : 0.5};
      options.slope = static_cast<float>(number / 1e300);
      options.count = number > 0 ? std::numeric_limits<int>::max() : std::numeric_limits<int>::min();
      options.dim =
          number > 0 ? std::numeric_limits<std::int64_t>::max() - 1 : std::numeric_limits<std::int64_t>::min();
      const std::string text = written(options);
      EXPECT_EQ(read(text), options) << text;
      EXPECT_EQ(written(read(text)), text);
    }
  }
  for (const float value : {0.1f, 1e-38f, 1e-45f, 3.4028235e38f, 16777216.0f, 0.3f}) {
    Options options;
    options.slope = value;
    EXPECT_EQ(read(written(options)), options);
  }
}

TEST(ConfigFieldsTest, TextReadsBackEqual) {
  const std::vector<std::string> texts = {"",
                                          "~",
                                          "null",
                                          "Null",
                                          "true",
                                          "False",
                                          "yes",
                                          "NO",
                                          "on",
                                          "off",
                                          "y",
                                          "12",
                                          "-3",
                                          "+.5",
                                          "1e6",
                                          "0x1f",
                                          "1_000",
                                          "1:30",
                                          ".inf",
                                          "-.INF",
                                          ".nan",
                                          "nan",
                                          "inf",
                                          "a b",
                                          " a",
                                          "a ",
                                          "a: b",
                                          "a:b",
                                          "a #b",
                                          "a#b",
                                          "#a",
                                          "- a",
                                          "-",
                                          "-a",
                                          "?",
                                          "? a",
                                          "[a",
                                          "a]",
                                          "{a",
                                          "a}",
                                          "a, b",
                                          ",",
                                          "&a",
                                          "*a",
                                          "!a",
                                          "|",
                                          ">",
                                          "%a",
                                          "@a",
                                          "`a",
                                          "'a'",
                                          "\"a\"",
                                          "it's",
                                          "back\\s",
                                          "a\nb",
                                          "\n",
                                          "a\tb",
                                          "\ttab",
                                          "a\rb",
                                          "é",
                                          "日本",
                                          "😀",
                                          "---",
                                          "...",
                                          "<<",
                                          "=",
                                          "\x01b",
                                          "\x7f",
                                          "a:",
                                          ":a",
                                          "http://x:1/y?z#t",
                                          "2024-01-01",
                                          "key: [1, 2]",
                                          "C:\\x",
                                          "\xc2\x85",
                                          "\xe2\x80\xa8",
                                          "\xef\xbb\xbf"
                                          "a",
                                          std::string(3000, 'a'),
                                          std::string(300, ' ') + "b"};
  for (const std::string& value : texts) {
    Options options;
    options.text = value;
    options.words = {value, "x", value};
    const std::string text = written(options);
    EXPECT_EQ(read(text), options) << text;
    EXPECT_EQ(written(read(text)), text);
  }
}

TEST(ConfigFieldsTest, QuotesTextThatLooksLikeSomethingElse) {
  for (const char* text :
       {"12", "-3", ".5", "1e6", "true", "No", "off", "null", "~", "", ".inf", "2024-01-01", "=", "<<", "1:30", "-a"}) {
    EXPECT_TRUE(needs_quotes(text)) << text;
    Options options;
    options.text = text;
    EXPECT_NE(written(options).find("text: \"" + std::string(text) + "\"\n"), std::string::npos) << text;
  }
  for (const char* text : {"silu", "a12", "none", "data/text.txt", "../x", ".", "a-b", "nothing", "truth"}) {
    EXPECT_FALSE(needs_quotes(text)) << text;
  }
  Options options;
  options.type = "12";
  EXPECT_EQ(written(options).substr(0, 11), "type: \"12\"\n") << "so does a name";
  EXPECT_EQ(read(written(options)), options);
}

TEST(ConfigFieldsTest, AnEmptySectionReadsBack) {
  ConfigValue map;
  ConfigFields fields(map);
  EXPECT_EQ(to_yaml(map), "{}\n");
  fields.section("norm", [](ConfigFields&) {});
  fields.section("model", [](ConfigFields& model) { model.section("inner", [](ConfigFields&) {}); });
  const std::string text = to_yaml(map);
  EXPECT_EQ(text, "norm:\n  {}\nmodel:\n  inner:\n    {}\n");
  const ConfigNode node = parse_config(text);
  EXPECT_TRUE(node.require_section("norm").keys().empty());
  EXPECT_TRUE(node.require_section("model").require_section("inner").keys().empty());
  EXPECT_EQ(node.dump(), text);
  node.finish();
}

TEST(ConfigFieldsTest, RefusesToWriteWhatCannotBeReadBack) {
  Options options;
  options.lr = std::numeric_limits<double>::infinity();
  EXPECT_EQ(error_of([&] { written(options); }), "lr is inf, expected a finite number: a config cannot hold another");
  options = {};
  options.betas[1] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(written(options), Error);
  options = {};
  options.type = "lightnin";
  EXPECT_EQ(error_of([&] { written(options); }),
            "type has a value without a name, expected one of lightning, retention, 12");
  options = {};
  options.position = static_cast<Position>(7);
  EXPECT_EQ(error_of([&] { written(options); }),
            "position has a value without a name, expected one of pre, post, behind");
  ConfigValue map;
  ConfigFields fields(map);
  fields.field("count", options.count);
  EXPECT_EQ(error_of([&] { fields.field("count", options.count); }), "count is described twice");
}

TEST(ConfigFieldsTest, KnowsWhetherItReads) {
  const ConfigNode node = parse_config("model: {dim: 3}\n", "m.yaml");
  const ConfigFields reading(node.section("model"));
  EXPECT_TRUE(reading.reads());
  EXPECT_EQ(reading.node().path(), "model");
  EXPECT_EQ(error_of([&] { reading.fail("dim", "found 3"); }), "m.yaml:1:14: model.dim: found 3");
  EXPECT_EQ(error_of([&] { reading.fail("heads", "found none"); }), "m.yaml:1:1: model.heads: found none");
  ConfigValue map;
  const ConfigFields writing(map);
  EXPECT_FALSE(writing.reads());
  EXPECT_THROW(writing.node(), Error);
  EXPECT_EQ(error_of([&] { writing.fail("dim", "found 3"); }), "dim: found 3");
}

}  // namespace
}  // namespace heddle
