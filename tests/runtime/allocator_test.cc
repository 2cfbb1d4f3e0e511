#include "core/runtime/allocator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tests/runtime/fake_backend.h"

namespace heddle {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Block = CachingAllocator::Block;

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kUnit = CachingAllocator::kGranularity;
constexpr size_t kSmallSegment = 2 * kMiB;

class AllocatorTest : public ::testing::Test {
 protected:
  explicit AllocatorTest(AllocatorOptions options = {}) : options_(options) {}

  void TearDown() override {
    for (Block* block : blocks_) allocator_.free(block);
    allocator_.release_cached();
    EXPECT_TRUE(backend_->segments.empty()) << "all segments are whole again and can go back";
    EXPECT_EQ(stats().reserved.current, 0u);
    EXPECT_EQ(stats().allocated.current, 0u);
    EXPECT_FALSE(backend_->broken);
    EXPECT_EQ(backend_->events, 0);
  }

  // Blocks that a test does not free itself are freed at its end.
  Block* take(size_t bytes, MemoryLabel label = {}, StreamHandle stream = nullptr, uint64_t pool = 0) {
    return blocks_.emplace_back(allocator_.allocate(bytes, stream, label, pool));
  }
  void give_back(Block* block) {
    std::erase(blocks_, block);
    allocator_.free(block);
  }
  static uintptr_t address(const Block* block) { return reinterpret_cast<uintptr_t>(CachingAllocator::data(block)); }
  MemoryStats stats() const { return allocator_.stats(); }
  ScopeBytes scope(const std::string& name) const {
    for (const ScopeBytes& scope : allocator_.scopes()) {
      if (scope.scope == name) return scope;
    }
    return {};
  }
  static size_t of(const CategoryBytes& bytes, MemoryCategory category) { return bytes[static_cast<size_t>(category)]; }

