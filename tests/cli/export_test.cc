// heddle export and train --init-from. What PyTorch makes of an export is tested in modeling_heddle_test.cc.
#include "tests/cli/export_test.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/io/safetensors.h"
#include "core/runtime/context.h"
#include "core/tensor/transfer.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::ElementsAre;
using testing::ExportTest;
using testing::Finished;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::run_heddle;

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

nlohmann::json json_of(const fs::path& path) { return nlohmann::json::parse(read_file(path)); }

TEST_F(ExportTest, WritesAFolderThatHuggingFaceKnows) {
  const Finished exported = export_to("hf");
  ASSERT_EQ(exported.code, 0) << exported.err;
  EXPECT_THAT(exported.out, AllOf(HasSubstr("model.safetensors"), HasSubstr("of step 40"), HasSubstr("--prompt TEXT")));
  EXPECT_THAT(names_in(folder_ / "hf"), ElementsAre("config.json", "model.safetensors", "modeling_heddle.py"));
  const nlohmann::json config = json_of(folder_ / "hf/config.json");
  EXPECT_EQ(config["model_type"], "heddle");
  EXPECT_EQ(config["torch_dtype"], "float32");
  EXPECT_EQ(config["tokens"], "bytes");
  EXPECT_EQ(config["step"], 40);
  EXPECT_EQ(config["model"]["vocab_size"], 256);
  EXPECT_EQ(config["model"]["norm"]["eps"], 1e-6);
  EXPECT_EQ(config["model"]["tie_embeddings"], false);
  EXPECT_EQ(config["model"]["mixer"]["lrpe"]["layers"], nlohmann::json::array({0}));
  const SafetensorsReader whole(folder_ / "hf/model.safetensors");
  EXPECT_EQ(whole.metadata().at("format"), "pt");
  const SafetensorsReader checkpoint(fs::path(run_) / "checkpoints/step_40/model.safetensors");
  EXPECT_EQ(whole.entries().size(), checkpoint.entries().size());
  EXPECT_EQ(read_file(folder_ / "hf/modeling_heddle.py"), read_file(HEDDLE_SOURCE_DIR "/export/modeling_heddle.py"));
}

TEST_F(ExportTest, ShardsHoldEachTensorOnce) {
  ASSERT_EQ(export_to("hf").code, 0);
  ASSERT_EQ(export_to("shards", {"--shard-size", "16KB"}).code, 0);
  const nlohmann::json index = json_of(folder_ / "shards/model.safetensors.index.json");
  std::map<std::string, std::string> found;
  uint64_t total = 0;
  for (const std::string& name : names_in(folder_ / "shards")) {
    if (!name.ends_with(".safetensors")) continue;
    const SafetensorsReader shard(folder_ / "shards" / name);
    uint64_t bytes = 0;
    for (const SafetensorsEntry& entry : shard.entries()) {
      EXPECT_TRUE(found.emplace(entry.name, name).second) << entry.name;
      bytes += entry.end - entry.begin;
    }
    EXPECT_TRUE(bytes <= 16000 || shard.entries().size() == 1) << name << " holds " << bytes;
    total += bytes;
  }
  EXPECT_EQ(index["weight_map"].get<decltype(found)>(), found);
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_EQ(found.size(), SafetensorsReader(folder_ / "hf/model.safetensors").entries().size());
  EXPECT_THAT(found.begin()->second, ::testing::MatchesRegex("model-0000[0-9]-of-0000[0-9].safetensors"));
}

// The sums of a step are the same, bit for bit, wherever the weights came from.
TEST_F(ExportTest, TrainingStartsFromTheFolderAsFromTheCheckpoint) {
  ASSERT_EQ(export_to("hf").code, 0);
  ASSERT_EQ(export_to("shards", {"--shard-size", "16KB"}).code, 0);
  const Finished of_run = train_from("run", "a"), of_folder = train_from("hf", "b");
  ASSERT_EQ(of_run.code, 0) << of_run.err;
  ASSERT_EQ(of_folder.code, 0) << of_folder.err;
  EXPECT_THAT(of_folder.err, HasSubstr("the weights are those of " + (folder_ / "hf").string()));
  ASSERT_EQ(train_from("shards", "c").code, 0);
  EXPECT_EQ(weights_after("a"), weights_after("b"));
  EXPECT_EQ(weights_after("a"), weights_after("c"));
  const std::vector<std::string> rounded = {"trainer.dtype=bfloat16"};
  ASSERT_EQ(train_from("run", "d", rounded).code, 0);
  ASSERT_EQ(train_from("hf", "e", rounded).code, 0);
  EXPECT_EQ(weights_after("d"), weights_after("e"));
}

