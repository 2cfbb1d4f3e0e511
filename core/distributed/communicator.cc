#include "core/distributed/communicator.h"

#include <algorithm>

#include "core/distributed/mpi.h"
#include "core/runtime/error.h"

namespace heddle {

std::unique_ptr<Communicator> make_communicator(const Launch& launch, Context& context) {
  switch (launch.kind) {
    case Launch::Kind::alone:
      break;
    case Launch::Kind::mpi:
      return make_mpi_communicator(context);
    case Launch::Kind::nccl:
      fail("heddle was built without NCCL");
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
