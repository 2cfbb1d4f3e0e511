// Which algorithm of cuBLASLt computes a matrix product. Its own first choice is the same in every run; a search takes
// the fastest of all that it offers, which the clock decides, so what was found is kept for the runs that follow.
#pragma once

#include <map>
#include <string>

#include "core/runtime/context.h"

namespace heddle::kernels {

// A resource of a context: context.resource<GemmAlgorithms>(). On the CPU it is of no use.
struct GemmAlgorithms {
  explicit GemmAlgorithms(Context&) {}

  // Products of at least 2^30 operations take the algorithm that is known for them. For one that is not known all that
  // are offered are timed at the first call that overwrites its result, unless a graph is captured then.
  bool search = false;
  // The algorithm by its problem: device, version of the library, dtypes, sizes, strides, alignments. Neither text has
  // white space. What does not fit the library is found anew.
  std::map<std::string, std::string> known;
};

}  // namespace heddle::kernels
