// What a report says of any computation, and how it is printed.
#include "tools/memory_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "core/runtime/error.h"
#include "core/runtime/storage.h"
#include "tools/memory_tables.h"

namespace heddle {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr size_t kKiB = 1024;
constexpr auto kActivation = static_cast<size_t>(MemoryCategory::activation);
constexpr auto kWorkspace = static_cast<size_t>(MemoryCategory::workspace);

// Three layers; the peak is in the second phase, while b has its workspace.
void compute(Context& context) {
  const MemoryScope kept_scope(context, "a", MemoryCategory::activation);
  const Storage kept(context, 10 * kKiB);
  context.mark("first");
  std::optional<Storage> freed;
  freed.emplace(context, 3 * kKiB);
  context.mark("second");
  {
    const MemoryScope scope(context, "b", MemoryCategory::workspace);
    const Storage workspace(context, 2 * kKiB);
  }
  freed.reset();
  context.mark("third");
  const Storage last(context, 1);
}

TEST(MemoryReportTest, SaysWhereThePeakIs) {
  const MemoryReport report = measure_memory({DeviceType::meta}, compute);
  EXPECT_EQ(report.stats.allocated.peak, 15 * kKiB);
  ASSERT_EQ(report.layers.size(), 2u);
  EXPECT_EQ(report.layers.at("a")[kActivation], 13 * kKiB);
  EXPECT_EQ(report.layers.at("a.b")[kWorkspace], 2 * kKiB);
  EXPECT_EQ(total(sum(report.layers)), report.stats.allocated.peak);
  EXPECT_EQ(report.peak_phase, 2u);
  EXPECT_EQ(report.peak_layer, "a.b");
  std::vector<std::string> names;
  std::vector<size_t> most, at_end, at_begin;
  for (const MemoryPhase& phase : report.phases) {
    names.push_back(phase.name);
    at_begin.push_back(total(sum(phase.at_begin)));
    most.push_back(total(phase.at_peak));
    at_end.push_back(total(phase.at_end));
  }
  EXPECT_THAT(names, ElementsAre("", "first", "second", "third"));
  EXPECT_THAT(at_begin, ElementsAre(0u, 10 * kKiB, 13 * kKiB, 10 * kKiB));
  EXPECT_THAT(most, ElementsAre(10 * kKiB, 13 * kKiB, 15 * kKiB, 10 * kKiB + 512));
  EXPECT_THAT(at_end, ElementsAre(10 * kKiB, 13 * kKiB, 10 * kKiB, 0u)) << "the report is made after the work";
  EXPECT_THAT(to_text(report), HasSubstr("peak on meta: 15.0 KiB allocated (15360 bytes), 2.0 MiB reserved; reached "
                                         "second in a.b\n"));
}

TEST(MemoryReportTest, IsTheSameOnTheCpu) {
  const MemoryReport meta = measure_memory({DeviceType::meta}, compute);
  const MemoryReport cpu = measure_memory({DeviceType::cpu}, compute);
  EXPECT_EQ(meta.layers, cpu.layers);
  EXPECT_EQ(meta.trace.events.size(), cpu.trace.events.size());
  EXPECT_EQ(meta.stats.reserved.peak, cpu.stats.reserved.peak);
}

TEST(MemoryReportTest, NeedsAContextThatRecords) {
  Context context(Device{DeviceType::meta});
  EXPECT_THROW(report_memory(context), Error);
  const MemoryReport nothing = measure_memory({DeviceType::meta}, [](Context&) {});
  EXPECT_EQ(nothing.stats.allocated.peak, 0u);
  EXPECT_THAT(to_text(nothing), HasSubstr("peak on meta: 0 B allocated"));
}

CategoryBytes activations(size_t bytes) {
  CategoryBytes all{};
  all[kActivation] = bytes;
  return all;
}

TEST(LayerTreeTest, FoldsLayersThatHoldTheSame) {
  LayerBytes layers;
  for (int i = 0; i < 12; ++i) {
    layers["blocks." + std::to_string(i) + ".norm"] = activations(i == 5 ? 2048 : 512);
    layers["blocks." + std::to_string(i)] = activations(1024);
  }
  layers["head"] = activations(40000);
  layers[""] = activations(100);
  const LayerTree tree = layer_tree(layers);
  EXPECT_EQ(total(tree.bytes), total(sum(layers)));
  ASSERT_EQ(tree.children.size(), 3u);
  EXPECT_EQ(tree.children[0].name, "head");
  EXPECT_EQ(tree.children[1].name, "blocks");
  EXPECT_EQ(tree.children[2].name, "(shared)");
  const std::vector<LayerTree>& blocks = tree.children[1].children;
  ASSERT_EQ(blocks.size(), 2u);
  EXPECT_EQ(blocks[0].name, "0-4,6-11");
  EXPECT_EQ(blocks[0].count, 11);
  EXPECT_EQ(total(blocks[0].bytes), 1536u);
  EXPECT_EQ(blocks[1].name, "5");
  ASSERT_EQ(blocks[1].children.size(), 2u);
  EXPECT_EQ(blocks[1].children[0].name, "norm");
  EXPECT_EQ(blocks[1].children[1].name, "(own)");
  EXPECT_EQ(total(blocks[1].children[1].bytes), 1024u);
}

}  // namespace
}  // namespace heddle
