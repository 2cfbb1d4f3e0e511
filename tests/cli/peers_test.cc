// bench/peers: the models of other frameworks that heddle is measured beside compute what heddle computes, and give
// rows that can be laid beside its own.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/cli/process.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

const std::string kPeers = HEDDLE_SOURCE_DIR "/bench/peers";

// Runs it in a shell. Python leaves no files beside its sources.
int run_python(const std::string& arguments) {
  return std::system(("PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=2 python3 " + arguments).c_str());
}

class PeersTest : public ::testing::Test {
 protected:
  static bool has_torch() { return run_python("-c 'import torch, yaml, safetensors.torch' > /dev/null 2>&1") == 0; }

  // A small config with this mixer.
  std::string config(const std::string& name, const std::string& mixer) {
    const std::string path = (folder_ / (name + ".yaml")).string();
    write_file(path, "base: " HEDDLE_SOURCE_DIR
                     "/configs/bench/train_toy_cpu.yaml\n"
                     "data: {type: text, path: text.txt}\n"
                     "model: {dim: 32, layers: 2, channel: {hidden: 48}, mixer: " +
                         mixer + "}\ntrainer: {batch_size: 2, accumulate: 2, sequence_length: 64}\n");
    return path;
  }
  std::string lightning() { return config("lightning", "{heads: 2, gate: {rank: 8}}"); }
  std::string transformer() { return config("transformer", "{type: softmax_attention, heads: 2}"); }

  testing::TempFolder folder_;
};

TEST_F(PeersTest, EveryScriptIsPython) {
  if (run_python("--version > /dev/null 2>&1") != 0) GTEST_SKIP() << "there is no python3";
  EXPECT_EQ(run_python("-c 'import ast, pathlib, sys\n"
                       "for path in pathlib.Path(sys.argv[1]).rglob(\"*.py\"): ast.parse(path.read_text(), str(path))' "
                       "'" HEDDLE_SOURCE_DIR "/bench'"),
            0);
}

// The same weights and batches give the same losses and gradient norms in every step. Few steps: Adam makes more of a
// rounding each time.
TEST_F(PeersTest, TrainingInPyTorchIsThatOfHeddle) {
  if (!has_torch()) GTEST_SKIP() << "python3 has no torch, yaml and safetensors";
  for (const std::string& path : {lightning(), transformer()}) {
    EXPECT_EQ(run_python("'" + kPeers + "/check_training.py' --heddle '" HEDDLE_PROGRAM "' --steps 4 --config '" +
                         path + "'"),
              0)
        << path;
  }
}

// One row of heddle and one of the peer for each config of a suite, told apart by the provider alone.
TEST_F(PeersTest, TheTrainingSuiteGivesRowsLikeHeddle) {
  if (!has_torch()) GTEST_SKIP() << "python3 has no torch, yaml and safetensors";
  lightning();
  transformer();
  const std::string suite = (folder_ / "steps.yaml").string();
  const std::string ours = (folder_ / "ours.json").string(), theirs = (folder_ / "theirs.json").string();
  write_file(suite, "training: {cpu: [lightning.yaml, transformer.yaml]}\n");
  write_file(folder_ / "text.txt", std::string(1000, 'a'));
  ASSERT_EQ(testing::run_heddle({"bench", suite, "--device", "cpu", "--quantity", "speed", "--json", ours}).code, 0);
  ASSERT_EQ(
      run_python("'" + kPeers + "/benchmark.py' '" + suite + "' --device cpu --provider torch --json '" + theirs + "'"),
      0);
  const auto heddle = nlohmann::json::parse(read_file(ours)), peer = nlohmann::json::parse(read_file(theirs));
  ASSERT_EQ(heddle.size(), 2u);
  ASSERT_EQ(peer.size(), 2u);
  for (size_t i = 0; i < heddle.size(); ++i) {
    for (const char* key : {"suite", "config", "pass", "quantity", "n", "dtype", "unit"}) {
      EXPECT_EQ(peer[i][key], heddle[i][key]) << key;
    }
    EXPECT_EQ(peer[i]["provider"], "torch");
    const double milliseconds = peer[i]["value"], tokens = peer[i]["tokens_per_second"];
    EXPECT_GT(milliseconds, 0.0);
    EXPECT_NEAR(milliseconds * tokens / 1e3, 256.0, 1e-6) << "tokens of a step";
  }
  EXPECT_EQ(peer[0]["attention"], "chunked");
  EXPECT_EQ(peer[1]["attention"], "sdpa");
  const std::string compared = (folder_ / "compared").string();
  EXPECT_EQ(run_python("'" HEDDLE_SOURCE_DIR "/bench/compare.py' '" + ours + "' '" + theirs + "' > '" + compared + "'"),
            0);
  EXPECT_THAT(read_file(compared), ::testing::HasSubstr("torch"));
}

}  // namespace
}  // namespace heddle