  AllocatorOptions options_;
  FakeBackend* backend_ = new FakeBackend;  // owned by the allocator
  CachingAllocator allocator_{std::unique_ptr<Backend>(backend_), options_};
  std::vector<Block*> blocks_;
};

TEST_F(AllocatorTest, RoundsUpTo512) {
  size_t expected = 0;
  for (const auto& [asked, counted] : std::vector<std::pair<size_t, size_t>>{
           {1, 512}, {511, 512}, {512, 512}, {513, 1024}, {kMiB - 1, kMiB}, {kMiB + 1, kMiB + 512}}) {
    const Block* block = take(asked);
    EXPECT_EQ(CachingAllocator::bytes(block), counted);
    EXPECT_EQ(address(block) % 512, 0u);
    expected += counted;
    EXPECT_EQ(stats().allocated.current, expected);
  }
}

TEST_F(AllocatorTest, ZeroBytesHaveAnAddressOfTheirOwnAndCountNothing) {
  const Block* a = take(0);
  const Block* b = take(0);
  EXPECT_NE(address(a), address(b));
  EXPECT_EQ(stats().allocated.peak, 0u);
  EXPECT_EQ(stats().allocations, 2);
  EXPECT_EQ(stats().reserved.current, kSmallSegment);
}

TEST_F(AllocatorTest, SegmentsFollowTheSizeOfTheRequest) {
  const auto reserved_by = [&](size_t bytes) {
    const size_t before = stats().reserved.current;
    take(bytes);
    return stats().reserved.current - before;
  };
  EXPECT_EQ(reserved_by(kMiB + 1), 20 * kMiB) << "middling requests share 20 MiB";
  EXPECT_EQ(reserved_by(5 * kMiB), 0u);
  EXPECT_EQ(reserved_by(20 * kMiB), 20 * kMiB) << "large ones get their own";
  EXPECT_EQ(reserved_by(31 * kMiB + 1), 32 * kMiB);
  EXPECT_EQ(stats().device_allocations, 3);
}

TEST_F(AllocatorTest, SmallRequestsShareASegment) {
  for (int i = 0; i < 4096; ++i) take(512);
  EXPECT_EQ(stats().reserved.current, kSmallSegment);
  EXPECT_EQ(stats().allocated.current, kSmallSegment);
  EXPECT_EQ(stats().splits, 4095);
  EXPECT_EQ(stats().reuses, 4095);
  take(1);
  EXPECT_EQ(stats().reserved.current, 2 * kSmallSegment);
}

TEST_F(AllocatorTest, FreedMemoryIsReused) {
  Block* block = take(1000);
  const uintptr_t where = address(block);
  give_back(block);
  EXPECT_EQ(address(take(1000)), where);
  EXPECT_EQ(stats().device_allocations, 1);
  EXPECT_EQ(stats().frees, 1);
}

TEST_F(AllocatorTest, BestFitTakesTheSmallestHoleThatIsLargeEnough) {
  std::vector<Block*> holes, fences;
  for (const size_t units : {8, 2, 4, 3, 6}) {
    holes.push_back(take(units * kUnit));
    fences.push_back(take(kUnit));  // keeps the holes apart
  }
  std::vector<uintptr_t> where;
  for (Block* hole : holes) {
    where.push_back(address(hole));
    give_back(hole);
  }
  EXPECT_EQ(address(take(3 * kUnit)), where[3]);
  EXPECT_EQ(address(take(3 * kUnit)), where[2]);
  EXPECT_EQ(address(take(kUnit)), where[2] + 3 * kUnit) << "what was left of the hole of 4";
  EXPECT_EQ(address(take(5 * kUnit)), where[4]);
  EXPECT_EQ(address(take(2 * kUnit)), where[1]);
  EXPECT_EQ(address(take(7 * kUnit)), where[0]);
}

TEST_F(AllocatorTest, AmongHolesOfOneSizeTheLowestAddressWins) {
  std::vector<Block*> all;
  for (int i = 0; i < 6; ++i) all.push_back(take(kUnit));
  const uintptr_t lowest = address(all[1]);
  for (const size_t i : {5, 3, 1}) give_back(all[i]);
  // The last one merged with the rest of the segment.
  EXPECT_EQ(address(take(kUnit)), lowest);
}

TEST_F(AllocatorTest, NeighboursMergeWhateverTheOrder) {
  const std::vector<std::vector<size_t>> orders{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
  for (const auto& order : orders) {
    std::vector<Block*> all;
    for (int i = 0; i < 3; ++i) all.push_back(take(500 * 1024));
    for (const size_t i : order) give_back(all[i]);
    Block* whole = take(1 * kMiB);
    give_back(whole);
    EXPECT_EQ(stats().splits, stats().merges);
    EXPECT_EQ(stats().reserved.current, kSmallSegment);
  }
}

// Every other block is free: half of the segment, in blocks too small for anything larger.
TEST_F(AllocatorTest, FragmentedMemoryServesWhatFitsAndNothingElse) {
  std::vector<Block*> all;
  for (int i = 0; i < 1024; ++i) all.push_back(take(4 * kUnit));
  for (size_t i = 0; i < all.size(); i += 2) give_back(all[i]);
  EXPECT_EQ(stats().reserved.current, kSmallSegment);
  EXPECT_EQ(stats().allocated.current, kSmallSegment / 2);
  for (int i = 0; i < 512; ++i) take(4 * kUnit);
  EXPECT_EQ(stats().reserved.current, kSmallSegment) << "as many of the same size fit";
  for (size_t i = 1; i < all.size(); i += 4) give_back(all[i]);
  take(5 * kUnit);
  EXPECT_EQ(stats().reserved.current, 2 * kSmallSegment) << "one larger does not";
}

// Otherwise the large request of the next step would need a second large segment.
TEST_F(AllocatorTest, SmallRequestsDoNotBreakUpLargeSegments) {
  Block* large = take(20 * kMiB);
  const uintptr_t where = address(large);
  give_back(large);
  take(kMiB);
  EXPECT_EQ(address(take(20 * kMiB)), where);
  EXPECT_EQ(stats().reserved.current, 22 * kMiB);
}

TEST_F(AllocatorTest, StreamsNeverShareMemory) {
  Block* a = take(1000, {}, fake_stream(1));
  const uintptr_t where = address(a);
  give_back(a);
  const Block* b = take(1000, {}, fake_stream(2));
  EXPECT_NE(address(b), where);
  EXPECT_EQ(stats().device_allocations, 2);
  EXPECT_EQ(address(take(1000, {}, fake_stream(1))), where);
}

TEST_F(AllocatorTest, ABlockUsedByAnotherStreamWaitsForIt) {
  Block* block = take(1000, {}, fake_stream(1));
  const uintptr_t where = address(block);
  allocator_.record_use(block, fake_stream(1));
  EXPECT_EQ(backend_->events, 0) << "its own stream needs no event";
  allocator_.record_use(block, fake_stream(2));
  allocator_.record_use(block, fake_stream(2));
  EXPECT_EQ(backend_->events, 1);
  give_back(block);
  EXPECT_EQ(stats().allocated.current, 0u) << "its owner has given it back";
  EXPECT_NE(address(take(1000, {}, fake_stream(1))), where) << "the other stream has not passed yet";
  backend_->done.insert(reinterpret_cast<EventHandle>(1));
  EXPECT_EQ(address(take(1000, {}, fake_stream(1))), where);
}

TEST_F(AllocatorTest, OutOfMemoryWaitsForBlocksUsedElsewhere) {
  Block* block = take(20 * kMiB, {}, fake_stream(1));
  allocator_.record_use(block, fake_stream(2));
  give_back(block);
  backend_->capacity = 20 * kMiB;
  take(20 * kMiB, {}, fake_stream(3));
  EXPECT_EQ(stats().retries, 1);
}

TEST_F(AllocatorTest, APoolOfAGraphKeepsItsSegmentsUntilItRetires) {
  give_back(take(1000));
  const uint64_t pool = allocator_.open_pool();
  Block* inside = take(1000, {}, nullptr, pool);
  EXPECT_EQ(stats().device_allocations, 2) << "not from the common pool";
  const uintptr_t where = address(inside);
  give_back(inside);
  EXPECT_EQ(address(take(1000, {}, nullptr, pool)), where);
  allocator_.release_cached();
  EXPECT_EQ(stats().device_frees, 0) << "nothing goes back while a graph is captured";
  allocator_.close_pool();
  Block* outside = take(3 * kUnit);
  EXPECT_NE(address(outside), where + 2 * kUnit);
  give_back(outside);
  allocator_.release_cached();
  EXPECT_EQ(stats().device_frees, 1) << "the graph's segment stays";
  allocator_.retire_pool(pool);
  EXPECT_EQ(address(take(3 * kUnit)), where + 2 * kUnit) << "now its memory is everyone's";
}

TEST_F(AllocatorTest, ReleaseCachedKeepsSegmentsInUse) {
  Block* small = take(1000);
  give_back(take(20 * kMiB));
  EXPECT_EQ(stats().reserved.current, 22 * kMiB);
  allocator_.release_cached();
  EXPECT_EQ(stats().reserved.current, 2 * kMiB);
  EXPECT_EQ(stats().reserved.peak, 22 * kMiB);
  EXPECT_EQ(stats().device_frees, 1);
  EXPECT_EQ(CachingAllocator::bytes(small), 1024u);
}

// --- Statistics

TEST_F(AllocatorTest, PeaksOfAKnownSequence) {
  Block* a = take(10 * kUnit);
  Block* b = take(20 * kUnit);
  give_back(a);
  Block* c = take(5 * kUnit);
  EXPECT_EQ(stats().allocated.current, 25 * kUnit);
  EXPECT_EQ(stats().allocated.peak, 30 * kUnit);
  give_back(b);
  give_back(c);
  EXPECT_EQ(stats().allocated.current, 0u);
  EXPECT_EQ(stats().allocated.peak, 30 * kUnit);
  EXPECT_EQ(stats().allocations, 3);
  EXPECT_EQ(stats().frees, 3);

  Block* d = take(7 * kUnit);
  allocator_.reset_peaks();
  EXPECT_EQ(stats().allocated.peak, 7 * kUnit) << "peaks restart from what is there";
  EXPECT_EQ(stats().allocations, 0) << "counts restart from nothing";
  give_back(d);
  EXPECT_EQ(stats().allocated.peak, 7 * kUnit);
  EXPECT_EQ(stats().frees, 1);
}

TEST_F(AllocatorTest, EveryPeakRestartsFromWhatIsThere) {
  using enum MemoryCategory;
  const uint32_t scope = allocator_.intern_scope("block");
  const auto peaks = [&] {
    return std::vector<size_t>{stats().allocated.peak, stats().by_category[static_cast<int>(activation)].peak,
                               allocator_.scopes().at(0).allocated.peak};
  };
  take(2 * kUnit, {scope, activation});
  give_back(take(9 * kUnit, {scope, activation}));
  EXPECT_EQ(peaks(), std::vector<size_t>(3, 11 * kUnit));
  allocator_.reset_peaks();
  EXPECT_EQ(peaks(), std::vector<size_t>(3, 2 * kUnit));
  take(kUnit, {scope, activation});
  EXPECT_EQ(peaks(), std::vector<size_t>(3, 3 * kUnit));
}

// A forward and backward pass in small: the peak comes when gradients have begun and activations are still there.
TEST_F(AllocatorTest, CategoriesAndScopesAtThePeak) {
  const uint32_t block0 = allocator_.intern_scope("blocks.0"), block1 = allocator_.intern_scope("blocks.1");
  EXPECT_EQ(allocator_.intern_scope("blocks.0"), block0);
  EXPECT_EQ(allocator_.scope_name(block1), "blocks.1");
  using enum MemoryCategory;

  take(4 * kUnit, {block0, parameter});
  Block* activation0 = take(10 * kUnit, {block0, activation});
  Block* scratch = take(3 * kUnit, {block0, workspace});
  give_back(scratch);
  Block* activation1 = take(20 * kUnit, {block1, activation});
  Block* gradient1 = take(6 * kUnit, {block1, gradient});  // 40 units: the peak
  give_back(activation1);
  Block* gradient0 = take(8 * kUnit, {block0, gradient});
  give_back(activation0);
  give_back(gradient1);
  give_back(gradient0);

  const MemoryStats totals = stats();
  EXPECT_EQ(totals.allocated.peak, 40 * kUnit);
  EXPECT_EQ(totals.by_category[static_cast<int>(parameter)].current, 4 * kUnit);
  EXPECT_EQ(totals.by_category[static_cast<int>(activation)].peak, 30 * kUnit);
  EXPECT_EQ(totals.by_category[static_cast<int>(gradient)].peak, 14 * kUnit);
  EXPECT_EQ(totals.by_category[static_cast<int>(workspace)].peak, 3 * kUnit);
  EXPECT_EQ(totals.by_category[static_cast<int>(workspace)].current, 0u);

  const ScopeBytes first = scope("blocks.0"), second = scope("blocks.1");
  EXPECT_EQ(first.allocated.current, 4 * kUnit);
  EXPECT_EQ(first.allocated.peak, 22 * kUnit) << "its own, at another time than that of the whole";
  EXPECT_EQ(of(first.at_peak, parameter), 4 * kUnit);
  EXPECT_EQ(of(first.at_peak, activation), 10 * kUnit);
  EXPECT_EQ(of(first.at_peak, workspace), 0u) << "given back before the peak";
  EXPECT_EQ(of(first.at_peak, gradient), 0u) << "taken after the peak";
  EXPECT_EQ(of(second.at_peak, activation), 20 * kUnit);
  EXPECT_EQ(of(second.at_peak, gradient), 6 * kUnit);
  EXPECT_EQ(scope("").scope, "");
}

TEST_F(AllocatorTest, ThePictureAtThePeakAddsUpToThePeak) {
  const uint32_t a = allocator_.intern_scope("a"), b = allocator_.intern_scope("b");
  const auto sum_at_peak = [&] {
    size_t sum = 0;
    for (const ScopeBytes& scope : allocator_.scopes()) {
      for (const size_t bytes : scope.at_peak) sum += bytes;
    }
    return sum;
  };
  Block* first = take(5 * kUnit, {a, MemoryCategory::data});
  EXPECT_EQ(sum_at_peak(), 5 * kUnit) << "also while the peak lasts";
  Block* second = take(5 * kUnit, {b, MemoryCategory::data});
  give_back(first);
  first = take(5 * kUnit, {b, MemoryCategory::data});  // as high again, but no higher: the first picture stays
  EXPECT_EQ(of(scope("a").at_peak, MemoryCategory::data), 5 * kUnit);
  EXPECT_EQ(sum_at_peak(), stats().allocated.peak);
  give_back(second);
  allocator_.reset_peaks();
  EXPECT_EQ(sum_at_peak(), 5 * kUnit);
  EXPECT_EQ(scope("a").scope, "") << "nothing there since the reset";
}

// --- Trace

class AllocatorTraceTest : public AllocatorTest {
 protected:
  AllocatorTraceTest() : AllocatorTest({.trace_capacity = 4}) {}
};

TEST_F(AllocatorTest, NoTraceUnlessAsked) {
  take(1);
  EXPECT_TRUE(allocator_.trace().empty());
}

TEST_F(AllocatorTraceTest, RingKeepsTheLastEventsInOrder) {
  const uint32_t layer = allocator_.intern_scope("layer");
  Block* block = take(1000, {layer, MemoryCategory::workspace});
  std::vector<MemoryEvent> events = allocator_.trace();
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].action, MemoryAction::device_allocate);
  EXPECT_EQ(events[0].bytes, kSmallSegment);
  EXPECT_EQ(events[1].action, MemoryAction::allocate);
  EXPECT_EQ(events[1].bytes, 1024u);
  EXPECT_EQ(events[1].scope, layer);
  EXPECT_EQ(events[1].category, MemoryCategory::workspace);
  EXPECT_EQ(events[1].address, address(block));

