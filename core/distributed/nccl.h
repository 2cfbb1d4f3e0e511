// Processes with a GPU each.                                                               docs/launching.md#nccl
#pragma once

#include <memory>

#include "core/distributed/communicator.h"
#include "core/distributed/rendezvous.h"

namespace heddle {

// Finds the other processes as `launch` says, each on a GPU of its own, which is that of `context`. Tensors go from GPU
// to GPU by NCCL, bytes of the host by a ControlChannel, through which the processes also notice that one of them is
// gone: then NCCL's work ends, and the next collective call on the host throws Error. libnccl.so.2 is opened here; the
// environment variable HEDDLE_NCCL_LIBRARY may name another file. Throws Error when it is not there, when heddle was
// built without NCCL, when two processes have the same GPU, and what meet() throws.
std::unique_ptr<Communicator> make_nccl_communicator(const Launch& launch, Context& context,
                                                     const RendezvousOptions& options = {});

}  // namespace heddle
