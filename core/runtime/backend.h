// What the allocator and the tensors need of a device: memory, copies, order. Injected into Context, so that all
// that is built on it is tested without a GPU.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "core/runtime/device.h"

// The CUDA runtime's stream, event and executable graph, named here so that no CUDA header is needed.
struct CUstream_st;
struct CUevent_st;
struct CUgraphExec_st;

namespace heddle {

using StreamHandle = CUstream_st*;  // nullptr on cpu and meta
using EventHandle = CUevent_st*;
using GraphHandle = CUgraphExec_st*;

// What kernels choose their launches by, and the memory of the device. 0 where there is no such thing: on the CPU all
// but the memory, on meta all.
struct DeviceProperties {
  std::string name;
  int multiprocessors = 0;
  int compute_capability = 0;  // 90 for 9.0
  size_t memory_bytes = 0;
  size_t l2_bytes = 0;
  size_t shared_bytes_per_block = 0;  // the most that a kernel may ask for
};

// Thread-safe. Copies and fills are ordered on the stream; on the host they are done when the call returns.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual Device device() const = 0;
  virtual const DeviceProperties& properties() const;
  // At least `bytes` bytes aligned to 512, or nullptr when the device has no room.
  virtual void* allocate(size_t bytes) = 0;
  virtual void deallocate(void* data, size_t bytes) noexcept = 0;

  virtual void copy_from_host(void* device_data, const void* host_data, size_t bytes, StreamHandle stream) = 0;
  // Returns once host_data is filled.
  virtual void copy_to_host(void* host_data, const void* device_data, size_t bytes, StreamHandle stream) = 0;
  // May return before; truly asynchronous when host_data is pinned.
  virtual void copy_to_host_async(void* host_data, const void* device_data, size_t bytes, StreamHandle stream) {
    copy_to_host(host_data, device_data, bytes, stream);
  }
  virtual void copy(void* to, const void* from, size_t bytes, StreamHandle stream) = 0;
  virtual void fill_bytes(void* data, int byte, size_t bytes, StreamHandle stream) = 0;
  virtual void synchronize(StreamHandle stream) = 0;

  // --- Below, what a device without streams of its own need not override ---
  // Host memory that the device reads and writes by itself: ordinary memory where there is no such thing.
  virtual void* allocate_pinned(size_t bytes);
  virtual void deallocate_pinned(void* data) noexcept;

  virtual StreamHandle create_stream() { return nullptr; }
  virtual void destroy_stream(StreamHandle) noexcept {}

  // Marks in a stream. By default they hold the time of the host: all work is done when a call returns.
  virtual EventHandle create_event();
  virtual void destroy_event(EventHandle event) noexcept;
  virtual void record_event(EventHandle event, StreamHandle stream);
  virtual bool event_done(EventHandle) { return true; }
  virtual void synchronize_event(EventHandle) {}
  virtual void wait_event(StreamHandle, EventHandle) {}
  virtual double milliseconds_between(EventHandle begin, EventHandle end);

  // Recording work into a graph; by default an Error: only a GPU has that.
  virtual bool has_graphs() const { return false; }
  virtual void begin_capture(StreamHandle stream);
  // With `discard` the work that was recorded is thrown away, no error is reported, and the result is nullptr.
  virtual GraphHandle end_capture(StreamHandle stream, bool discard);
  virtual void replay(GraphHandle, StreamHandle) {}
  virtual void destroy_graph(GraphHandle) noexcept {}

  // Like record_event(); in work that is being captured, every replay records the event anew.
  virtual void record_timing(EventHandle event, StreamHandle stream) { record_event(event, stream); }

  // Names what the host does from now on for tools that look on (NVTX): a layer, within a phase such as "forward". An
  // empty name ends the layer; a phase ends with the next one. By default nobody looks on.
  virtual bool names_ranges() const { return false; }
  virtual void name_range(std::string_view) {}
  virtual void name_phase(std::string_view) {}
};

// Ordinary memory.
class HostBackend : public Backend {
 public:
  Device device() const override { return {DeviceType::cpu}; }
  const DeviceProperties& properties() const override;
  void* allocate(size_t bytes) override;
  void deallocate(void* data, size_t bytes) noexcept override;
  void copy_from_host(void* device_data, const void* host_data, size_t bytes, StreamHandle stream) override;
  void copy_to_host(void* host_data, const void* device_data, size_t bytes, StreamHandle stream) override;
  void copy(void* to, const void* from, size_t bytes, StreamHandle stream) override;
  void fill_bytes(void* data, int byte, size_t bytes, StreamHandle stream) override;
  void synchronize(StreamHandle) override {}
};

// Addresses without memory: the allocator's accounting runs, nothing is read or written. Reading data from it is
// an Error; writing is ignored.
std::unique_ptr<Backend> make_meta_backend();

#if defined(HEDDLE_CUDA)
// The GPU of this index. Throws Error in one line when there is no such GPU or no driver.
std::unique_ptr<Backend> make_cuda_backend(int index);
// How many GPUs this process can use; 0 without a driver.
int cuda_device_count() noexcept;
#endif

}  // namespace heddle
