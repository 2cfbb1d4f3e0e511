#include "core/runtime/allocator.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

namespace heddle {

// A block of a segment. Neighbours in the segment are linked, so that a freed block can merge with them.
struct CachingAllocator::Block {
  struct Use {
    StreamHandle stream;
    EventHandle event;
  };
  char* address = nullptr;
  size_t size = 0;       // bytes of memory
  size_t counted = 0;    // bytes accounted to the owner
  size_t requested = 0;  // bytes that the owner asked for
  int64_t segment = 0;   // its number: segments are counted as they are taken from the device
  PoolKey pool;          // that its segment was reserved for
  MemoryLabel label;
  bool in_use = false;
  std::vector<Use> uses;
  bool uses_recorded = false;
  Block* previous = nullptr;
  Block* next = nullptr;

  bool is_whole_segment() const { return previous == nullptr && next == nullptr; }
};

namespace {

constexpr size_t kMiB = size_t{1} << 20;
constexpr size_t kLargestSmall = kMiB;

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Small requests share segments of 2 MiB, middling ones segments of 20 MiB, large ones get their own.
size_t segment_size(size_t bytes) {
  if (bytes <= kLargestSmall) return 2 * kMiB;
  if (bytes < 10 * kMiB) return 20 * kMiB;
  return round_up(bytes, 2 * kMiB);
}

}  // namespace

bool CachingAllocator::BySize::operator()(const Block* a, const Block* b) const {
  return std::tie(a->size, a->segment, a->address) < std::tie(b->size, b->segment, b->address);
}

CachingAllocator::CachingAllocator(std::unique_ptr<Backend> backend, AllocatorOptions options)
    : backend_(std::move(backend)), options_(options), recorder_(options.trace_capacity) {
  intern_scope("");
}

CachingAllocator::~CachingAllocator() {
  graph_pools_.clear();
  try {
    collect_used_elsewhere(true);
  } catch (const Error&) {  // the device failed: its memory goes with the process
  }
  release_cached_locked();
}

void* CachingAllocator::data(const Block* block) { return block->address; }

size_t CachingAllocator::bytes(const Block* block) { return block->counted; }

CachingAllocator::Block* CachingAllocator::allocate(size_t bytes, StreamHandle stream, MemoryLabel label,
                                                    uint64_t pool) {
  const std::lock_guard lock(mutex_);
  if (bytes > std::numeric_limits<ptrdiff_t>::max()) throw_out_of_memory(bytes, label);  // rounding up could overflow
  const size_t size = round_up(std::max<size_t>(bytes, 1), kGranularity);
  if (!used_elsewhere_.empty() && open_pools_ == 0) collect_used_elsewhere(false);
  const PoolKey key{stream, pool, size <= kLargestSmall};
  Block* block = take_cached(pools_[key], size);
  if (block != nullptr) {
    ++stats_.reuses;
  } else {
    block = reserve_segment(size, key, label);
  }
  split(block, size);
  block->in_use = true;
  block->requested = bytes;
  ++stats_.allocations;
  count_allocated(block, label, round_up(bytes, kGranularity));
  record_block(MemoryAction::allocate, block);
  return block;
}

void CachingAllocator::free(Block* block) noexcept {
  const std::lock_guard lock(mutex_);
  capture_peak();
  stats_.allocated.subtract(block->counted);
  stats_.by_category[static_cast<int>(block->label.category)].subtract(block->counted);
  ScopeBytes& scope = scopes_[block->label.scope];
  scope.allocated.subtract(block->counted);
  scope.current[static_cast<int>(block->label.category)] -= block->counted;
  ++stats_.frees;
  record_block(block->uses.empty() ? MemoryAction::free : MemoryAction::free_requested, block);
  if (block->uses.empty()) {
    put_back(block);
  } else {
    if (open_pools_ == 0) try_record_uses(block);
    used_elsewhere_.push_back(block);
  }
}

// A graph's blocks go to its pool as long as the graph lives.
CachingAllocator::FreeBlocks& CachingAllocator::pool_of(const Block* block) {
  PoolKey key = block->pool;
  if (!graph_pools_.contains(key.graph)) key.graph = 0;
  return pools_[key];
}

void CachingAllocator::put_back(Block* block) {
  block->in_use = false;
  FreeBlocks& pool = pool_of(block);
  if (block->next != nullptr && !block->next->in_use) {
    pool.erase(block->next);
    block = merge_with_next(block);
  }
  if (block->previous != nullptr && !block->previous->in_use) {
    pool.erase(block->previous);
    block = merge_with_next(block->previous);
  }
  pool.insert(block);
}

void CachingAllocator::record_use(Block* block, StreamHandle stream) {
  const std::lock_guard lock(mutex_);
  if (stream == block->pool.stream) return;
  const bool known = std::any_of(block->uses.begin(), block->uses.end(),
                                 [stream](const Block::Use& use) { return use.stream == stream; });
  if (!known) block->uses.push_back({stream, backend_->create_event()});
}

// What fails here is tried again, and reported, by the next allocation.
bool CachingAllocator::try_record_uses(Block* block) noexcept {
  try {
    for (const Block::Use& use : block->uses) backend_->record_event(use.event, use.stream);
    block->uses_recorded = true;
  } catch (const Error&) {
    block->uses_recorded = false;
  }
  return block->uses_recorded;
}

// Puts back those blocks whose other streams have passed their free; with `wait`, all.
void CachingAllocator::collect_used_elsewhere(bool wait) {
  std::erase_if(used_elsewhere_, [&](Block* block) {
    if (!block->uses_recorded && !try_record_uses(block)) return false;
    for (const Block::Use& use : block->uses) {
      if (wait) backend_->synchronize_event(use.event);
      if (!backend_->event_done(use.event)) return false;
    }
    for (const Block::Use& use : block->uses) backend_->destroy_event(use.event);
    block->uses.clear();
    block->uses_recorded = false;
    record_block(MemoryAction::free_completed, block);
    put_back(block);
    return true;
  });
}

CachingAllocator::Block* CachingAllocator::take_cached(FreeBlocks& pool, size_t bytes) {
  Block wanted;
  wanted.size = bytes;
  const auto best = pool.lower_bound(&wanted);
  if (best == pool.end()) return nullptr;
  Block* block = *best;
  pool.erase(best);
  return block;
}

CachingAllocator::Block* CachingAllocator::reserve_segment(size_t bytes, const PoolKey& pool, MemoryLabel label) {
  size_t size = segment_size(bytes);
  void* memory = ask_device(size);
  if (memory == nullptr) {
    // Give the cache back and try again, the second time without any rounding of ours.
    ++stats_.retries;
    if (open_pools_ == 0) {
      backend_->synchronize(pool.stream);
      collect_used_elsewhere(true);
      release_cached_locked();
    }
    memory = ask_device(size);
    if (memory == nullptr && size > bytes) {
      size = bytes;
      memory = ask_device(size);
    }
    if (memory == nullptr) throw_out_of_memory(bytes, label);
  }
  stats_.reserved.add(size);
  ++stats_.device_allocations;
  auto* block = new Block;
  block->address = static_cast<char*>(memory);
  block->size = size;
  block->segment = ++last_segment_;
  block->pool = pool;
  segments_[block->address] = block;
  record(MemoryAction::device_allocate, label, reinterpret_cast<uintptr_t>(memory), size, pool.stream);
  return block;
}

// The bytes that may still be reserved, as far as the limits tell.
size_t CachingAllocator::room() const {
  // What is counted must fit the counters, also on meta, which has no limit of its own.
  size_t room = std::numeric_limits<size_t>::max() - stats_.reserved.current;
  for (const size_t limit : {options_.limit_bytes, backend_->properties().memory_bytes}) {
    if (limit > 0) room = std::min(room, limit - std::min(limit, stats_.reserved.current));
  }
  return room;
}

void* CachingAllocator::ask_device(size_t bytes) {
  // A host grants more than the device has, and ends the process when that is touched.
  return bytes > room() ? nullptr : backend_->allocate(bytes);
}

// Cuts what `block` has beyond `bytes` off and puts it into the pool.
void CachingAllocator::split(Block* block, size_t bytes) {
  if (block->size - bytes < kGranularity) return;
  auto* rest = new Block;
  rest->address = block->address + bytes;
  rest->size = block->size - bytes;
  rest->segment = block->segment;
  rest->pool = block->pool;
  rest->previous = block;
  rest->next = block->next;
  if (rest->next != nullptr) rest->next->previous = rest;
  block->next = rest;
  block->size = bytes;
  pool_of(rest).insert(rest);
  ++stats_.splits;
}

CachingAllocator::Block* CachingAllocator::merge_with_next(Block* block) {
  Block* gone = block->next;
  block->size += gone->size;
  block->next = gone->next;
  if (block->next != nullptr) block->next->previous = block;
  delete gone;
  ++stats_.merges;
  return block;
}

void CachingAllocator::release_cached() {
  const std::lock_guard lock(mutex_);
  release_cached_locked();
}

uint64_t CachingAllocator::open_pool() {
  const std::lock_guard lock(mutex_);
  ++open_pools_;
  graph_pools_.insert(++last_pool_);
  return last_pool_;
}

void CachingAllocator::close_pool() noexcept {
  const std::lock_guard lock(mutex_);
  --open_pools_;
}

void CachingAllocator::retire_pool(uint64_t pool) noexcept {
  const std::lock_guard lock(mutex_);
  graph_pools_.erase(pool);
  for (auto entry = pools_.begin(); entry != pools_.end();) {
    PoolKey key = entry->first;
    if (key.graph != pool) {
      ++entry;
      continue;
    }
    key.graph = 0;
    pools_[key].merge(entry->second);
    entry = pools_.erase(entry);
  }
}

void CachingAllocator::release_cached_locked() {
  if (open_pools_ > 0) return;
  for (auto& [key, pool] : pools_) {
    if (graph_pools_.contains(key.graph)) continue;
    for (auto it = pool.begin(); it != pool.end();) {
      Block* block = *it;
      if (!block->is_whole_segment()) {
        ++it;
        continue;
      }
      it = pool.erase(it);
      backend_->deallocate(block->address, block->size);
      stats_.reserved.subtract(block->size);
      ++stats_.device_frees;
      record(MemoryAction::device_free, {}, reinterpret_cast<uintptr_t>(block->address), block->size, key.stream);
      segments_.erase(block->address);
      delete block;
    }
  }
}

void CachingAllocator::count_allocated(Block* block, MemoryLabel label, size_t bytes) {
  block->label = label;
  block->counted = bytes;
  const size_t previous_peak = stats_.allocated.peak;
  stats_.allocated.add(bytes);
  stats_.by_category[static_cast<int>(label.category)].add(bytes);
  scopes_[label.scope].allocated.add(bytes);
  scopes_[label.scope].current[static_cast<int>(label.category)] += bytes;
  if (stats_.allocated.peak > previous_peak) peak_is_now_ = true;
}

// A peak lasts until the next free: only then is the picture by scope worth copying.
void CachingAllocator::capture_peak() {
  if (!peak_is_now_) return;
  for (ScopeBytes& scope : scopes_) scope.at_peak = scope.current;
  peak_is_now_ = false;
}

uint32_t CachingAllocator::intern_scope(std::string_view scope) {
  const std::lock_guard lock(mutex_);
  const auto [found, is_new] = scope_ids_.try_emplace(std::string(scope), static_cast<uint32_t>(scopes_.size()));
  if (is_new) {
    scopes_.emplace_back();
    scopes_.back().scope = scope;
  }
  return found->second;
}

std::string CachingAllocator::scope_name(uint32_t scope) const {
  const std::lock_guard lock(mutex_);
  return scopes_.at(scope).scope;
}

MemoryStats CachingAllocator::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

std::vector<ScopeBytes> CachingAllocator::scopes() const {
  const std::lock_guard lock(mutex_);
  std::vector<ScopeBytes> used;
  for (const ScopeBytes& scope : scopes_) {
    if (scope.allocated.peak == 0) continue;
    used.push_back(scope);
    if (peak_is_now_) used.back().at_peak = scope.current;
  }
  return used;
}

void CachingAllocator::reset_peaks() {
  const std::lock_guard lock(mutex_);
  MemoryStats fresh;
  fresh.allocated = {stats_.allocated.current, stats_.allocated.current};
  fresh.reserved = {stats_.reserved.current, stats_.reserved.current};
  for (int category = 0; category < kMemoryCategories; ++category) {
    const size_t current = stats_.by_category[category].current;
    fresh.by_category[category] = {current, current};
  }
  stats_ = fresh;
  for (ScopeBytes& scope : scopes_) scope.allocated.peak = scope.allocated.current;
  peak_is_now_ = true;
}

std::vector<MemorySegment> CachingAllocator::segments() const {
  const std::lock_guard lock(mutex_);
  std::vector<MemorySegment> segments;
  for (const auto& [address, first] : segments_) {
    MemorySegment& segment = segments.emplace_back();
    segment.address = reinterpret_cast<uintptr_t>(address);
    segment.stream = reinterpret_cast<uintptr_t>(first->pool.stream);
    segment.is_small = first->pool.small;
    for (const Block* block = first; block != nullptr; block = block->next) {
      segment.bytes += block->size;
      MemoryBlock& part = segment.blocks.emplace_back();
      part.bytes = block->size;
      if (!block->in_use) continue;
      const bool waits = std::find(used_elsewhere_.begin(), used_elsewhere_.end(), block) != used_elsewhere_.end();
      part.state = waits ? BlockState::waiting : BlockState::in_use;
      part.counted = block->counted;
      part.requested = block->requested;
      part.category = block->label.category;
      part.scope = block->label.scope;
    }
  }
  return segments;
}

std::vector<MemoryEvent> CachingAllocator::trace() const {
  const std::lock_guard lock(mutex_);
  return recorder_.events();
}

void CachingAllocator::record_scope(MemoryLabel label) {
  const std::lock_guard lock(mutex_);
  record(MemoryAction::scope, label, 0, 0, nullptr);
}

void CachingAllocator::record_mark(std::string_view moment) {
  const MemoryLabel label{intern_scope(moment)};
  const std::lock_guard lock(mutex_);
  record(MemoryAction::mark, label, 0, 0, nullptr);
}

void CachingAllocator::record(MemoryAction action, MemoryLabel label, uintptr_t address, size_t bytes,
                              StreamHandle stream) {
  if (!recorder_.is_on()) return;
  recorder_.add({action, label.category, label.scope, address, bytes, reinterpret_cast<uintptr_t>(stream)});
}

void CachingAllocator::record_block(MemoryAction action, const Block* block) {
  record(action, block->label, reinterpret_cast<uintptr_t>(block->address), block->counted, block->pool.stream);
}

void CachingAllocator::throw_out_of_memory(size_t bytes, MemoryLabel label) {
  const bool has_limit = options_.limit_bytes > 0 || backend_->properties().memory_bytes > 0;
  record(MemoryAction::out_of_memory, label, has_limit ? room() : 0, bytes, nullptr);
  std::vector<const ScopeBytes*> holders;
  for (const ScopeBytes& scope : scopes_) {
    if (scope.allocated.current > 0) holders.push_back(&scope);
  }
  std::sort(holders.begin(), holders.end(),
            [](const ScopeBytes* a, const ScopeBytes* b) { return a->allocated.current > b->allocated.current; });
  std::string largest;
  for (size_t i = 0; i < std::min<size_t>(holders.size(), 3); ++i) {
    const ScopeBytes& scope = *holders[i];
    const auto category = std::max_element(scope.current.begin(), scope.current.end()) - scope.current.begin();
    largest +=
        fmt::format("{}{} {} {}", i == 0 ? "; largest: " : ", ", scope.scope.empty() ? "(no scope)" : scope.scope,
                    name(static_cast<MemoryCategory>(category)), format_bytes(scope.allocated.current));
  }
  const size_t there = backend_->properties().memory_bytes;
  throw OutOfMemory(fmt::format("out of memory on {}: asked {}, {} allocated of {} reserved{}{}", to_string(device()),
                                format_bytes(bytes), format_bytes(stats_.allocated.current),
                                format_bytes(stats_.reserved.current),
                                there > 0 ? fmt::format(", the device has {}", format_bytes(there)) : "", largest));
}

}  // namespace heddle
