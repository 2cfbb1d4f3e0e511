// The memory of a training step: sums, the same bytes on meta and on the CPU, and answers to --fit that are exact.
#include "tools/training_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/io/atomic_file.h"
#include "tests/temp_folder.h"
#include "tests/tools/replay_snapshot.h"
#include "tests/trainers/test_config.h"
#include "tools/memory_tables.h"

namespace heddle {
namespace {

using testing::TempFolder;
using testing::tiny_train_config;

constexpr auto kParameter = static_cast<size_t>(MemoryCategory::parameter);
constexpr auto kGradient = static_cast<size_t>(MemoryCategory::gradient);
constexpr auto kOptimizer = static_cast<size_t>(MemoryCategory::optimizer);

const std::vector<std::vector<std::string>>& changes() {
  static const std::vector<std::vector<std::string>> changes = {
      {},
      {"trainer.dtype=bfloat16"},
      {"trainer.dtype=float16", "trainer.accumulate=3"},
      {"trainer.dtype=float64"},
      {"model.tie_embeddings=true", "model.norm={type: layer_norm}"},
      {"model.channel={type: ffn, hidden: 24, act: relu}", "model.mixer.lrpe=null"},
      {"model.norm={type: rms_norm}", "trainer.batch_size=1", "trainer.sequence_length=200"},
      {"optimizer={type: lion}", "trainer.ema=0.9"},
      {"optimizer={type: sgd, momentum: 0}"},
      {"optimizer={type: sgd}", "trainer.dtype=bfloat16", "trainer.ema=0.9"},
      {"optimizer={type: muon}"},
      {"optimizer={type: muon}", "trainer.dtype=bfloat16"},
      {"optimizer={type: muon}", "trainer.dtype=float16", "trainer.ema=0.9"},
      {"model.layers=5", "model.dim=48", "model.mixer.heads=3", "trainer.sequence_length=33"},
      {"model.loss_chunk=9"},
      {"model.loss_chunk=5", "model.tie_embeddings=true", "trainer.dtype=bfloat16"},
  };
  return changes;
}

void expect_equal(const MemoryReport& a, const MemoryReport& b) {
  EXPECT_EQ(a.stats.allocated.peak, b.stats.allocated.peak);
  EXPECT_EQ(a.stats.allocated.current, b.stats.allocated.current);
  EXPECT_EQ(a.stats.reserved.peak, b.stats.reserved.peak);
  EXPECT_EQ(a.stats.allocations, b.stats.allocations);
  EXPECT_EQ(a.layers, b.layers);
  EXPECT_EQ(a.peak_layer, b.peak_layer);
  ASSERT_EQ(a.phases.size(), b.phases.size());
  for (size_t i = 0; i < a.phases.size(); ++i) {
    EXPECT_EQ(a.phases[i].name, b.phases[i].name);
    EXPECT_EQ(a.phases[i].at_begin, b.phases[i].at_begin);
    EXPECT_EQ(a.phases[i].at_end, b.phases[i].at_end);
    EXPECT_EQ(a.phases[i].at_peak, b.phases[i].at_peak);
  }
}

TEST(TrainingMemoryTest, MetaCountsTheBytesOfTheCpu) {
  for (const std::vector<std::string>& change : changes()) {
    SCOPED_TRACE(change.empty() ? "as it is" : change[0]);
    const TrainConfig config = tiny_train_config(change);
    const TrainingMemory meta = measure_training({DeviceType::meta}, config);
    const TrainingMemory cpu = measure_training({DeviceType::cpu}, config, 1);
    expect_equal(meta.report, cpu.report);
    EXPECT_EQ(meta.kept, cpu.kept);
  }
}

TEST(TrainingMemoryTest, MetaCountsTheBytesOfTheCpuForAllModels) {
  for (const auto& path : testing::model_configs()) {
    SCOPED_TRACE(path.stem().string());
    for (const char* change : {"trainer.dtype=float32", "trainer.dtype=bfloat16", "model.recompute=block"}) {
      const TrainConfig config = testing::small_model_config(path, {change});
      const TrainingMemory meta = measure_training({DeviceType::meta}, config);
      const TrainingMemory cpu = measure_training({DeviceType::cpu}, config, 1);
      expect_equal(meta.report, cpu.report);
      EXPECT_EQ(meta.kept, cpu.kept);
    }
  }
}

TEST(TrainingMemoryTest, CategoriesLayersAndPhasesAddUpToThePeak) {
  for (const std::vector<std::string>& change : changes()) {
    SCOPED_TRACE(change.empty() ? "as it is" : change[0]);
    const TrainConfig config = tiny_train_config(change);
    const MemoryReport report = measure_training({DeviceType::meta}, config).report;
    const size_t peak = report.stats.allocated.peak;
    EXPECT_EQ(total(sum(report.layers)), peak);
    EXPECT_EQ(total(layer_tree(report.layers).bytes), peak);
    EXPECT_EQ(sum(report.layers), report.phases[report.peak_phase].at_peak);
    size_t most = 0;
    for (const MemoryPhase& phase : report.phases) most = std::max(most, total(phase.at_peak));
    EXPECT_EQ(most, peak);
    EXPECT_EQ(report.phases.size(), static_cast<size_t>(1 + 2 * (2 * config.trainer.accumulate + 1)));
    EXPECT_EQ(total(report.phases.back().at_end), report.stats.allocated.current);
    EXPECT_EQ(step_peak(config).value().allocated, peak);
    EXPECT_EQ(step_peak(config).value().reserved, report.stats.reserved.peak);
  }
}

TEST(TrainingMemoryTest, ParametersGradientsAndMomentsAreThoseOfTheirLayers) {
  const TrainConfig config = tiny_train_config({"trainer.dtype=bfloat16", "model.channel.hidden=32"});
  const TrainingMemory memory = measure_training({DeviceType::meta}, config);
  const LayerBytes& layers = memory.report.layers;
  const size_t numbers = 8 * 16;  // vocabulary x dim
  EXPECT_EQ(layers.at("embedding")[kParameter], numbers * 6) << "a float32 master and a bfloat16 copy";
  EXPECT_EQ(layers.at("head")[kOptimizer], numbers * 8);
  EXPECT_EQ(layers.at("blocks.1.channel.w3")[kGradient], size_t{32} * 16 * 4);
  size_t moments = 0;
  for (const auto& [layer, bytes] : layers) {
    if (!layer.empty()) moments += bytes[kOptimizer];
  }
  EXPECT_EQ(moments, static_cast<size_t>(memory.parameters) * 8);
}

// The tokens of a layer's activations: nothing else depends on the batch.
TEST(TrainingMemoryTest, WhatIsKeptForBackwardGrowsWithTheTokens) {
  const auto kept = [](const char* batch) {
    return measure_training({DeviceType::meta}, tiny_train_config({std::string("trainer.batch_size=") + batch})).kept;
  };
  const LayerBytes once = kept("64"), twice = kept("128");
  ASSERT_EQ(once.size(), twice.size());
  for (const auto& [layer, bytes] : once) {
    if (layer == "loss") continue;  // one number for the batch
    EXPECT_EQ(2 * total(bytes), total(twice.at(layer))) << layer;
  }
  EXPECT_EQ(total(once.at("embedding")), size_t{64} * 16 * 16 * 4);
}

TEST(TrainingMemoryTest, AGridIsTheStepsOfItsConfigs) {
  const TrainConfig config = tiny_train_config();
  const std::vector<GridPeak> grid = peak_grid(config, {1, 8}, {10, 20, 300});
  ASSERT_EQ(grid.size(), 6u);
  for (const GridPeak& cell : grid) {
    TrainConfig changed = config;
    changed.trainer.batch_size = cell.batch_size;
    changed.trainer.sequence_length = cell.sequence_length;
    const MemoryStats stats = measure_training({DeviceType::cpu}, changed, 1).report.stats;
    EXPECT_EQ(stats.allocated.peak, cell.peak.allocated);
    EXPECT_EQ(stats.reserved.peak, cell.peak.reserved);
  }
  ASSERT_EQ(peak_grid(config, {}, {5}).size(), 1u);
  EXPECT_EQ(peak_grid(config, {}, {5})[0].batch_size, 4);
}

// Steps on the CPU with an allocator of that size: the answer works and the next one throws.
bool runs(TrainConfig config, int64_t batch_size, int64_t length, size_t limit) {
  config.trainer.batch_size = batch_size;
  config.trainer.sequence_length = length;
  Context context(Device{DeviceType::cpu}, {.threads = 1, .allocator = {.limit_bytes = limit}});
  try {
    TrainStep train_step(context, config);
    take_two_steps(train_step, config);
  } catch (const OutOfMemory&) {
    return false;
  }
  return true;
}

TEST(TrainingMemoryTest, WhatFitsFitsAndTheNextDoesNot) {
  const TrainConfig config = tiny_train_config({"model.layers=1"});
  for (const size_t limit : {size_t{8} << 20, (size_t{11} << 20) + 12345}) {
    const MemoryFit fit = find_fit(config, limit);
    EXPECT_GT(fit.batch_size.value, 4);
    EXPECT_LE(fit.batch_size.peak.reserved, limit);
    EXPECT_GT(fit.batch_size.above.reserved, limit);
    EXPECT_TRUE(runs(config, fit.batch_size.value, 16, limit)) << fit.batch_size.value;
    EXPECT_FALSE(runs(config, fit.batch_size.value + 1, 16, limit)) << fit.batch_size.value;
    ASSERT_TRUE(fit.sequence_length);
    EXPECT_TRUE(runs(config, 4, fit.sequence_length->value, limit)) << fit.sequence_length->value;
    EXPECT_FALSE(runs(config, 4, fit.sequence_length->value + 1, limit)) << fit.sequence_length->value;
    ASSERT_EQ(fit.savings.size(), 4u);
    EXPECT_EQ(fit.savings[0].change, "model.recompute=block");
    EXPECT_EQ(fit.savings[1].change, "trainer.dtype=bfloat16");
    TrainConfig halves = config;
    halves.trainer.dtype = DType::bfloat16;
    EXPECT_EQ(fit.savings[1].peak_bytes, step_peak(halves).value().allocated);
    EXPECT_TRUE(runs(halves, fit.savings[1].batch_size.value, 16, limit));
    EXPECT_FALSE(runs(halves, fit.savings[1].batch_size.value + 1, 16, limit));
    EXPECT_EQ(fit.savings[3].change, "trainer.batch_size=2 trainer.accumulate=2");
  }
}

// A step of shapes alone, of which kernels are not called chunk by chunk: 2^36 of these would take hours.
TEST(TrainingMemoryTest, StepsOfAnySizeAreCountedAtOnce) {
  constexpr int64_t kBatch = int64_t{1} << 36;
  for (const std::string more : {"model.loss_chunk=1", "model.recompute=block", "trainer.dtype=bfloat16"}) {
    const auto small = step_peak(tiny_train_config({more, "trainer.batch_size=1048576"}));
    const auto large = step_peak(tiny_train_config({more, "trainer.batch_size=" + std::to_string(kBatch)}));
    ASSERT_TRUE(small && large) << more;
    const double ratio = static_cast<double>(large->allocated) / static_cast<double>(small->allocated);
    EXPECT_NEAR(ratio, static_cast<double>(kBatch >> 20), 0.01 * static_cast<double>(kBatch >> 20)) << more;
  }
}

// One of several processes has its rows of the batch, its part of the moments, and whole parameters and gradients.
TEST(TrainingMemoryTest, OneOfSeveralProcesses) {
  const TrainConfig config = tiny_train_config({"model.dim=64", "model.channel.hidden=128", "trainer.batch_size=8"});
  TrainConfig part = config;
  part.trainer.batch_size = 2;
  const TrainingMemory alone = measure_training({DeviceType::meta}, part);
  const TrainingMemory one_of_four = measure_training({DeviceType::meta}, config, 0, {4});
  EXPECT_EQ(one_of_four.processes, 4);
  EXPECT_EQ(total(sum(one_of_four.report.layers)), one_of_four.report.stats.allocated.peak);
  EXPECT_EQ(one_of_four.kept, alone.kept);
  const CategoryBytes now = sum(one_of_four.report.layers), then = sum(alone.report.layers);
  const auto ratio = [&](size_t category) {
    return static_cast<double>(now[category]) / static_cast<double>(then[category]);
  };
  EXPECT_NEAR(ratio(kParameter), 1.0, 0.02);
  EXPECT_NEAR(ratio(kGradient), 1.0, 0.02);
  EXPECT_NEAR(ratio(kOptimizer), 0.25, 0.02);
  const size_t limit = size_t{8} << 20;
  const LargestFit fit = find_fit(config, limit, {4}).batch_size;
  EXPECT_EQ(fit.value % 4, 0);
  EXPECT_GT(fit.value, find_fit(config, limit).batch_size.value);
}

TEST(TrainingMemoryTest, WhereNothingFits) {
  const MemoryFit fit = find_fit(tiny_train_config(), 1000);
  EXPECT_EQ(fit.batch_size.value, 0);
  EXPECT_GT(fit.batch_size.above.reserved, 1000u);
}

TEST(TrainingMemoryTest, ASnapshotReplayedEndsAtTheCountsOfTheAllocator) {
  if (!testing::has_python()) GTEST_SKIP() << "no python3";
  const TempFolder folder;
  const std::string path = (folder / "memory.pickle").string();
  for (const Device device : {Device{DeviceType::meta}, Device{DeviceType::cpu}}) {
    const TrainingMemory memory = measure_training(device, tiny_train_config({"trainer.dtype=bfloat16"}));
    write_file(path, memory.snapshot);
    const nlohmann::json replayed = testing::replay_snapshot(path);
    ASSERT_TRUE(replayed.is_object());
    const MemoryStats& stats = memory.report.stats;
    EXPECT_GT(stats.allocated.current, 0u);
    EXPECT_EQ(replayed["allocated"], stats.allocated.current);
    EXPECT_EQ(replayed["peak"], stats.allocated.peak);
    EXPECT_EQ(replayed["reserved"], stats.reserved.current);
    EXPECT_EQ(replayed["reserved_peak"], stats.reserved.peak);
    EXPECT_EQ(replayed["allocated_of_segments"], stats.allocated.current);
    EXPECT_THAT(replayed["frames"], ::testing::Contains("blocks.1.mixer"));
  }
}

}  // namespace
}  // namespace heddle
