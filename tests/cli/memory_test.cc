// heddle memory: what it prints and writes, what it refuses; and the snapshot of a training that ran out of memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/cli/process.h"
#include "tests/tools/replay_snapshot.h"
#include "tests/trainers/test_config.h"

namespace heddle {
namespace {

using ::testing::AllOf;
using testing::Finished;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::run_heddle;
using ::testing::StartsWith;
using testing::TempFolder;

class MemoryCommand : public ::testing::Test {
 protected:
  MemoryCommand() { std::ofstream(folder_ / "tiny.yaml") << testing::tiny_config(); }

  Finished memory(const std::vector<std::string>& more) {
    std::vector<std::string> arguments = {"memory", (folder_ / "tiny.yaml").string()};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_heddle(arguments);
  }
  std::string refusal(const std::vector<std::string>& more) {
    const Finished finished = memory(more);
    EXPECT_EQ(finished.code, 2) << finished.out;
    EXPECT_THAT(finished.out, IsEmpty());
    return finished.err;
  }
  std::string path(const char* name) const { return (folder_ / name).string(); }

  TempFolder folder_;
};

TEST_F(MemoryCommand, OneOfSeveralProcesses) {
  const Finished finished = memory({"--gpus", "2", "--json", path("m.json")});
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.out, HasSubstr("float32, the first of 2 processes\n"));
  EXPECT_EQ(nlohmann::json::parse(read_file(path("m.json")))["processes"], 2);
  EXPECT_THAT(memory({"--set", "trainer.parallel={data: 4}"}).out, HasSubstr("the first of 4 processes"));
  EXPECT_EQ(refusal({"--gpus", "3"}),
            "error: --gpus 3: trainer.batch_size: found 4, expected a multiple of 3, the number of processes\n");
  EXPECT_EQ(refusal({"--batch", "4,3", "--gpus", "2"}),
            "error: --batch: found 3, expected a multiple of 2, the number of processes\n");
  EXPECT_THAT(refusal({"--gpus", "2", "--device", "cpu"}), HasSubstr("one of 2 processes is counted on meta"));
}

// Batches of shapes alone: with numbers these would take terabytes.
TEST_F(MemoryCommand, AnySizeIsCountedWithoutMemory) {
  const Finished finished = memory({"--batch", "1000000000", "--fit", "1000TiB"});
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.out, HasSubstr("fits 1000.0 TiB"));
  const Finished packed = memory({"--set", "trainer.batch_size=1000000000"});
  EXPECT_EQ(packed.code, 0) << packed.err;
}

TEST_F(MemoryCommand, SizesThatCannotBeCountedAreRefusedByOption) {
  EXPECT_THAT(refusal({"--batch", "2147483647", "--length", "2147483647"}),
              AllOf(HasSubstr("--batch 2147483647"), HasSubstr("more bytes than can be counted")));
  EXPECT_THAT(refusal({"--length", "2147483648"}),
              AllOf(HasSubstr("--length"), HasSubstr("found '2147483648'"), HasSubstr("expected")));
  EXPECT_THAT(refusal({"--fit", "2000000TiB"}), AllOf(HasSubstr("--fit: found"), HasSubstr("expected at most")));
}

TEST_F(MemoryCommand, ALengthThatAConfigCannotHaveIsRefused) {
  const std::string grid = "model.mixer={type: lightning, heads: 2, lrpe: {type: lrpe_cosine, shape: [4, 4]}}";
  EXPECT_THAT(refusal({"--length", "16,8", "--set", grid, "--set", "data.length=3"}),
              HasSubstr("error: --length 8: trainer.sequence_length: found 8, expected 16, the tokens of lrpe.shape"));
  EXPECT_THAT(refusal({"--length", "8", "--set", "data={type: mqar, num_pairs: 3}"}),
              HasSubstr("error: --length 8: data.num_pairs: found 3 pairs and 3 queries, which need "
                        "trainer.sequence_length >= 12, found 8"));
}

TEST_F(MemoryCommand, PrintsAndWritesAllOfIt) {
  const Finished finished =
      memory({"--batch", "4,8", "--length", "16", "--fit", "64MiB", "--json", path("m.json"), "--snapshot",
              path("m.pickle"), "--trace", path("m.trace"), "--plot", path("m.svg")});
  ASSERT_EQ(finished.code, 0) << finished.err;
  EXPECT_THAT(finished.err, IsEmpty());
  for (const char* part : {"peak on meta: ", "at the peak, by category", "at the peak, by layer", "blocks", "backward",
                           "kept for backward: ", "fits 64.0 MiB", "trainer.dtype=bfloat16"}) {
    EXPECT_THAT(finished.out, HasSubstr(part));
  }
  const nlohmann::json json = nlohmann::json::parse(read_file(path("m.json")));
  size_t categories = 0, layers = 0;
  for (const auto& bytes : json["categories"]) categories += bytes.get<size_t>();
  for (const auto& layer : json["layers"]) layers += layer["bytes"].get<size_t>();
  EXPECT_EQ(json["peak_bytes"], categories);
  EXPECT_EQ(json["peak_bytes"], layers);
  ASSERT_EQ(json["grid"].size(), 2u);
  EXPECT_EQ(json["grid"][0]["peak_bytes"], json["peak_bytes"]);
  EXPECT_GT(json["fit"]["batch_size"]["largest"], 8);
  EXPECT_THAT(read_file(path("m.svg")), AllOf(StartsWith("<svg"), HasSubstr("tiny.yaml")));
  EXPECT_TRUE(nlohmann::json::parse(read_file(path("m.trace"))).contains("traceEvents"));
  if (!testing::has_python()) GTEST_SKIP() << "no python3";
  EXPECT_EQ(testing::replay_snapshot(path("m.pickle"))["peak"], json["peak_bytes"]);
}

