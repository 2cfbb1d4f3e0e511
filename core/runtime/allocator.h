// Caching allocator of one device: best fit over cached segments, blocks split on demand and merged when freed, one
// pool per stream and graph, every byte accounted by category and by scope.                        docs/memory.md
// Requests of up to 1 MiB live in segments of their own, so that no small block keeps a large segment from being
// reused whole.
//
// Reuse is ordered by the stream: a freed block may be handed out at once, because what the next owner gives to the
// same stream runs after what the last one gave. A block that another stream uses too needs record_use().
// Thread-safe. Blocks must be given back before the allocator is destroyed (Storage keeps it alive by a shared_ptr).
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/runtime/backend.h"
#include "core/runtime/error.h"
#include "core/runtime/memory_recorder.h"
#include "core/runtime/memory_stats.h"

namespace heddle {

// Thrown when the device has no room left even after the cache was freed. what() says how much was asked, allocated
// and reserved, and names the largest holders by scope.
class OutOfMemory : public Error {
 public:
  using Error::Error;
};

struct AllocatorOptions {
  size_t trace_capacity = 0;  // events that trace() keeps, the last ones; 0: none; MemoryRecorder::kAll: all
  size_t limit_bytes = 0;     // refuse to reserve more than this; 0 means no limit of our own
};

// Whom a block is counted for.
struct MemoryLabel {
  uint32_t scope = 0;
  MemoryCategory category = MemoryCategory::other;
};

class CachingAllocator {
 public:
  static constexpr size_t kGranularity = 512;
  struct Block;

  explicit CachingAllocator(std::unique_ptr<Backend> backend, AllocatorOptions options = {});
  ~CachingAllocator();
  CachingAllocator(const CachingAllocator&) = delete;
  CachingAllocator& operator=(const CachingAllocator&) = delete;

  // A block of at least max(bytes, 1) bytes, aligned to 512, from the pool of `stream` and, if not 0, of a graph.
  // Throws OutOfMemory.
  Block* allocate(size_t bytes, StreamHandle stream, MemoryLabel label, uint64_t pool = 0);
  void free(Block* block) noexcept;
  // Work already given, or given before free(), to `stream` uses the block too: after free() it is handed out only when
  // that work is done.
  void record_use(Block* block, StreamHandle stream);
  static void* data(const Block* block);
  // The bytes counted for the block: the request rounded up to 512; 0 for a request of 0 bytes.
  static size_t bytes(const Block* block);

  // Returns every wholly free segment to the device, but those of graphs. Nothing while a graph is being captured.
  void release_cached();

  // The pool of a graph: its segments stay reserved, and are reused within the pool only, until the graph is gone and
  // retire_pool() gives them to the common pool of their stream. Between open and close, which is while the graph is
  // captured, the device is only asked for memory: nothing waits for it and nothing is returned to it.
  uint64_t open_pool();
  void close_pool() noexcept;
  void retire_pool(uint64_t pool) noexcept;

  uint32_t intern_scope(std::string_view scope);
  std::string scope_name(uint32_t scope) const;

  MemoryStats stats() const;
  // One entry a scope that held memory since the last reset_peaks(), in order of interning.
  std::vector<ScopeBytes> scopes() const;
  // Peaks restart from the current values; counts restart from 0.
  void reset_peaks();
  // What is taken from the device, in the order of addresses.
  std::vector<MemorySegment> segments() const;

  // The events that are kept, oldest first: all since the start, or the last AllocatorOptions::trace_capacity.
  std::vector<MemoryEvent> trace() const;
  bool is_recording() const { return recorder_.is_on(); }
  // Events that a context adds while the allocator records.
  void record_scope(MemoryLabel label);
  void record_mark(std::string_view moment);

  Backend& backend() { return *backend_; }
  Device device() const { return backend_->device(); }

 private:
  // Among blocks of one size the oldest segment comes first: which block is taken does not depend on the addresses that
  // the device gave, so that the same requests reserve the same bytes on every device.
  struct BySize {
    bool operator()(const Block* a, const Block* b) const;
  };
  using FreeBlocks = std::set<Block*, BySize>;
  struct PoolKey {
    StreamHandle stream = nullptr;
    uint64_t graph = 0;  // 0 for none
    bool small = false;  // requests of up to 1 MiB
    auto operator<=>(const PoolKey&) const = default;
  };

  FreeBlocks& pool_of(const Block* block);
  void put_back(Block* block);
  bool try_record_uses(Block* block) noexcept;
  void collect_used_elsewhere(bool wait);
  Block* take_cached(FreeBlocks& pool, size_t bytes);
  Block* reserve_segment(size_t bytes, const PoolKey& pool, MemoryLabel label);
  void* ask_device(size_t bytes);
  void split(Block* block, size_t bytes);
  Block* merge_with_next(Block* block);
  void release_cached_locked();
  void count_allocated(Block* block, MemoryLabel label, size_t bytes);
  void capture_peak();
  size_t room() const;
  void record(MemoryAction action, MemoryLabel label, uintptr_t address, size_t bytes, StreamHandle stream);
  void record_block(MemoryAction action, const Block* block);
  [[noreturn]] void throw_out_of_memory(size_t bytes, MemoryLabel label);

  mutable std::mutex mutex_;
  std::unique_ptr<Backend> backend_;
  AllocatorOptions options_;
  std::map<PoolKey, FreeBlocks> pools_;
  std::set<uint64_t> graph_pools_;  // those that are not retired
  uint64_t last_pool_ = 0;
  int open_pools_ = 0;
  std::vector<Block*> used_elsewhere_;  // freed by their owner while another stream may still use them
  MemoryStats stats_;
  std::vector<ScopeBytes> scopes_;
  std::unordered_map<std::string, uint32_t> scope_ids_;
  bool peak_is_now_ = false;          // the current values are a peak whose by-scope picture was not kept yet
  std::map<char*, Block*> segments_;  // the first block of each, by address
  int64_t last_segment_ = 0;
  MemoryRecorder recorder_;
};

}  // namespace heddle
