// What a training step takes on a GPU is what meta says, byte for byte.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/config/config_load.h"
#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tests/tools/replay_snapshot.h"
#include "tools/training_memory.h"

namespace heddle {
namespace {

class TrainingMemoryGpu : public ::testing::Test {
 protected:
  void SetUp() override {
    if (resolve_device("auto").type != DeviceType::cuda) GTEST_SKIP() << "no GPU";
  }
  static TrainConfig toy(std::vector<std::string> changes) {
    changes.emplace_back("data={type: copy, length: 16}");
    changes.emplace_back("trainer.sample=null");
    return load_train_config(std::string(HEDDLE_SOURCE_DIR) + "/configs/toy_kjv.yaml", changes);
  }
};

TEST_F(TrainingMemoryGpu, TakesWhatMetaSays) {
  const std::vector<std::vector<std::string>> configs = {
      {},
      {"trainer.dtype=bfloat16", "trainer.accumulate=2"},
      {"trainer.dtype=float16", "model.tie_embeddings=true", "model.norm={type: layer_norm}"},
      {"model.channel={type: ffn, hidden: 512, act: relu}", "trainer.sequence_length=1000", "trainer.batch_size=3"},
      {"optimizer={type: lion, lr: 1.0e-3}", "trainer.ema=0.99"},
      {"optimizer={type: muon}", "trainer.dtype=bfloat16", "trainer.ema=0.99"},
      {"optimizer={type: sgd, momentum: 0}"},
      {"trainer.dtype=bfloat16", "model.dim=512", "model.layers=8", "model.channel.hidden=1408",
       "model.vocab_size=50304", "trainer.sequence_length=512", "trainer.batch_size=8"},
  };
  for (const std::vector<std::string>& changes : configs) {
    SCOPED_TRACE(changes.empty() ? "toy_kjv" : changes[0]);
    for (const char* graph : {"trainer.cuda_graph=off", "trainer.cuda_graph=auto"}) {
      std::vector<std::string> all = changes;
      all.emplace_back(graph);
      const TrainConfig config = toy(all);
      const TrainingMemory meta = measure_training({DeviceType::meta}, config);
      const TrainingMemory cuda = measure_training({DeviceType::cuda}, config);
      EXPECT_EQ(meta.report.stats.allocated.peak, cuda.report.stats.allocated.peak) << graph;
      EXPECT_EQ(meta.report.layers, cuda.report.layers) << graph;
      EXPECT_EQ(meta.kept, cuda.kept) << graph;
      if (config.trainer.cuda_graph) continue;  // a graph has memory of its own
      EXPECT_EQ(meta.report.stats.reserved.peak, cuda.report.stats.reserved.peak);
    }
  }
}

TEST_F(TrainingMemoryGpu, ASnapshotReplayedEndsAtTheCountsOfTheAllocator) {
  if (!testing::has_python()) GTEST_SKIP() << "no python3";
  const testing::TempFolder folder;
  const std::string path = (folder / "memory.pickle").string();
  const TrainingMemory memory = measure_training({DeviceType::cuda}, toy({"trainer.dtype=bfloat16"}));
  write_file(path, memory.snapshot);
  const nlohmann::json replayed = testing::replay_snapshot(path);
  ASSERT_TRUE(replayed.is_object());
  EXPECT_EQ(replayed["allocated"], memory.report.stats.allocated.current);
  EXPECT_EQ(replayed["peak"], memory.report.stats.allocated.peak);
  EXPECT_EQ(replayed["reserved"], memory.report.stats.reserved.current);
  EXPECT_EQ(replayed["reserved_peak"], memory.report.stats.reserved.peak);
}

}  // namespace
}  // namespace heddle