  give_back(block);
  for (int i = 0; i < 5; ++i) {  // events 3 .. 12
    give_back(take(kUnit));
    events = allocator_.trace();
    ASSERT_EQ(events.size(), 4u);
    for (size_t e = 0; e < 4; ++e) EXPECT_EQ(events[e].sequence, 1 + 2 * i + static_cast<int64_t>(e));
    EXPECT_EQ(events[3].action, MemoryAction::free);
    EXPECT_EQ(events[2].action, MemoryAction::allocate);
  }
}

TEST(MemoryNamesTest, AreThoseOfTheDocs) {
  std::vector<std::string_view> names;
  for (int i = 0; i < kMemoryCategories; ++i) names.push_back(name(static_cast<MemoryCategory>(i)));
  EXPECT_THAT(names,
              ElementsAre("parameter", "gradient", "optimizer", "activation", "workspace", "cache", "data", "other"));
  EXPECT_EQ(name(MemoryAction::out_of_memory), "out_of_memory");
}

// --- Out of memory

class AllocatorOutOfMemoryTest : public AllocatorTest {
 protected:
  AllocatorOutOfMemoryTest() : AllocatorTest({.trace_capacity = 8}) {}

  std::string error_of(size_t bytes, MemoryLabel label = {}) {
    try {
      take(bytes, label);
    } catch (const OutOfMemory& error) {
      return error.what();
    }
    return "";
  }
};

