// A CUDA graph: work that is recorded once and replayed with one call. Only GPUs have graphs.          docs/design.md
//
//   Graph step = capture(context, [&] { train_step(); });    // nothing is computed yet
//   step.replay();                                           // computes it, again and again
//
// What changes from replay to replay must be read from device memory. Memory that is allocated while capturing comes
// from a pool that belongs to the graph and stays reserved for it until the graph is gone, so tensors made there keep
// their addresses; it is counted while capturing exactly as without a graph, and replays change no count. Tensors
// made outside and used inside must outlive the graph. Run the work once uncaptured before: libraries are opened then.
// The capture is in CUDA's relaxed mode: the allocator may reserve memory from the device meanwhile, but nothing may
// wait for the device, and host copies must be from and to pinned memory that outlives the graph. A graph must not
// outlive its context.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "core/runtime/context.h"

namespace heddle {

class Graph {
 public:
  Graph() = default;  // of nothing
  Graph(Context& context, GraphHandle handle, uint64_t pool);
  ~Graph();
  Graph(Graph&& other) noexcept;
  Graph& operator=(Graph&& other) noexcept;

  explicit operator bool() const { return handle_ != nullptr; }
  // Gives the recorded work to the stream of the context it was captured from.
  void replay();

 private:
  std::shared_ptr<CachingAllocator> allocator_;
  StreamHandle stream_ = nullptr;
  GraphHandle handle_ = nullptr;
  uint64_t pool_ = 0;
};

// Records what `work` gives to the context's device. When `work` throws, the capture is dropped and the error goes on.
Graph capture(Context& context, const std::function<void()>& work);

}  // namespace heddle
