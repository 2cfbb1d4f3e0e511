// Where work happens: a device with its stream, allocator and labels. Passed explicitly to everything that allocates
// or computes; two contexts live side by side. One thread at a time uses a Context; its allocator is thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <typeindex>
#include <unordered_map>

#include "core/runtime/allocator.h"
#include "core/runtime/device.h"
#include "core/runtime/work_listener.h"

namespace heddle {

// More threads than this are refused: OpenMP would end the process when it cannot have them.
inline constexpr int kMostThreads = 1024;

struct ContextOptions {
  // CPU threads that kernels may use, at most kMostThreads; 0 means as many as OpenMP offers. Results do not depend on
  // it.
  int threads = 0;
  AllocatorOptions allocator = {};
};

class Graph;

class Context {
 public:
  // Opens the device. Throws Error in one line when it is not there (or when heddle was built without CUDA).
  explicit Context(Device device = {}, const ContextOptions& options = {});
  // For tests: any backend, for example one that refuses to allocate.
  explicit Context(std::unique_ptr<Backend> backend, const ContextOptions& options = {});
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Device device() const { return allocator_->device(); }
  bool is_meta() const { return device().type == DeviceType::meta; }
  int threads() const { return threads_; }
  const DeviceProperties& properties() const { return allocator_->backend().properties(); }
  StreamHandle stream() const { return stream_; }
  Backend& backend() { return allocator_->backend(); }
  CachingAllocator& allocator() { return *allocator_; }
  const std::shared_ptr<CachingAllocator>& shared_allocator() const { return allocator_; }
  // Returns when all work given to the device so far is done.
  void synchronize() { backend().synchronize(stream_); }

  // The one T that belongs to this context, made by T(Context&) when it is asked for first: library handles, plans.
  template <class T>
  T& resource() {
    std::shared_ptr<void>& place = resources_[typeid(T)];
    if (!place) place = std::make_shared<T>(*this);
    return *static_cast<T*>(place.get());
  }
  // Device memory that resources took beside the allocator, which does not count it.
  size_t library_bytes() const { return library_bytes_; }
  void add_library_bytes(size_t bytes) { library_bytes_ += bytes; }

  // Work given to the device from here to end_capture() is recorded, not done. See graph.h, whose capture() is what to
  // call: it also ends a capture that failed. Throws Error on devices without graphs.
  void begin_capture();
  Graph end_capture();
  void abort_capture() noexcept;
  // The allocator's pool that memory comes from now: 0, or that of the graph being captured.
  uint64_t pool() const { return pool_; }

  // Whom allocations are counted for right now; see MemoryScope.
  MemoryLabel label() const { return label_; }
  void set_label(MemoryLabel label) {
    const bool is_other_scope = label.scope != label_.scope;
    label_ = label;
    if (allocator_->is_recording()) allocator_->record_scope(label);
    if (names_ranges_ && is_other_scope) name_range();
  }
  // Names the moment in the allocator's trace, if there is one, and for the listener: the beginning of what is called
  // `moment`.
  void mark(std::string_view moment) {
    if (allocator_->is_recording()) allocator_->record_mark(moment);
    if (listener_ != nullptr) listener_->mark(moment);
    if (names_ranges_) backend().name_phase(moment);
  }

  // Who hears of the work from now on; nullptr: nobody. It must outlive its place here.
  WorkListener* listener() const { return listener_; }
  void set_listener(WorkListener* listener) { listener_ = listener; }

 private:
  void name_range();

  std::shared_ptr<CachingAllocator> allocator_;
  StreamHandle stream_ = nullptr;
  uint64_t pool_ = 0;
  int threads_ = 1;
  size_t library_bytes_ = 0;
  std::unordered_map<std::type_index, std::shared_ptr<void>> resources_;
  MemoryLabel label_;
  WorkListener* listener_ = nullptr;
  bool names_ranges_ = false;
};

// While it lives, allocations of `context` count for the scope "<outer scope>.<name>" and, if given, the category.
class MemoryScope {
 public:
  MemoryScope(Context& context, std::string_view name);
  MemoryScope(Context& context, MemoryCategory category);
  MemoryScope(Context& context, std::string_view name, MemoryCategory category);
  // Takes a label as it was at another time, for a node that runs backward in the scope it was recorded in.
  MemoryScope(Context& context, MemoryLabel label);
  ~MemoryScope() { context_.set_label(outer_); }
  MemoryScope(const MemoryScope&) = delete;
  MemoryScope& operator=(const MemoryScope&) = delete;

 private:
  Context& context_;
  MemoryLabel outer_;
};

}  // namespace heddle
