// Random sequences against a model that says in a few lines what the allocator is to do, down to every address; and
// one allocator hammered by several threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "core/runtime/allocator.h"
#include "core/tensor/random.h"
#include "tests/runtime/fake_backend.h"

namespace heddle {
namespace {

using Block = CachingAllocator::Block;

constexpr size_t kMebibyte = size_t{1} << 20;
constexpr size_t kGranule = CachingAllocator::kGranularity;

// Best fit over lists of free intervals, looked through from one end to the other.
class Model {
 public:
  explicit Model(size_t capacity) : device_(capacity) {}

  // Where the block has to be; nothing when the device is full.
  std::optional<uintptr_t> allocate(size_t bytes, uintptr_t stream, int category, int scope) {
    const size_t size = std::max<size_t>((bytes + kGranule - 1) / kGranule, 1) * kGranule;
    uintptr_t best = find(size, stream);
    if (best == 0) {
      if (!reserve(size, stream)) return {};
      best = find(size, stream);
    } else {
      ++stats.reuses;
    }
    Segment& segment = segment_of(best);
    const size_t rest = segment.free.at(best) - size;
    segment.free.erase(best);
    if (rest > 0) {
      segment.free[best + size] = rest;
      ++stats.splits;
    }
    ++stats.allocations;
    const size_t counted = (bytes + kGranule - 1) / kGranule * kGranule;
    live[best] = {size, counted, category, scope};
    stats.allocated.add(counted);
    stats.by_category[static_cast<size_t>(category)].add(counted);
    scopes[scope].add(counted);
    if (stats.allocated.current > picture_of_) {
      picture_of_ = stats.allocated.current;
      at_peak.clear();
      for (const auto& [address, block] : live) at_peak[{block.scope, block.category}] += block.counted;
    }
    return best;
  }

  void free(uintptr_t address) {
    const Live block = live.at(address);
    live.erase(address);
    ++stats.frees;
    stats.allocated.subtract(block.counted);
    stats.by_category[static_cast<size_t>(block.category)].subtract(block.counted);
    scopes[block.scope].subtract(block.counted);
    std::map<uintptr_t, size_t>& free = segment_of(address).free;
    auto here = free.emplace(address, block.size).first;
    const auto next = std::next(here);
    if (next != free.end() && here->first + here->second == next->first) {
      here->second += next->second;
      free.erase(next);
      ++stats.merges;
    }
    if (here != free.begin() && std::prev(here)->first + std::prev(here)->second == here->first) {
      std::prev(here)->second += here->second;
      free.erase(here);
      ++stats.merges;
    }
  }

  void release_cached() {
    std::erase_if(segments_, [&](auto& entry) {
      const auto& [address, segment] = entry;
      if (segment.free.size() != 1 || segment.free.begin()->second != segment.size) return false;
      device_.deallocate(reinterpret_cast<void*>(address), segment.size);
      stats.reserved.subtract(segment.size);
      ++stats.device_frees;
      return true;
    });
  }

  struct Live {
    size_t size, counted;
    int category, scope;
  };
  MemoryStats stats;
  std::map<uintptr_t, Live> live;
  std::map<int, ByteCounter> scopes;
  std::map<std::pair<int, int>, size_t> at_peak;

 private:
  struct Segment {
    size_t size;
    uintptr_t stream;
    bool small;
    std::map<uintptr_t, size_t> free;  // address -> bytes
  };

  static bool small(size_t size) { return size <= kMebibyte; }

  uintptr_t find(size_t size, uintptr_t stream) const {
    uintptr_t best = 0;
    size_t best_size = SIZE_MAX;
    for (const auto& [start, segment] : segments_) {
      if (segment.stream != stream || segment.small != small(size)) continue;
      for (const auto& [address, bytes] : segment.free) {
        if (bytes < size || bytes >= best_size) continue;
        best = address;
        best_size = bytes;
      }
    }
    return best;
  }

  bool reserve(size_t size, uintptr_t stream) {
    const size_t rounded = small(size)             ? 2 * kMebibyte
                           : size < 10 * kMebibyte ? 20 * kMebibyte
                                                   : (size + 2 * kMebibyte - 1) / (2 * kMebibyte) * (2 * kMebibyte);
    if (add_segment(rounded, stream, small(size))) return true;
    ++stats.retries;
    release_cached();
    return add_segment(rounded, stream, small(size)) || add_segment(size, stream, small(size));
  }

