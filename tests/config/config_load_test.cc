#include "core/config/config_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "core/config/nearest_name.h"
#include "tests/error_of.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;

class ConfigLoadTest : public ::testing::Test {
 protected:
  void SetUp() override { fs::create_directories(folder_ / "sub"); }

  void write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name) << text; }
  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  ConfigNode load(const std::string& name, const std::vector<std::string>& overrides = {}) const {
    return load_config(path(name), overrides);
  }

  testing::TempFolder folder_;
};

TEST_F(ConfigLoadTest, FileWinsOverItsBaseKeyByKey) {
  write("base.yaml", "seed: 1\na: {x: 1, y: 2, deep: {p: 1, q: 2}}\nlist: [1, 2, 3]\nkept: yes it is\n");
  write("main.yaml", "base: base.yaml\na: {y: 20, z: 30, deep: {q: 20}}\nlist: [9]\nseed: 2\n");
  const ConfigNode node = load("main.yaml");
  EXPECT_EQ(node.dump(),
            "seed: 2\na:\n  x: 1\n  \"y\": 20\n  deep:\n    p: 1\n    q: 20\n  z: 30\nlist: [9]\nkept: yes it is\n");
}

TEST_F(ConfigLoadTest, EachValueKeepsItsOrigin) {
  write("base.yaml", "a:\n  x: 1\n  y: 2\n");
  write("main.yaml", "base: base.yaml\n\na:\n  y: 20\n");
  const ConfigNode node = load("main.yaml", {"a.z=3"});
  const ConfigNode a = node.section("a");
  EXPECT_EQ(a.location_of("x").to_string(), path("base.yaml") + ":2:6");
  EXPECT_EQ(a.location_of("y").to_string(), path("main.yaml") + ":4:6");
  EXPECT_EQ(a.location_of("z").to_string(), "--set a.z=3");
}

TEST_F(ConfigLoadTest, WhatNeverEndsIsNoConfig) {
  EXPECT_EQ(testing::error_of([] { load_config("/dev/zero"); }),
            "/dev/zero: cannot read '/dev/zero': it has more than 16 MiB, expected a config");
}

TEST_F(ConfigLoadTest, OnlyAFileMayNameABase) {
  write("main.yaml", "a: 1\nwheels: 4\n");
  const auto refusal = [&](const std::vector<std::string>& overrides) {
    const ConfigNode node = load("main.yaml", overrides);
    node.require<int64_t>("a");
    return testing::error_of([&] { node.finish(); });
  };
  EXPECT_EQ(refusal({}), path("main.yaml") + ":2:1: unknown key 'wheels', expected one of base, a");
  EXPECT_EQ(refusal({"wheels=3"}), "--set wheels=3: unknown key 'wheels', expected one of a");
}

// The file lacks the key, whatever is set beside it.
TEST_F(ConfigLoadTest, AMissingKeyIsSaidOfTheFile) {
  write("main.yaml", "a: 1\n");
  for (const std::vector<std::string>& overrides : {std::vector<std::string>{}, {"b=2"}}) {
    EXPECT_THAT(
        [&] { (void)load("main.yaml", overrides).require<int64_t>("c"); },
        ::testing::ThrowsMessage<std::exception>(::testing::StartsWith(path("main.yaml") + ":1:1: missing key 'c'")));
  }
}

TEST_F(ConfigLoadTest, BasesChainAndAreRelativeToTheirFile) {
  write("sub/first.yaml", "a: 1\nb: 1\nc: 1\n");
  write("second.yaml", "base: sub/first.yaml\nb: 2\nc: 2\n");
  write("sub/third.yaml", "base: ../second.yaml\nc: 3\n");
  EXPECT_EQ(load("sub/third.yaml").dump(), "a: 1\nb: 2\nc: 3\n");
}

