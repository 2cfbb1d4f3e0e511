// Processes that train one model together, and what they say to each other.                       docs/distributed.md
//
// Collective calls (all but name, rank, size and abort) are made by all processes, in the same order and with the same
// sizes. What arrives is the same, bit for bit, on all processes, and in every repeat with as many processes: sums are
// taken in a fixed order. Not thread-safe. A process that loses another one throws Error or ends.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/distributed/launch.h"
#include "core/distributed/rendezvous.h"
#include "core/runtime/backend.h"
#include "core/tensor/tensor.h"

namespace heddle {

class Context;

// Tensors are dense, of one dimension, on the device of the context that the communicator was made with. The work is
// ordered in `stream`, of that context's backend; on the CPU it is done when the call returns. Sums are of float32 and
// float64; what is only moved may have any dtype. NaN arrives as NaN.
//
// `bounds` are size() + 1 ascending places: part r of the tensor, of process r, is [bounds[r], bounds[r + 1]). They
// begin with 0 and end with the tensor's extent. Parts may be empty and need not be equal, but equal ones may be
// faster.
class Communicator {
 public:
  virtual ~Communicator() = default;

  // "alone", "mpi", "nccl": for logs and errors.
  virtual std::string_view name() const = 0;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // In place: each element becomes the sum of those of all processes.
  virtual void all_reduce(const Tensor& values, StreamHandle stream) = 0;
  // In place: part rank() becomes the sum of those of all processes; the other parts are undefined afterwards.
  virtual void reduce_scatter(const Tensor& values, std::span<const int64_t> bounds, StreamHandle stream) = 0;
  // In place: part r becomes that of process r.
  virtual void all_gather(const Tensor& values, std::span<const int64_t> bounds, StreamHandle stream) = 0;
  // The tensor becomes that of process `root`.
  virtual void broadcast(const Tensor& values, int root, StreamHandle stream) = 0;
  // Whether the four above may be called while their stream is captured into a graph.
  virtual bool can_be_captured() const { return false; }

  // The bytes of all processes by rank, of any length each. On the host and done on return, for what is small: configs,
  // requests, errors.
  virtual std::vector<std::string> all_gather_bytes(std::string_view bytes) = 0;
  // Returns when all processes have called it.
  virtual void barrier() = 0;

  // Called by one process that cannot go on, after which the others, which may wait for it in a collective call, end as
  // soon as they can. May end this process too.
  virtual void abort(std::string_view message) noexcept = 0;
};

// One process: every call leaves its tensor as it is.
std::unique_ptr<Communicator> make_alone_communicator();

// What `launch` asks for. Collective but for Launch::Kind::alone. `context` must outlive the communicator. Throws Error
// when heddle was built without what it needs, and when the other processes cannot be reached; `rendezvous` says how
// long processes with GPUs wait for each other.
std::unique_ptr<Communicator> make_communicator(const Launch& launch, Context& context,
                                                const RendezvousOptions& rendezvous = {});

// The bounds of as equal parts of `extent` elements as there are, the longer ones first.
std::vector<int64_t> equal_bounds(int64_t extent, int parts);

// True on all processes when `condition` is true on one of them.
bool any_process(Communicator& communicator, bool condition);

}  // namespace heddle
