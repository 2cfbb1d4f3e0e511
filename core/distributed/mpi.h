// Processes that mpirun started.                                                                  docs/distributed.md
#pragma once

#include <memory>

#include "core/distributed/communicator.h"

namespace heddle {

// Of MPI's world. MPI is initialized by the first one and finalized when the program ends. Tensors of a GPU go through
// host memory, and the call waits for them. Throws Error when heddle was built without MPI.
std::unique_ptr<Communicator> make_mpi_communicator(Context& context);

}  // namespace heddle
