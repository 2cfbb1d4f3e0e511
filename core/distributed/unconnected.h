// A communicator for counting memory: one process that behaves as if there were others.          docs/distributed.md
#pragma once

#include <memory>

#include "core/distributed/communicator.h"

namespace heddle {

// Process `rank` of `size`, for device meta, which has no data: the others are not there, and every call leaves its
// tensor as it is. all_gather_bytes() returns what it was given, as that of each process.
std::unique_ptr<Communicator> make_pretended_communicator(int rank, int size);

}  // namespace heddle
