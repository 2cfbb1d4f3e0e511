// What the allocator's trace and its segments say, and that they say nothing when they are not asked for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/runtime/context.h"
#include "core/runtime/memory_recorder.h"
#include "core/runtime/storage.h"
#include "tests/runtime/fake_backend.h"

namespace heddle {
namespace {

using ::testing::ElementsAre;

MemoryEvent event(size_t bytes) { return {MemoryAction::allocate, MemoryCategory::data, 0, 0, bytes, 0}; }

TEST(MemoryRecorderTest, KeepsNothingTheLastOrAll) {
  MemoryRecorder off(0), last(3), all(MemoryRecorder::kAll);
  EXPECT_FALSE(off.is_on());
  for (size_t bytes = 0; bytes < 100; ++bytes) {
    for (MemoryRecorder* recorder : {&off, &last, &all}) recorder->add(event(bytes));
  }
  EXPECT_TRUE(off.events().empty());
  EXPECT_EQ(all.events().size(), 100u);
  int64_t number = 97, time = 0;
  for (const MemoryEvent& kept : last.events()) {
    EXPECT_EQ(kept.sequence, number);
    EXPECT_EQ(kept.bytes, static_cast<size_t>(number++));
    EXPECT_GE(kept.nanoseconds, time);
    time = kept.nanoseconds;
  }
  EXPECT_EQ(number, 100);
}

TEST(MemoryRecorderTest, ScopesAndMarksOfAContextAreInTheTrace) {
  Context context(Device{DeviceType::meta}, {.allocator = {.trace_capacity = MemoryRecorder::kAll}});
  context.mark("forward");
  {
    const MemoryScope scope(context, "norm", MemoryCategory::activation);
    const Storage storage(context, 700);
  }
  std::vector<std::pair<std::string, std::string>> seen;
  for (const MemoryEvent& event : context.allocator().trace()) {
    seen.emplace_back(name(event.action), context.allocator().scope_name(event.scope));
  }
  using Pair = std::pair<std::string, std::string>;
  EXPECT_THAT(seen, ElementsAre(Pair("mark", "forward"), Pair("scope", "norm"), Pair("device_allocate", "norm"),
                                Pair("allocate", "norm"), Pair("free", "norm"), Pair("scope", "")));
  Context silent(Device{DeviceType::meta});
  silent.mark("forward");
  const Storage storage(silent, 700);
  EXPECT_TRUE(silent.allocator().trace().empty());
}

TEST(MemorySegmentsTest, AreWhatIsTakenFromTheDevice) {
  auto owned = std::make_unique<FakeBackend>();
  CachingAllocator allocator(std::move(owned), {.trace_capacity = MemoryRecorder::kAll});
  EXPECT_TRUE(allocator.segments().empty());
  const uint32_t scope = allocator.intern_scope("layer");
  auto* first = allocator.allocate(1000, nullptr, {scope, MemoryCategory::workspace});
  auto* second = allocator.allocate(512, nullptr, {});
  auto* large = allocator.allocate(size_t{30} << 20, nullptr, {});
  allocator.free(first);
  std::vector<MemorySegment> segments = allocator.segments();
  ASSERT_EQ(segments.size(), 2u);
  EXPECT_TRUE(segments[0].is_small);
  EXPECT_FALSE(segments[1].is_small);
  EXPECT_EQ(segments[0].bytes + segments[1].bytes, allocator.stats().reserved.current);
  ASSERT_EQ(segments[0].blocks.size(), 3u);
  EXPECT_EQ(segments[0].blocks[0].state, BlockState::free);
  EXPECT_EQ(segments[0].blocks[0].requested, 0u);
  EXPECT_EQ(segments[0].blocks[1].state, BlockState::in_use);
  EXPECT_EQ(segments[0].blocks[1].counted, 512u);
  first = allocator.allocate(1000, nullptr, {scope, MemoryCategory::workspace});
  const MemoryBlock block = allocator.segments()[0].blocks[0];
  EXPECT_EQ(block.bytes, 1024u);
  EXPECT_EQ(block.requested, 1000u);
  EXPECT_EQ(block.scope, scope);
  EXPECT_EQ(block.category, MemoryCategory::workspace);
  for (auto* used : {first, second, large}) allocator.free(used);
  segments = allocator.segments();
  ASSERT_EQ(segments[0].blocks.size(), 1u) << "merged";
  allocator.release_cached();
  EXPECT_TRUE(allocator.segments().empty());
}

// A block that another stream uses too waits between its free and the end of that use.
TEST(MemorySegmentsTest, AFreedBlockWaitsForOtherStreams) {
  auto owned = std::make_unique<FakeBackend>();
  FakeBackend& backend = *owned;
  CachingAllocator allocator(std::move(owned), {.trace_capacity = MemoryRecorder::kAll});
  auto* block = allocator.allocate(1000, nullptr, {});
  allocator.record_use(block, fake_stream(1));
  allocator.free(block);
  EXPECT_EQ(allocator.segments()[0].blocks[0].state, BlockState::waiting);
  EXPECT_EQ(allocator.trace().back().action, MemoryAction::free_requested);
  backend.done.insert(reinterpret_cast<EventHandle>(uintptr_t{1}));
  auto* next = allocator.allocate(1000, nullptr, {});
  const std::vector<MemoryEvent> events = allocator.trace();
  EXPECT_EQ(events[events.size() - 2].action, MemoryAction::free_completed);
  allocator.free(next);
}

}  // namespace
}  // namespace heddle
