#include "core/runtime/backend.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ratio>

#include "core/runtime/error.h"
#include "core/runtime/host_memory.h"

namespace heddle {
namespace {

constexpr size_t kAlignment = 512;

using HostTime = std::chrono::steady_clock::time_point;

HostTime& host_time(EventHandle event) { return *reinterpret_cast<HostTime*>(event); }

class MetaBackend : public Backend {
 public:
  Device device() const override { return {DeviceType::meta}; }
  void* allocate(size_t bytes) override { return reinterpret_cast<void*>(next_.fetch_add(bytes + kAlignment)); }
  void deallocate(void*, size_t) noexcept override {}
  void copy_from_host(void*, const void*, size_t, StreamHandle) override {}
  void copy_to_host(void*, const void*, size_t, StreamHandle) override {
    fail("a tensor on device meta has no data to read");
  }
  void copy(void*, const void*, size_t, StreamHandle) override {}
  void fill_bytes(void*, int, size_t, StreamHandle) override {}
  void synchronize(StreamHandle) override {}

 private:
  std::atomic<uintptr_t> next_{uintptr_t{1} << 40};
};

}  // namespace

const DeviceProperties& Backend::properties() const {
  static const DeviceProperties none;
  return none;
}

void* Backend::allocate_pinned(size_t bytes) {
  return std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
}

void Backend::deallocate_pinned(void* data) noexcept { std::free(data); }

EventHandle Backend::create_event() { return reinterpret_cast<EventHandle>(new HostTime); }

void Backend::destroy_event(EventHandle event) noexcept { delete &host_time(event); }

void Backend::record_event(EventHandle event, StreamHandle) { host_time(event) = std::chrono::steady_clock::now(); }

double Backend::milliseconds_between(EventHandle begin, EventHandle end) {
  return std::chrono::duration<double, std::milli>(host_time(end) - host_time(begin)).count();
}

void Backend::begin_capture(StreamHandle) { fail("device {} has no graphs to capture into", to_string(device())); }

GraphHandle Backend::end_capture(StreamHandle, bool) { fail("device {} captures no graph", to_string(device())); }

const DeviceProperties& HostBackend::properties() const {
  static const DeviceProperties host{.name = {}, .memory_bytes = host_memory_bytes()};
  return host;
}

void* HostBackend::allocate(size_t bytes) {
  return std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
}

void HostBackend::deallocate(void* data, size_t) noexcept { std::free(data); }

void HostBackend::copy_from_host(void* device_data, const void* host_data, size_t bytes, StreamHandle stream) {
  copy(device_data, host_data, bytes, stream);
}

void HostBackend::copy_to_host(void* host_data, const void* device_data, size_t bytes, StreamHandle stream) {
  copy(host_data, device_data, bytes, stream);
}

void HostBackend::copy(void* to, const void* from, size_t bytes, StreamHandle) {
  if (bytes > 0) std::memmove(to, from, bytes);
}

void HostBackend::fill_bytes(void* data, int byte, size_t bytes, StreamHandle) {
  if (bytes > 0) std::memset(data, byte, bytes);
}

std::unique_ptr<Backend> make_meta_backend() { return std::make_unique<MetaBackend>(); }

}  // namespace heddle