TEST_F(AllocatorOutOfMemoryTest, CacheIsFreedAndTheRequestTriedAgain) {
  backend_->capacity = 44 * kMiB;
  give_back(take(20 * kMiB));
  Block* kept = take(kUnit);
  give_back(take(20 * kMiB, {}, fake_stream(9)));  // another stream's cache is freed too
  take(40 * kMiB);
  EXPECT_EQ(stats().retries, 1);
  EXPECT_EQ(stats().device_frees, 2);
  EXPECT_EQ(stats().reserved.current, 42 * kMiB);
  EXPECT_EQ(CachingAllocator::bytes(kept), kUnit);
  EXPECT_FALSE(backend_->synchronized.empty()) << "work that may use the cache is waited for";
}

TEST_F(AllocatorOutOfMemoryTest, TheRoundingOfSegmentsIsGivenUpFirst) {
  backend_->capacity = 3 * kMiB;
  take(2 * kMiB + kUnit);  // would take 20 MiB
  EXPECT_EQ(stats().reserved.current, 2 * kMiB + kUnit);
  EXPECT_EQ(stats().retries, 1);
  take(kUnit);
  EXPECT_EQ(stats().reserved.current, 2 * kMiB + 2 * kUnit) << "nor is there room for 2 MiB";
}

TEST_F(AllocatorOutOfMemoryTest, ErrorSaysWhatIsHeldByWhom) {
  backend_->capacity = 70 * kMiB;
  const uint32_t small = allocator_.intern_scope("embedding"), large = allocator_.intern_scope("blocks.11.channel"),
                 middle = allocator_.intern_scope("head"), none = allocator_.intern_scope("blocks.0");
  take(10 * kMiB, {small, MemoryCategory::parameter});
  take(20 * kMiB, {large, MemoryCategory::activation});
  take(kMiB + kMiB / 2, {large, MemoryCategory::workspace});
  take(12 * kMiB, {middle, MemoryCategory::gradient});
  take(kUnit, {0, MemoryCategory::other});
  EXPECT_EQ(error_of(size_t{3} << 30, {none, MemoryCategory::activation}),
            "out of memory on meta: asked 3.0 GiB, 43.5 MiB allocated of 52.0 MiB reserved; largest: "
            "blocks.11.channel activation 21.5 MiB, head gradient 12.0 MiB, embedding parameter 10.0 MiB");
  const std::vector<MemoryEvent> events = allocator_.trace();
  EXPECT_EQ(events.back().action, MemoryAction::out_of_memory);
  EXPECT_EQ(events.back().scope, none);
  EXPECT_EQ(events.back().bytes, size_t{3} << 30);
}