TEST_F(ExportTest, WeightsThatDoNotFitAreNamed) {
  ASSERT_EQ(export_to("hf").code, 0);
  const Finished shapes = train_from("hf", "a", {"model.channel.hidden=24"});
  EXPECT_EQ(shapes.code, 2);
  EXPECT_THAT(shapes.err,
              AllOf(HasSubstr("4 of another kind: blocks.0.channel.w12.weight is (32, 16), expected (48, 16)"),
                    Not(HasSubstr("missing"))));
  const Finished names = train_from("hf", "b", {"model.mixer.gate.rank=0"});
  EXPECT_EQ(names.code, 2);
  EXPECT_THAT(names.err, AllOf(HasSubstr("2 missing: blocks.0.mixer.gate.weight (16, 16), blocks.1"),
                               HasSubstr("4 unexpected: blocks.0.mixer.gate.down.weight (4, 16), ")));
  EXPECT_FALSE(fs::exists(folder_ / "b/config.yaml"));
}

TEST_F(ExportTest, PipesInPlaceOfFilesAreRefused) {
  ASSERT_EQ(export_to("hf").code, 0);
  for (const char* name : {"hf/config.json", "hf/model.safetensors"}) {
    expect_no_pipe(name, [&] { return train_from("hf", "a"); });
  }
}

TEST_F(ExportTest, DamagedFoldersAreRefused) {
  ASSERT_EQ(export_to("shards", {"--shard-size", "16KB"}).code, 0);
  const fs::path folder = folder_ / "shards";
  const auto refusal = [&] { return train_from("shards", "a").err; };
  nlohmann::json index = json_of(folder / "model.safetensors.index.json");
  const auto write_index = [&] { std::ofstream(folder / "model.safetensors.index.json") << index.dump(); };
  const std::string last = index["weight_map"]["head.weight"], first = index["weight_map"]["embedding.weight"];

  fs::copy_file(folder / first, folder / "model.safetensors");  // which of both is meant?
  EXPECT_THAT(refusal(), HasSubstr("holds model.safetensors and model.safetensors.index.json, expected one of them"));
  fs::remove(folder / "model.safetensors");
  index["weight_map"]["head.weight"] = "../shards/" + last;
  write_index();
  EXPECT_THAT(refusal(),
              HasSubstr("tensor 'head.weight' is in \"../shards/" + last + "\", expected the name of a file"));
  index["weight_map"]["head.weight"] = last;
  index["weight_map"]["other"] = first;
  write_index();
  EXPECT_THAT(refusal(), HasSubstr("tensor 'other' is not in " + first));
  index["weight_map"].erase("other");
  write_index();
  fs::copy_file(folder / first, folder / "twice.safetensors");
  index["weight_map"]["embedding.weight"] = "twice.safetensors";
  index["weight_map"]["blocks.0.mixer_norm.weight"] = first;
  write_index();
  EXPECT_THAT(refusal(), HasSubstr("tensor 'embedding.weight' is in another file, too"));
  std::ofstream(folder / "model.safetensors.index.json") << "{}";
  EXPECT_THAT(refusal(), HasSubstr("model.safetensors.index.json: 'weight_map' is missing"));
  std::ofstream(folder / "config.json") << R"({"model_type": "llama"})";
  EXPECT_THAT(refusal(), HasSubstr("model_type is \"llama\", expected heddle or retnet"));
  std::ofstream(folder / "config.json") << "{}";
  EXPECT_THAT(refusal(), HasSubstr("'model_type' is missing"));
  std::ofstream(folder / "config.json") << "[";
  EXPECT_THAT(refusal(), HasSubstr("config.json: not valid JSON"));
}

