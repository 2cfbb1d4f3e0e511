#include "core/io/memory_snapshot.h"

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "core/io/pickle.h"
#include "core/runtime/memory_stats.h"

namespace heddle {
namespace {

class SnapshotWriter {
 public:
  explicit SnapshotWriter(const CachingAllocator& allocator) : allocator_(allocator) {}

  std::string write() {
    pickle_.begin_dictionary();
    pickle_.text("segments");
    pickle_.begin_list();
    for (const MemorySegment& segment : allocator_.segments()) {
      write_segment(segment);
      pickle_.end_item();
    }
    pickle_.text("device_traces");  // a list for each device up to ours
    pickle_.begin_list();
    for (int device = 0; device <= allocator_.device().index; ++device) {
      pickle_.begin_list();
      if (device == allocator_.device().index) write_trace();
      pickle_.end_item();
    }
    pickle_.end_dictionary();
    return pickle_.finish();
  }

 private:
  void entry(std::string_view key, int64_t value) {
    pickle_.text(key);
    pickle_.integer(value);
  }
  void entry(std::string_view key, size_t value) { entry(key, static_cast<int64_t>(value)); }
  void entry(std::string_view key, std::string_view value) {
    pickle_.text(key);
    pickle_.text(value);
  }

  // The path of the scope, the innermost layer first, as a stack of frames.
  void frames(uint32_t scope, MemoryCategory category) {
    pickle_.text("frames");
    const auto key = std::pair(scope, category);
    const auto known = frames_.find(key);
    if (known != frames_.end()) return pickle_.again(known->second);
    pickle_.begin_list();
    std::string path = allocator_.scope_name(scope);
    frame(path.empty() ? "(no scope)" : path, name(category));
    for (size_t dot; (dot = path.rfind('.')) != std::string::npos;) {
      path.resize(dot);
      frame(path, "layer");
    }
    frames_.emplace(key, pickle_.remember());
  }
  void frame(std::string_view path, std::string_view what) {
    pickle_.begin_dictionary();
    entry("filename", path);
    entry("line", int64_t{0});
    entry("name", what);
    pickle_.end_dictionary();
    pickle_.end_item();
  }

  void write_segment(const MemorySegment& segment) {
    size_t counted = 0, active = 0, requested = 0;
    for (const MemoryBlock& block : segment.blocks) {
      if (block.state != BlockState::free) active += block.bytes;
      if (block.state == BlockState::in_use) counted += block.counted;
      if (block.state == BlockState::in_use) requested += block.requested;
    }
    pickle_.begin_dictionary();
    entry("device", int64_t{allocator_.device().index});
    entry("address", segment.address);
    entry("total_size", segment.bytes);
    entry("allocated_size", counted);
    entry("active_size", active);
    entry("requested_size", requested);
    entry("stream", segment.stream);
    entry("segment_type", segment.is_small ? "small" : "large");
    pickle_.text("blocks");
    pickle_.begin_list();
    uintptr_t address = segment.address;
    for (const MemoryBlock& block : segment.blocks) {
      constexpr std::string_view states[] = {"inactive", "active_allocated", "active_pending_free"};
      pickle_.begin_dictionary();
      entry("address", address);
      entry("size", block.bytes);
      entry("requested_size", block.requested);
      entry("state", states[static_cast<size_t>(block.state)]);
      frames(block.scope, block.category);
      pickle_.end_dictionary();
      pickle_.end_item();
      address += block.bytes;
    }
    pickle_.end_dictionary();
  }

  void write_trace() {
    for (const MemoryEvent& event : allocator_.trace()) {
      switch (event.action) {
        case MemoryAction::allocate:
          write_event("alloc", event);
          break;
        case MemoryAction::free:
          write_event("free_requested", event);
          write_event("free_completed", event);
          break;
        case MemoryAction::free_requested:
          write_event("free_requested", event);
          break;
        case MemoryAction::free_completed:
          write_event("free_completed", event);
          break;
        case MemoryAction::device_allocate:
          write_event("segment_alloc", event);
          break;
        case MemoryAction::device_free:
          write_event("segment_free", event);
          break;
        case MemoryAction::out_of_memory:
          write_event("oom", event);
          break;
        case MemoryAction::scope:
        case MemoryAction::mark:
          break;
      }
    }
    write_event("snapshot", {MemoryAction::mark, MemoryCategory::other, 0, 0, 0, 0});
  }

  void write_event(std::string_view action, const MemoryEvent& event) {
    const bool is_snapshot = event.action == MemoryAction::mark;
    pickle_.begin_dictionary();
    entry("action", action);
    entry(event.action == MemoryAction::out_of_memory ? "device_free" : "addr", event.address);
    entry("size", event.bytes);
    entry("stream", event.stream);
    entry("time_us", event.nanoseconds / 1000);
    entry("category", is_snapshot ? "unknown" : name(event.category));
    frames(event.scope, event.category);
    pickle_.end_dictionary();
    pickle_.end_item();
  }

  const CachingAllocator& allocator_;
  Pickle pickle_;
  std::map<std::pair<uint32_t, MemoryCategory>, uint32_t> frames_;
};

}  // namespace

std::string memory_snapshot(const CachingAllocator& allocator) { return SnapshotWriter(allocator).write(); }

}  // namespace heddle