TEST_F(AllocatorOutOfMemoryTest, NothingHeldAndNoScope) {
  backend_->capacity = 0;
  EXPECT_EQ(error_of(100), "out of memory on meta: asked 512 B, 0 B allocated of 0 B reserved");
  backend_->capacity = SIZE_MAX;
  take(100);
  backend_->capacity = 0;
  EXPECT_THAT(error_of(4 * kMiB), HasSubstr("; largest: (no scope) other 512 B"));
}

TEST_F(AllocatorOutOfMemoryTest, StateIsIntactAfterwards) {
  backend_->capacity = 4 * kMiB;
  Block* a = take(1000);
  Block* b = take(2000);
  give_back(a);
  const MemoryStats before = stats();
  for (int i = 0; i < 3; ++i) EXPECT_NE(error_of(5 * kMiB), "");
  const MemoryStats after = stats();
  EXPECT_EQ(after.allocated.current, before.allocated.current);
  EXPECT_EQ(after.allocated.peak, before.allocated.peak);
  EXPECT_EQ(after.reserved.current, before.reserved.current);
  EXPECT_EQ(after.allocations, before.allocations);
  EXPECT_EQ(after.reuses, before.reuses);
  EXPECT_EQ(after.retries, before.retries + 3);
  EXPECT_LT(address(take(1000)), address(b)) << "the hole is still known";
  take(2 * kMiB);  // and what fits, fits
}