TEST_F(ConfigLoadTest, ANewTypeReplacesTheSection) {
  write("base.yaml", "mixer: {type: lightning, heads: 4}\nnorm: {type: rms_norm, eps: 1}\n");
  write("main.yaml", "base: base.yaml\nmixer: {type: retention, slopes: 1}\nnorm: {type: rms_norm, weight: true}\n");
  EXPECT_EQ(load("main.yaml").dump(),
            "mixer:\n  type: retention\n  slopes: 1\nnorm:\n  type: rms_norm\n  eps: 1\n  weight: true\n");
}

TEST_F(ConfigLoadTest, OverridesOfATypeBelongTogetherInAnyOrder) {
  write("main.yaml", "mixer: {type: lightning, heads: 4}\n");
  const std::string expected = "mixer:\n  slopes: 1\n  type: retention\n";
  EXPECT_EQ(load("main.yaml", {"mixer.slopes=1", "mixer.type=retention"}).dump(), expected);
  EXPECT_EQ(load("main.yaml", {"mixer.type=retention"}).dump(), "mixer:\n  type: retention\n");
}

// A section that writes no type has its default one, and keeps its keys under that alone.
TEST_F(ConfigLoadTest, ADefaultTypeIsATypeThatAnotherReplaces) {
  write("base.yaml", "optimizer: {lr: 1}\nother: {lr: 1}\n");
  write("lion.yaml", "base: base.yaml\noptimizer: {type: lion}\nother: {type: lion}\n");
  write("third.yaml", "base: lion.yaml\noptimizer: {eps: 2}\n");
  const DefaultTypes types = {{"optimizer", "adamw"}};
  const auto optimizer_of = [&](const std::string& file, const std::vector<std::string>& overrides) {
    return load_config(path(file), overrides, types).section("optimizer").dump();
  };
  EXPECT_EQ(optimizer_of("lion.yaml", {}), "type: lion\n");
  EXPECT_EQ(optimizer_of("third.yaml", {}), "type: lion\neps: 2\n") << "the type of its base";
  EXPECT_EQ(optimizer_of("base.yaml", {"optimizer.type=lion"}), "type: lion\n");
  EXPECT_EQ(optimizer_of("base.yaml", {"optimizer.eps=2", "optimizer.type=lion"}), "eps: 2\ntype: lion\n");
  EXPECT_EQ(optimizer_of("base.yaml", {"optimizer.type=adamw"}), "lr: 1\ntype: adamw\n");
  EXPECT_EQ(load_config(path("lion.yaml"), {}, types).section("other").dump(), "lr: 1\ntype: lion\n");
}

TEST_F(ConfigLoadTest, OverridesReachInheritedSectionsAndListItems) {
  write("base.yaml", "optimizer: {betas: [0.9, 0.95], lr: 1}\n");
  write("main.yaml", "base: base.yaml\nseed: 1\n");
  const ConfigNode node = load("main.yaml", {"optimizer.betas.1=0.99", "optimizer.lr=2", "new.deep.key={a: [1, b]}",
                                             "seed=5", "seed=6", "text=a=b"});
  EXPECT_EQ(
      node.dump(),
      "optimizer:\n  betas: [0.9, 0.99]\n  lr: 2\nseed: 6\nnew:\n  deep:\n    key:\n      a: [1, b]\ntext: a=b\n");
}

TEST_F(ConfigLoadTest, NullTakesAnInheritedSectionAway) {
  write("base.yaml", "gate: {rank: 3}\n");
  write("main.yaml", "base: base.yaml\ngate: ~\n");
  EXPECT_FALSE(load("main.yaml").find_section("gate").has_value());
}

TEST_F(ConfigLoadTest, AnchorsAreCopiedNotShared) {
  write("main.yaml", "a: &same {x: 1, y: [1, 2]}\nb: *same\n");
  EXPECT_EQ(load("main.yaml", {"b.x=2", "b.y.0=7"}).dump(),
            "a:\n  x: 1\n  \"y\": [1, 2]\nb:\n  x: 2\n  \"y\": [7, 2]\n");
}

