#include "core/runtime/graph.h"

#include <cstdint>
#include <utility>

#include "core/runtime/error.h"

namespace heddle {

Graph::Graph(Context& context, GraphHandle handle, uint64_t pool)
    : allocator_(context.shared_allocator()), stream_(context.stream()), handle_(handle), pool_(pool) {}

Graph::~Graph() {
  if (allocator_ == nullptr) return;
  allocator_->backend().destroy_graph(handle_);
  allocator_->retire_pool(pool_);
}

Graph::Graph(Graph&& other) noexcept { *this = std::move(other); }

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(allocator_, other.allocator_);
  std::swap(stream_, other.stream_);
  std::swap(handle_, other.handle_);
  std::swap(pool_, other.pool_);
  return *this;
}

void Graph::replay() {
  check(handle_ != nullptr, "replay of a graph that nothing was captured into");
  allocator_->backend().replay(handle_, stream_);
}

Graph capture(Context& context, const std::function<void()>& work) {
  context.begin_capture();
  try {
    work();
  } catch (...) {
    context.abort_capture();
    throw;
  }
  return context.end_capture();
}

}  // namespace heddle
