#include "trainers/parallel/gradient_reduction.h"

#include <algorithm>
#include <numeric>
#include <string_view>

#include "core/runtime/error.h"

namespace heddle {

GradientReduction::GradientReduction(Context& context, ParameterSet& parameters, Communicator& communicator,
                                     const GradientReductionOptions& options)
    : context_(context),
      parameters_(parameters),
      communicator_(communicator),
      stream_(context),
      ready_(context),
      done_(context) {
  make_buckets(options);
}

// Backward reaches the parameters of the last layers first. Those without weight decay lie behind all others in the
// flat buffer, of the first layers as of the last; they are few, and get buckets of their own, so that they keep no
// other bucket waiting.
void GradientReduction::make_buckets(const GradientReductionOptions& options) {
  const Tensor& gradient = parameters_.gradient();
  const auto element = static_cast<int64_t>(size_of(gradient.dtype()));
  const int64_t bytes = options.bucket_bytes > 0
                            ? options.bucket_bytes
                            : std::clamp(gradient.numel() * element / 8, int64_t{1} << 20, int64_t{32} << 20);
  std::vector<size_t> order(parameters_.all().size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return parameters_.offset(a) > parameters_.offset(b); });
  int64_t end = gradient.numel();
  bool decays = false;
  for (const size_t index : order) {
    Parameter& parameter = parameters_.all()[index];
    const bool is_full = !buckets_.empty() && buckets_.back().range.size() * element >= bytes;
    if (buckets_.empty() || is_full || parameter.weight_decay != decays)
      buckets_.push_back({.range = {end, end}, .bounds = {}});
    decays = parameter.weight_decay;
    Bucket& bucket = buckets_.back();
    end = bucket.range.begin = parameters_.offset(index);
    ++bucket.parameters;
    bucket_of_[&parameter.gradient] = buckets_.size() - 1;
  }
  if (options.bounds.empty()) return;
  for (Bucket& bucket : buckets_) bucket.bounds = bounds_within(options.bounds, bucket.range);
}

void GradientReduction::watch(Tape& tape) {
  reduced_ = 0;
  for (Bucket& bucket : buckets_) bucket.left = bucket.parameters;
  tape.on_gradient_final([this](Gradient& gradient, std::string_view) {
    const auto found = bucket_of_.find(&gradient);
    if (found == bucket_of_.end()) return;
    Bucket& bucket = buckets_[found->second];
    if (--bucket.left == 0) reduce(bucket);
  });
}

void GradientReduction::reduce(const Bucket& bucket) {
  ready_.record(context_.stream());
  ready_.block(stream_.handle());
  const Tensor values = parameters_.gradient().slice(0, bucket.range.begin, bucket.range.end);
  if (bucket.bounds.empty()) {
    communicator_.all_reduce(values, stream_.handle());
  } else {
    communicator_.reduce_scatter(values, bucket.bounds, stream_.handle());
  }
  ++reduced_;
}

void GradientReduction::finish() {
  check(reduced_ == buckets_.size(), "the gradients of {} of {} buckets are final, expected all after backward",
        reduced_, buckets_.size());
  done_.record(stream_.handle());
  done_.block(context_.stream());
}

}  // namespace heddle
