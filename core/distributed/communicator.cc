#include "core/distributed/communicator.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/distributed/mpi.h"
#include "core/distributed/nccl.h"
#include "core/runtime/error.h"

namespace heddle {
namespace {

// A process that has the variables of mpirun, but was not started by it, is alone to MPI.
std::unique_ptr<Communicator> make_launched_by_mpi(const Launch& launch, Context& context) {
  std::unique_ptr<Communicator> communicator = make_mpi_communicator(context);
  if (communicator->size() != launch.world_size || communicator->rank() != launch.rank) {
    throw UsageError(
        fmt::format("the launcher's variables say process {} of {}, MPI says {} of {}: unset them, or start by mpirun",
                    launch.rank, launch.world_size, communicator->rank(), communicator->size()));
  }
  return communicator;
}

}  // namespace

std::unique_ptr<Communicator> make_communicator(const Launch& launch, Context& context,
                                                [[maybe_unused]] const RendezvousOptions& rendezvous) {
  switch (launch.kind) {
    case Launch::Kind::alone:
      break;
    case Launch::Kind::mpi:
      return make_launched_by_mpi(launch, context);
    case Launch::Kind::nccl:
#if defined(HEDDLE_NCCL)
      return make_nccl_communicator(launch, context, rendezvous);
#else
      fail("several GPUs need NCCL, and this heddle was built without it (HEDDLE_NCCL)");
#endif
  }
  return make_alone_communicator();
}

bool any_process(Communicator& communicator, bool condition) {
  if (communicator.size() == 1) return condition;
  const std::vector<std::string> all = communicator.all_gather_bytes(condition ? "1" : "0");
  return std::find(all.begin(), all.end(), "1") != all.end();
}

std::vector<int64_t> equal_bounds(int64_t extent, int parts) {
  std::vector<int64_t> bounds;
  const int64_t whole = extent / parts, longer = extent % parts;
  for (int64_t part = 0; part <= parts; ++part) bounds.push_back(part * whole + std::min(part, longer));
  return bounds;
}

}  // namespace heddle
