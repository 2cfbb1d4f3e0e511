// The sum of the gradients of all processes.                                              docs/distributed.md#buckets
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "core/autograd/parameter.h"
#include "core/distributed/communicator.h"
#include "core/runtime/stream.h"
#include "trainers/parallel/shards.h"

namespace heddle {

struct GradientReductionOptions {
  // By process, of the flat gradient: where the sum is needed. Empty: everywhere.
  std::vector<int64_t> bounds = {};
  // A bucket has at least as many bytes, if there are so many. 0: an eighth of all, from 1 MiB to 32 MiB.
  int64_t bucket_bytes = 0;
};

// Adds up the flat gradient of a set of parameters in buckets: neighbours in the flat buffer, from its end to its
// beginning, as backward finishes them. The reduction of a bucket begins, on a stream of its own, as soon as all its
// gradients are final. All processes must run the same backward.
class GradientReduction {
 public:
  // All must outlive it. The parameters must have their memory.
  GradientReduction(Context& context, ParameterSet& parameters, Communicator& communicator,
                    const GradientReductionOptions& options);

  // The next backward of this tape writes the last terms of the gradients. It takes the tape's hook.
  void watch(Tape& tape);
  // After that backward: work given to the context's stream from here on finds the sums.
  void finish();

  int64_t buckets() const { return static_cast<int64_t>(buckets_.size()); }

 private:
  struct Bucket {
    FlatRange range;
    std::vector<int64_t> bounds;  // of the range; empty: everywhere
    int64_t parameters = 0;
    int64_t left = 0;  // parameters whose gradient is not final yet
  };

  void make_buckets(const GradientReductionOptions& options);
  void reduce(const Bucket& bucket);

  Context& context_;
  ParameterSet& parameters_;
  Communicator& communicator_;
  std::vector<Bucket> buckets_;
  std::unordered_map<const Gradient*, size_t> bucket_of_;
  size_t reduced_ = 0;
  Stream stream_;
  Event ready_, done_;
};

}  // namespace heddle