TEST_F(ExportTest, TensorsOfOtherFloatingDtypesAreConverted) {
  ASSERT_EQ(export_to("hf").code, 0);
  Context context;
  SafetensorsReader reader(folder_ / "hf/model.safetensors");
  std::vector<NamedTensor> tensors;
  for (const SafetensorsEntry& entry : reader.entries()) {
    const Tensor stored = reader.read(context, entry);
    const Tensor converted = Tensor::empty(context, entry.shape, DType::float64);
    write_values(context, converted, read_values(context, stored));
    tensors.push_back({entry.name, converted});
  }
  fs::copy(folder_ / "hf", folder_ / "wide");
  write_safetensors(context, folder_ / "wide/model.safetensors", tensors);
  ASSERT_EQ(train_from("hf", "a").code, 0);
  const Finished of_wide = train_from("wide", "b");
  ASSERT_EQ(of_wide.code, 0) << of_wide.err;
  EXPECT_EQ(weights_after("a"), weights_after("b"));
  tensors[0].tensor = Tensor::zeros(context, tensors[0].tensor.shape(), DType::int32);
  write_safetensors(context, folder_ / "wide/model.safetensors", tensors);
  EXPECT_THAT(train_from("wide", "c").err, HasSubstr(tensors[0].name + " is int32, expected a floating dtype"));
}

TEST_F(ExportTest, OnlyItsOwnFoldersAreReplaced) {
  ASSERT_EQ(export_to("out", {"--shard-size", "16KB", "--logits", "4"}).code, 0);
  ASSERT_EQ(export_to("out/").code, 0);  // shards of before would be read with the new ones
  EXPECT_THAT(names_in(folder_ / "out"), ElementsAre("config.json", "model.safetensors", "modeling_heddle.py"));
  fs::create_directory_symlink(folder_ / "out", folder_ / "link");
  ASSERT_EQ(export_to("link").code, 0);
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  std::ofstream(folder_ / "out/notes.txt") << "mine";
  const Finished refused = export_to("out");
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.err, HasSubstr("holds notes.txt, which no export has written"));
  EXPECT_TRUE(fs::exists(folder_ / "out/notes.txt"));
  EXPECT_EQ(export_to("tiny.yaml").code, 2);
  fs::create_symlink("circle", folder_ / "circle");
  EXPECT_THAT(export_to("circle").err, HasSubstr("--out: " + (folder_ / "circle").string() + " is no folder"));
  fs::create_directory(folder_ / "here");
  EXPECT_NE(std::system(("cd '" + (folder_ / "here").string() + "' && '" HEDDLE_PROGRAM "' export '" + run_ +
                         "' --out . 2> ../err")
                            .c_str()),
            0);
  EXPECT_THAT(read_file(folder_ / "err"), HasSubstr("--out: . is the current folder"));
  EXPECT_EQ(export_to("tiny.yaml/in").code, 1);
  EXPECT_THAT(names_in(folder_.path()), Not(Contains(::testing::EndsWith(".heddle-partial"))));
}

// What is called as an export calls it is replaced only where an export has written it.
TEST_F(ExportTest, FilesOfOthersStay) {
  const auto refusal = [&](const std::string& out) {
    const std::vector<std::string> before = names_in(folder_ / out);
    const Finished refused = export_to(out);
    EXPECT_EQ(refused.code, 2) << refused.out;
    EXPECT_EQ(names_in(folder_ / out), before);
    return refused.err;
  };
  fs::create_directory(folder_ / "mine");
  for (const char* config : {R"({"my": "settings", "step": 1})", "not JSON", "[]"}) {
    std::ofstream(folder_ / "mine/config.json") << config;
    EXPECT_THAT(refusal("mine"), HasSubstr("mine holds config.json, which no export has written; expected a new"));
    EXPECT_EQ(read_file(folder_ / "mine/config.json"), config);
  }
  for (const char* name : {"model_of_my_thesis.safetensors", "model-1.safetensors", "model.safetensors.index.json.bak",
                           "model-00001-of-00003xsafetensors"}) {
    ASSERT_EQ(export_to("out").code, 0);
    std::ofstream(folder_ / "out" / name) << "mine";
    EXPECT_THAT(refusal("out"), HasSubstr(fmt::format("out holds {}, which no export has written", name)));
    EXPECT_EQ(read_file(folder_ / "out" / name), "mine");
    fs::remove(folder_ / "out" / name);
  }
  fs::create_directory(folder_ / "out/tokenizer.model");
  EXPECT_THAT(refusal("out"), HasSubstr("out holds tokenizer.model, which no export has written"));
}

