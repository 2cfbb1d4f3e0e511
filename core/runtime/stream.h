// Order beyond a context's one stream: further streams, events, and host memory that copies run from by themselves.
// On cpu and meta work is done when a call returns, so there streams are nullptr and events only tell the time.
// Each keeps its device open; none is thread-safe.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

#include "core/runtime/context.h"

namespace heddle {

namespace detail {

// A handle of a backend, destroyed with its owner; movable.
template <class Handle, void (Backend::*destroy)(Handle) noexcept>
class OwnedHandle {
 public:
  OwnedHandle(const Context& context, Handle handle) : allocator_(context.shared_allocator()), handle_(handle) {}
  ~OwnedHandle() {
    if (allocator_ != nullptr) (allocator_->backend().*destroy)(handle_);
  }
  OwnedHandle(OwnedHandle&& other) noexcept
      : allocator_(std::move(other.allocator_)), handle_(std::exchange(other.handle_, Handle{})) {}
  OwnedHandle& operator=(OwnedHandle&& other) noexcept {
    std::swap(allocator_, other.allocator_);
    std::swap(handle_, other.handle_);
    return *this;
  }

  Handle get() const { return handle_; }
  Backend& backend() const { return allocator_->backend(); }

 private:
  std::shared_ptr<CachingAllocator> allocator_;
  Handle handle_;
};

}  // namespace detail

class Stream {
 public:
  explicit Stream(Context& context) : owned_(context, context.backend().create_stream()) {}
  StreamHandle handle() const { return owned_.get(); }
  void synchronize() { owned_.backend().synchronize(handle()); }

 private:
  detail::OwnedHandle<StreamHandle, &Backend::destroy_stream> owned_;
};

// A mark in a stream.
class Event {
 public:
  explicit Event(Context& context) : owned_(context, context.backend().create_event()) {}
  // The mark is reached when all work given to the stream so far is done.
  void record(StreamHandle stream) { owned_.backend().record_event(owned_.get(), stream); }
  // The same for milliseconds_to(), also in work that is captured into a graph: each replay reaches the mark anew.
  void record_timing(StreamHandle stream) { owned_.backend().record_timing(owned_.get(), stream); }
  // Later work of `stream` waits for the mark; the host does not.
  void block(StreamHandle stream) { owned_.backend().wait_event(stream, owned_.get()); }
  // The host waits for the mark.
  void synchronize() { owned_.backend().synchronize_event(owned_.get()); }
  bool done() const { return owned_.backend().event_done(owned_.get()); }
  // From this mark to `end`; both must be done.
  double milliseconds_to(const Event& end) const {
    return owned_.backend().milliseconds_between(owned_.get(), end.owned_.get());
  }

 private:
  detail::OwnedHandle<EventHandle, &Backend::destroy_event> owned_;
};

// Uninitialized host memory, pinned on a GPU's host: copies from and to it are asynchronous.
class PinnedBuffer {
 public:
  PinnedBuffer(Context& context, size_t bytes)
      : owned_(context, context.backend().allocate_pinned(bytes)), bytes_(bytes) {}
  void* data() const { return owned_.get(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(owned_.get());
  }
  size_t bytes() const { return bytes_; }

 private:
  detail::OwnedHandle<void*, &Backend::deallocate_pinned> owned_;
  size_t bytes_;
};

}  // namespace heddle