TEST_F(AllocatorOutOfMemoryTest, RequestsBeyondAnyMemoryDoNotWrapAround) {
  for (const size_t bytes : {SIZE_MAX, SIZE_MAX - 511, SIZE_MAX / 2 + 1, SIZE_MAX / 2}) {
    backend_->capacity = kMiB * kMiB;
    EXPECT_THAT(error_of(bytes), HasSubstr("out of memory")) << bytes;
  }
  EXPECT_EQ(stats().reserved.current, 0u);
}

TEST(FormatBytesTest, SizesHaveUnitsFromBytesOn) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.0 KiB");
  EXPECT_EQ(format_bytes(211 * kMiB), "211.0 MiB");
  EXPECT_EQ(format_bytes(1025 * kMiB * kMiB), "1025.0 TiB");
}

class AllocatorLimitTest : public AllocatorTest {
 protected:
  AllocatorLimitTest() : AllocatorTest({.limit_bytes = 6 * kMiB}) {}
};

TEST_F(AllocatorLimitTest, ALimitIsKeptLikeTheEndOfTheDevice) {
  take(2 * kMiB);  // 20 MiB are not to be had: exactly what was asked then
  Block* second = take(3 * kMiB);
  EXPECT_EQ(stats().reserved.current, 5 * kMiB);
  EXPECT_THROW(take(2 * kMiB), OutOfMemory);
  give_back(second);
  take(4 * kMiB);
  EXPECT_EQ(stats().reserved.current, 6 * kMiB);
  EXPECT_LE(stats().reserved.peak, 6 * kMiB);
}

TEST(HostBackendTest, MemoryIsAligned) {
  CachingAllocator allocator(std::make_unique<HostBackend>());
  std::vector<Block*> blocks;
  for (const size_t bytes : {1ul, 700ul, 3 * kMiB, 25 * kMiB + 3}) {
    blocks.push_back(allocator.allocate(bytes, nullptr, {}));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(CachingAllocator::data(blocks.back())) % 512, 0u);
  }
  for (Block* block : blocks) allocator.free(block);
}

}  // namespace
}  // namespace heddle