TEST_F(MemoryCommand, TheCpuTakesWhatMetaSays) {
  const auto peak = [&](const char* device) {
    const Finished finished = memory({"--device", device, "--json", path(device)});
    EXPECT_EQ(finished.code, 0) << finished.err;
    nlohmann::json json = nlohmann::json::parse(read_file(path(device)));
    EXPECT_EQ(json["device"], device);
    json.erase("device");
    return json;
  };
  EXPECT_EQ(peak("cpu"), peak("meta"));
}

TEST_F(MemoryCommand, ARunFolderStandsForItsConfig) {
  std::filesystem::create_directory(folder_ / "run");
  std::filesystem::copy_file(folder_ / "tiny.yaml", folder_ / "run/config.yaml");
  const Finished finished = run_heddle({"memory", path("run")});
  EXPECT_EQ(finished.code, 0) << finished.err;
  EXPECT_EQ(finished.out, memory({}).out);
}

// A config may name files that are on another machine.
TEST_F(MemoryCommand, NeedsNoData) {
  const Finished finished = memory({"--set", "data={type: tokens, path: /there/is/no/such/file.bin}"});
  EXPECT_EQ(finished.code, 0) << finished.err;
}

TEST_F(MemoryCommand, RefusesWhatIsWrong) {
  EXPECT_EQ(memory({"--fit", "1PiB"}).code, 0);
  EXPECT_THAT(refusal({"--fit", "80GX"}), HasSubstr("--fit: found '80GX', expected a size such as 80GiB"));
  EXPECT_THAT(refusal({"--fit", "-1"}), HasSubstr("--fit: found '-1'"));
  EXPECT_THAT(refusal({"--batch", "4,0"}), HasSubstr("--batch: found '0', expected an integer in [1, 2147483647]"));
  EXPECT_THAT(refusal({"--length", "99999999999"}), HasSubstr("expected an integer in [1, 2147483647]"));
  EXPECT_THAT(refusal({"--length", "x"}), HasSubstr("--length: found 'x'"));
  EXPECT_THAT(refusal({"--device", "tpu"}),
              HasSubstr("unknown device 'tpu', expected auto, cpu, cuda, cuda:INDEX or meta"));
  EXPECT_THAT(run_heddle({"eval", "run", "--device", "gpu"}).err,
              HasSubstr("unknown device 'gpu', expected auto, cpu, cuda or cuda:INDEX\n"));
  EXPECT_THAT(refusal({"--set", "model.dims=4"}), HasSubstr("did you mean"));
  EXPECT_THAT(refusal({"--set", "model.mixer.heads=3"}), HasSubstr("model.mixer.heads: found 3"));
  for (const char* option : {"--json", "--snapshot", "--trace", "--plot"}) {
    EXPECT_THAT(refusal({option, path("none/file")}), HasSubstr(option + std::string(": ")));
    EXPECT_THAT(refusal({option, folder_.path().string()}), HasSubstr("is a folder"));
  }
  const Finished missing = run_heddle({"memory", path("none.yaml")});
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.err, HasSubstr("none.yaml"));
}

// More parameters than any host has room for.
TEST_F(MemoryCommand, TrainingThatRunsOutOfMemoryLeavesASnapshot) {
  const std::string run = path("run");
  const Finished finished = run_heddle({"train", path("tiny.yaml"), "--out", run, "--device", "cpu", "--set",
                                        "model.channel.hidden=2000000000", "--set", "model.layers=40"});
  EXPECT_EQ(finished.code, 1);
  const std::string snapshot = run + "/out_of_memory.pickle";
  EXPECT_THAT(finished.err, AllOf(StartsWith("error: out of memory on cpu: asked "),
                                  HasSubstr("; snapshot written to " + snapshot + "\n")));
  EXPECT_TRUE(std::filesystem::exists(snapshot));
  if (!testing::has_python()) GTEST_SKIP() << "no python3";
  EXPECT_EQ(testing::replay_snapshot(snapshot)["ooms"], 1);
}

}  // namespace
}  // namespace heddle