// A pattern of files, which YAML would take for an alias.
TEST_F(ConfigLoadTest, AnOverrideMayBeginWithAStar) {
  const std::vector<std::string> overrides = {"data.path=*.txt"};
  EXPECT_EQ(parse_config("data: {path: a}", "c.yaml", overrides).section("data").require<std::string>("path"), "*.txt");
}

TEST_F(ConfigLoadTest, AFileThatIsNoUtf8IsRefusedWithThePlace) {
  const auto refusal = [&](const std::string& text) {
    write("main.yaml", text);
    return testing::error_of([&] { (void)load("main.yaml"); });
  };
  EXPECT_EQ(refusal("a: 1\nb: \"\xC3\xA4\xFF\"\n"),
            path("main.yaml") + ":2:6: found the byte 0xff, which is no UTF-8; expected a file in UTF-8");
  EXPECT_THAT(refusal("a: \xE2\x82"), ::testing::HasSubstr(":1:4: found the byte 0xe2"));
}

TEST_F(ConfigLoadTest, TooDeepNestingIsRefusedWithThePlace) {
  const auto nested = [](int levels, const std::string& open, const std::string& close) {
    std::string text = "a:\n  ";
    for (int i = 0; i < levels; ++i) text += open;
    for (int i = 0; i < levels; ++i) text += close;
    return text + "\n";
  };
  for (const auto& [open, close] : {std::pair("[", "]"), std::pair("{a: ", "}"), std::pair("- ", "")}) {
    write("main.yaml", nested(99, open, close));
    EXPECT_NO_THROW((void)load("main.yaml"));
    for (const int levels : {100, 5000}) {
      write("main.yaml", nested(levels, open, close));
      const size_t column = 3 + 99 * std::string(open).size();
      EXPECT_THAT(
          testing::error_of([&] { (void)load("main.yaml"); }),
          ::testing::AllOf(::testing::StartsWith(path("main.yaml") + ":2:" + std::to_string(column) + ": found a "),
                           ::testing::HasSubstr(" inside of 100 others, expected fewer")));
    }
  }
}

TEST_F(ConfigLoadTest, AnEmptyFileIsAnEmptyMap) {
  write("main.yaml", "# nothing yet\n");
  const ConfigNode node = load("main.yaml");
  EXPECT_EQ(node.location().to_string(), path("main.yaml") + ":1:1");
  node.finish();
}

TEST_F(ConfigLoadTest, PathsOfBasesAreNormalized) {
  write("common.yaml", "a: 1\n");
  write("main.yaml", "base: ./sub/../common.yaml\n");
  EXPECT_EQ(load("main.yaml").dump(), "a: 1\n");
}

// As where the configs of a project are a link in each of its experiments.
TEST_F(ConfigLoadTest, ABaseLiesBesideTheFolderThatALinkLeadsTo) {
  write("common.yaml", "a: 1\n");
  write("sub/main.yaml", "base: ../common.yaml\n");
  fs::create_directories(folder_ / "experiment");
  fs::create_directory_symlink(folder_ / "sub", folder_ / "experiment/configs");
  EXPECT_EQ(load("experiment/configs/main.yaml").dump(), "a: 1\n");
}

TEST(NearestNameTest, FindsWhatWasMeant) {
  const std::vector<std::string> names = {"warmup_steps", "type", "min_lr", "batch_size"};
  EXPECT_EQ(nearest_name("warmup", names), "warmup_steps");
  EXPECT_EQ(nearest_name("tpye", names), "type");
  EXPECT_EQ(nearest_name("minlr", names), "min_lr");
  EXPECT_EQ(nearest_name("batchsize", names), "batch_size");
  EXPECT_EQ(nearest_name("color", names), "");
  EXPECT_EQ(nearest_name("", names), "");
  EXPECT_EQ(did_you_mean("x", {}), "");
}

}  // namespace
}  // namespace heddle
