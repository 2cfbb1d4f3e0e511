// What the allocator counts, and the labels it counts by.                                          docs/memory.md
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace heddle {

enum class MemoryCategory : uint8_t { parameter, gradient, optimizer, activation, workspace, cache, data, other };
inline constexpr int kMemoryCategories = 8;

std::string_view name(MemoryCategory category);

// "512 B", "12.5 KiB", "211.0 MiB", "2.1 GiB", "1.5 TiB".
std::string format_bytes(size_t bytes);

// A byte count and the largest value it had since the last reset.
struct ByteCounter {
  size_t current = 0;
  size_t peak = 0;

  void add(size_t bytes) {
    current += bytes;
    if (current > peak) peak = current;
  }
  void subtract(size_t bytes) { current -= bytes; }
};

using CategoryBytes = std::array<size_t, kMemoryCategories>;

// Bytes of one scope (the path of a layer, as "blocks.3.mixer.norm"; "" outside of any).
struct ScopeBytes {
  std::string scope;
  ByteCounter allocated;    // over all categories; its peak is the scope's own
  CategoryBytes current{};  // now
  CategoryBytes at_peak{};  // when the allocator's total was at its peak
};

struct MemoryStats {
  ByteCounter allocated;  // owned by tensors and workspaces, in units of 512 bytes
  ByteCounter reserved;   // taken from the device
  std::array<ByteCounter, kMemoryCategories> by_category{};
  int64_t allocations = 0;         // blocks handed out
  int64_t reuses = 0;              // of these, served from cached memory
  int64_t splits = 0;              // blocks cut in two
  int64_t merges = 0;              // neighbours joined
  int64_t frees = 0;               // blocks given back by their owners
  int64_t device_allocations = 0;  // segments taken from the device
  int64_t device_frees = 0;        // segments given back to the device
  int64_t retries = 0;             // device refusals answered by freeing the cache
};

enum class MemoryAction : uint8_t {
  allocate,
  free,            // and the block may be handed out again
  free_requested,  // the owner gave the block back, but another stream may still use it
  free_completed,  // of a block whose free was requested before: it may be handed out again
  device_allocate,
  device_free,
  out_of_memory,
  scope,  // from here on allocations of the context count for this scope and category
  mark,   // Context::mark()
};

std::string_view name(MemoryAction action);

// One line of the trace.
struct MemoryEvent {
  MemoryAction action;
  MemoryCategory category;
  uint32_t scope;           // index for CachingAllocator::scope_name; of a mark, its name
  uintptr_t address;        // of the block or segment; of out_of_memory, the bytes left below the limits, or 0
  size_t bytes;             // counted for the block, taken for the segment, or asked for
  uintptr_t stream;         // 0: the default one
  int64_t sequence = 0;     // counts all events since the start
  int64_t nanoseconds = 0;  // since the start, on the clock of the host
};

enum class BlockState : uint8_t { free, in_use, waiting };  // waiting: freed, but another stream may still use it

// A segment as it is now, with its blocks in the order of their addresses.
struct MemoryBlock {
  size_t bytes = 0;      // of memory
  size_t counted = 0;    // for its owner; 0 when the block is free
  size_t requested = 0;  // by its owner, in bytes; 0 when the block is free
  BlockState state = BlockState::free;
  MemoryCategory category = MemoryCategory::other;
  uint32_t scope = 0;
};
struct MemorySegment {
  uintptr_t address = 0;
  size_t bytes = 0;
  uintptr_t stream = 0;
  bool is_small = false;  // for requests of up to 1 MiB
  std::vector<MemoryBlock> blocks;
};

}  // namespace heddle
