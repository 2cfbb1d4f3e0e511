// A device for tests of the allocator: addresses without memory, a capacity, a record of what is taken, and streams and
// events that a test moves by hand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "core/runtime/backend.h"

namespace heddle {

class FakeBackend : public Backend {
 public:
  explicit FakeBackend(size_t capacity = SIZE_MAX) : capacity(capacity) {}

  Device device() const override { return {DeviceType::meta}; }
  void* allocate(size_t bytes) override {
    if (bytes > capacity || taken > capacity - bytes) return nullptr;
    taken += bytes;
    const uintptr_t address = next_;
    next_ += bytes + 512;
    segments[address] = bytes;
    return reinterpret_cast<void*>(address);
  }
  void deallocate(void* data, size_t bytes) noexcept override {
    const auto found = segments.find(reinterpret_cast<uintptr_t>(data));
    broken |= found == segments.end() || found->second != bytes;
    taken -= bytes;
    segments.erase(found);
  }
  void copy_from_host(void*, const void*, size_t, StreamHandle) override {}
  void copy_to_host(void*, const void*, size_t, StreamHandle) override {}
  void copy(void*, const void*, size_t, StreamHandle) override {}
  void fill_bytes(void*, int, size_t, StreamHandle) override {}
  void synchronize(StreamHandle stream) override { synchronized.push_back(stream); }

  EventHandle create_event() override {
    ++events;
    return reinterpret_cast<EventHandle>(++last_event_);
  }
  void destroy_event(EventHandle) noexcept override { --events; }
  void record_event(EventHandle, StreamHandle) override {}
  bool names_ranges() const override { return is_watched; }
  void name_range(std::string_view name) override { ranges.emplace_back(name); }
  void name_phase(std::string_view name) override { ranges.push_back("phase " + std::string(name)); }

  bool event_done(EventHandle event) override { return done.contains(event); }
  void synchronize_event(EventHandle event) override { done.insert(event); }

  size_t capacity;
  size_t taken = 0;
  std::map<uintptr_t, size_t> segments;  // address -> bytes
  std::vector<StreamHandle> synchronized;
  std::set<EventHandle> done;
  int events = 0;  // that live
  bool is_watched = false;
  std::vector<std::string> ranges;  // that were named
  bool broken = false;              // something was given back that was never taken, or with another size

 private:
  uintptr_t next_ = uintptr_t{1} << 30;
  uintptr_t last_event_ = 0;
};

inline StreamHandle fake_stream(uintptr_t number) { return reinterpret_cast<StreamHandle>(number); }

}  // namespace heddle