  bool add_segment(size_t size, uintptr_t stream, bool small) {
    const auto address = reinterpret_cast<uintptr_t>(device_.allocate(size));
    if (address == 0) return false;
    segments_[address] = {size, stream, small, {{address, size}}};
    stats.reserved.add(size);
    ++stats.device_allocations;
    return true;
  }

  Segment& segment_of(uintptr_t address) { return std::prev(segments_.upper_bound(address))->second; }

  FakeBackend device_;  // gives the same addresses as the allocator's
  std::map<uintptr_t, Segment> segments_;
  size_t picture_of_ = 0;
};

void expect_same(const ByteCounter& found, const ByteCounter& expected) {
  ASSERT_EQ(found.current, expected.current);
  ASSERT_EQ(found.peak, expected.peak);
}

void expect_same(const MemoryStats& found, const MemoryStats& expected) {
  expect_same(found.allocated, expected.allocated);
  expect_same(found.reserved, expected.reserved);
  for (size_t i = 0; i < kMemoryCategories; ++i) expect_same(found.by_category[i], expected.by_category[i]);
  ASSERT_EQ(found.allocations, expected.allocations);
  ASSERT_EQ(found.reuses, expected.reuses);
  ASSERT_EQ(found.splits, expected.splits);
  ASSERT_EQ(found.merges, expected.merges);
  ASSERT_EQ(found.frees, expected.frees);
  ASSERT_EQ(found.device_allocations, expected.device_allocations);
  ASSERT_EQ(found.device_frees, expected.device_frees);
  ASSERT_EQ(found.retries, expected.retries);
}

void expect_apart(const std::map<uintptr_t, Model::Live>& live) {
  uintptr_t end = 0;
  for (const auto& [address, block] : live) {
    ASSERT_GE(address, end) << "two live blocks overlap";
    ASSERT_EQ(address % 512, 0u);
    end = address + block.size;
  }
}

class AllocatorStressTest : public ::testing::TestWithParam<int> {};

TEST_P(AllocatorStressTest, EqualsTheModelDownToEveryAddress) {
  constexpr int kScopes = 4, kStreams = 3;
  // Half of the runs are short of memory.
  const size_t capacity = GetParam() % 2 == 0 ? size_t{1} << 40 : 96 * kMebibyte;
  auto owned = std::make_unique<FakeBackend>(capacity);
  const FakeBackend& backend = *owned;
  CachingAllocator allocator(std::move(owned));
  Model model(capacity);
  for (int scope = 1; scope < kScopes; ++scope) allocator.intern_scope(fmt::format("scope {}", scope));
  Random random(static_cast<uint64_t>(GetParam()), RandomStream::test);
  const auto below = [&](uint64_t bound) { return static_cast<int>(random.next_below(bound)); };

  std::vector<Block*> blocks;
  int refused = 0;
  for (int step = 0; step < 3000; ++step) {
    // Waves: the number of live blocks rises and falls.
    const bool allocate = below(100) < (step / 300 % 2 == 0 ? 60 : 40);
    if (allocate || blocks.empty()) {
      // Small sizes most often, large ones now and then, every kind of remainder of 512.
      const int kind = below(20);
      const size_t bytes = kind == 0   ? 0
                           : kind < 14 ? random.next_below(20 * kGranule)
                           : kind < 18 ? random.next_below(kMebibyte)
                                       : random.next_below(24 * kMebibyte);
      const auto stream = static_cast<uintptr_t>(below(kStreams));
      const int category = below(kMemoryCategories), scope = below(kScopes);
      const std::optional<uintptr_t> expected = model.allocate(bytes, stream, category, scope);
      try {
        blocks.push_back(allocator.allocate(bytes, fake_stream(stream),
                                            {static_cast<uint32_t>(scope), static_cast<MemoryCategory>(category)}));
        ASSERT_TRUE(expected.has_value());
        ASSERT_EQ(reinterpret_cast<uintptr_t>(CachingAllocator::data(blocks.back())), *expected);
        ASSERT_EQ(CachingAllocator::bytes(blocks.back()), (bytes + kGranule - 1) / kGranule * kGranule);
      } catch (const OutOfMemory&) {
        ASSERT_FALSE(expected.has_value());
        ++refused;
      }
    } else {
      const size_t victim = random.next_below(blocks.size());
      model.free(reinterpret_cast<uintptr_t>(CachingAllocator::data(blocks[victim])));
      allocator.free(blocks[victim]);
      blocks[victim] = blocks.back();
      blocks.pop_back();
    }
    if (below(500) == 0) {
      allocator.release_cached();
      model.release_cached();
    }
    if (step % 50 == 0) {
      ASSERT_NO_FATAL_FAILURE(expect_same(allocator.stats(), model.stats)) << step;
      ASSERT_NO_FATAL_FAILURE(expect_apart(model.live));
      ASSERT_EQ(allocator.stats().reserved.current, backend.taken);
    }
  }
  EXPECT_EQ(refused > 0, GetParam() % 2 == 1);

  for (const ScopeBytes& scope : allocator.scopes()) {
    const int id = scope.scope.empty() ? 0 : scope.scope.back() - '0';
    ASSERT_NO_FATAL_FAILURE(expect_same(scope.allocated, model.scopes[id]));
    for (int category = 0; category < kMemoryCategories; ++category) {
      EXPECT_EQ(scope.at_peak[static_cast<size_t>(category)], (model.at_peak[{id, category}]));
    }
  }
  for (Block* block : blocks) {
    model.free(reinterpret_cast<uintptr_t>(CachingAllocator::data(block)));
    allocator.free(block);
  }
  expect_same(allocator.stats(), model.stats);
  EXPECT_EQ(allocator.stats().splits, allocator.stats().merges) << "one free block a segment";
  EXPECT_EQ(allocator.stats().allocated.current, 0u);
  allocator.release_cached();
  EXPECT_EQ(allocator.stats().reserved.current, 0u);
  EXPECT_TRUE(backend.segments.empty());
  EXPECT_FALSE(backend.broken);
}

INSTANTIATE_TEST_SUITE_P(Seeds, AllocatorStressTest, ::testing::Range(0, 16));

// Each thread writes its mark over all of its blocks and finds it there later.
TEST(AllocatorThreaded, BlocksBelongToOneThreadAtATime) {
  constexpr int kThreads = 4, kSteps = 1500;
  CachingAllocator allocator(std::make_unique<HostBackend>(), {.trace_capacity = 64});
  const auto work = [&](int thread) {
    const uint32_t scope = allocator.intern_scope(fmt::format("thread {}", thread % 2));
    const MemoryLabel label{scope, static_cast<MemoryCategory>(thread)};
    Random random(1, RandomStream::test, static_cast<uint32_t>(thread));
    std::vector<Block*> blocks;
    const auto marked = [&](const Block* block) {
      const auto* words = static_cast<const int*>(CachingAllocator::data(block));
      const size_t count = CachingAllocator::bytes(block) / sizeof(int);
      return std::all_of(words, words + count, [&](int word) { return word == thread; });
    };
    const auto give_back = [&](size_t index) {
      EXPECT_TRUE(marked(blocks[index]));
      allocator.free(blocks[index]);
      blocks[index] = blocks.back();
      blocks.pop_back();
    };
    for (int step = 0; step < kSteps; ++step) {
      if (blocks.size() < 20 || random.next_below(2) == 0) {
        Block* block = allocator.allocate(random.next_below(6000), nullptr, label);
        auto* words = static_cast<int*>(CachingAllocator::data(block));
        std::fill_n(words, CachingAllocator::bytes(block) / sizeof(int), thread);
        blocks.push_back(block);
      } else {
        give_back(random.next_below(blocks.size()));
      }
      if (step % 200 == 0) {
        EXPECT_GE(allocator.stats().reserved.current, allocator.stats().allocated.current);
        EXPECT_LE(allocator.trace().size(), 64u);
        EXPECT_FALSE(allocator.scopes().empty() || allocator.scope_name(scope).empty());
        allocator.release_cached();
      }
    }
    while (!blocks.empty()) give_back(0);
  };
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) threads.emplace_back(work, thread);
  for (std::thread& thread : threads) thread.join();
  const MemoryStats stats = allocator.stats();
  EXPECT_EQ(stats.allocated.current, 0u);
  EXPECT_EQ(stats.allocations, stats.frees);
  EXPECT_EQ(stats.splits, stats.merges);
  allocator.release_cached();
  EXPECT_EQ(allocator.stats().reserved.current, 0u);
}

}  // namespace
}  // namespace heddle