TEST_F(ExportTest, TheAverageIsExportedUnlessTheOverrideTakesTheWeights) {
  train(run_ + "_ema", {"data={type: text, path: \"" + text_ + "\"}", "model.vocab_size=256", "trainer.ema=0.9"});
  run_ += "_ema";
  ASSERT_EQ(export_to("average").code, 0);
  ASSERT_EQ(export_to("weights", {"--set", "trainer.ema=null"}).code, 0);
  Context context;
  const auto tensor_of = [&](const fs::path& path) {
    SafetensorsReader reader(path);
    return read_values(context, reader.read(context, *reader.find("head.weight")));
  };
  const fs::path checkpoint = fs::path(run_) / "checkpoints/step_40";
  EXPECT_EQ(tensor_of(folder_ / "average/model.safetensors"), tensor_of(checkpoint / "average.safetensors"));
  EXPECT_EQ(tensor_of(folder_ / "weights/model.safetensors"), tensor_of(checkpoint / "model.safetensors"));
  EXPECT_NE(tensor_of(folder_ / "weights/model.safetensors"), tensor_of(folder_ / "average/model.safetensors"));
}

TEST_F(ExportTest, BadArguments) {
  const std::string out = (folder_ / "out").string();
  EXPECT_EQ(run_heddle({"export", run_}).code, 2);
  EXPECT_THAT(run_heddle({"export", run_, "--out", ""}).err, HasSubstr("--out: found '', expected a path"));
  EXPECT_EQ(run_heddle({"export", (folder_ / "nothing").string(), "--out", out}).code, 2);
  EXPECT_THAT(export_to("out", {"--format", "onnx"}).err, HasSubstr("--format: found 'onnx', expected one of hf, fla"));
  EXPECT_EQ(export_to("out", {"--shard-size", "0"}).code, 2);
  EXPECT_EQ(export_to("out", {"--logits", "-1"}).code, 2);
  for (const char* count : {"2147483647", "9223372036854775807"}) {
    const Finished absurd = export_to("out", {"--logits", count});
    EXPECT_EQ(absurd.code, 2);
    EXPECT_THAT(absurd.err, AllOf(HasSubstr("error: --logits: "), HasSubstr(count)));
  }
  const Finished other = export_to("out", {"--format", "fla"});
  EXPECT_EQ(other.code, 2);
  EXPECT_THAT(other.err, HasSubstr("RetNetForCausalLM cannot compute this model: model.mixer is not one retention"));
  EXPECT_FALSE(fs::exists(out));
}

// A shell reads the command that is printed as it is meant.
TEST_F(ExportTest, TheCommandThatIsPrintedIsQuoted) {
  EXPECT_THAT(export_to("it's here").out,
              HasSubstr("python3 '" + folder_.path().string() + "/it'\\''s here/modeling_"));
  const std::string program = fs::absolute(HEDDLE_PROGRAM).string();
  const std::string command =
      "cd '" + folder_.path().string() + "' && '" + program + "' export '" + run_ + "' --out=-x";
  ASSERT_EQ(std::system((command + " > out").c_str()), 0);
  EXPECT_THAT(read_file(folder_ / "out"), HasSubstr("\npython3 ./-x/modeling_heddle.py ./-x --prompt TEXT\n"));
}

// From an export a training starts, and nothing else.
TEST_F(ExportTest, AnExportIsNoRun) {
  ASSERT_EQ(export_to("hf").code, 0);
  const std::string exported = (folder_ / "hf").string();
  for (const std::vector<std::string>& command : {std::vector<std::string>{"eval", exported},
                                                  {"generate", exported},
                                                  {"export", exported, "--out", exported + "2"}}) {
    const Finished refused = run_heddle(command);
    EXPECT_EQ(refused.code, 2) << command[0];
    EXPECT_EQ(refused.err, "error: " + exported + " is a folder that heddle export wrote, expected a run folder or a " +
                               "checkpoint; `heddle train CONFIG --init-from " + exported + "` reads its weights\n");
  }
}

// Without it nobody knows where the documents of the model begin and end.
TEST_F(ExportTest, TheSeparatorOfDocumentsIsExported) {
  ASSERT_EQ(export_to("hf").code, 0);
  EXPECT_FALSE(json_of(folder_ / "hf/config.json").contains("separator"));
  train_packed();
  ASSERT_EQ(export_to("hf").code, 0);
  EXPECT_EQ(json_of(folder_ / "hf/config.json")["separator"], 10);
}

}  // namespace
}  // namespace heddle
