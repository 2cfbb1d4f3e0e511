// Who updates what, and the sums of gradients in buckets.
#include "trainers/parallel/shards.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor/transfer.h"
#include "layers/ops/linear.h"
#include "tests/distributed/threads.h"
#include "trainers/parallel/collect.h"
#include "trainers/parallel/data_parallel.h"

namespace heddle::shards_test {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

// Three matrices of 5, 1 and 2 alignments, and a vector without weight decay.
void add_parameters(ParameterSet& parameters) {
  parameters.add("first.weight", {64, 10}, Initializer::normal(1.0), true);
  parameters.add("first.bias", {10}, Initializer::constant(0.0), false);
  parameters.add("second.weight", {8, 16}, Initializer::normal(1.0), true);
  parameters.add("third.weight", {16, 16}, Initializer::normal(1.0), true);
}

TEST(ShardsTest, EqualPartsAndWholeMatrices) {
  Context context(Device{DeviceType::meta});
  ParameterSet parameters;
  add_parameters(parameters);
  parameters.materialize(context, DType::float32, 1, 4);
  EXPECT_EQ(parameters.master().numel(), 12 * 128);
  EXPECT_THAT(shard_bounds(parameters, {}, 4), ElementsAre(0, 3 * 128, 6 * 128, 9 * 128, 12 * 128));
  OptimizerConfig muon;
  muon.type = OptimizerType::muon;
  EXPECT_THAT(shard_bounds(parameters, muon, 4), ElementsAre(0, 5 * 128, 6 * 128, 9 * 128, 12 * 128));
  EXPECT_THAT(shard_bounds(parameters, muon, 12), ElementsAre(0, 0, 0, 5 * 128, 5 * 128, 5 * 128, 6 * 128, 8 * 128,
                                                              8 * 128, 9 * 128, 10 * 128, 11 * 128, 12 * 128));
}

TEST(ShardsTest, BoundsWithinARange) {
  EXPECT_THAT(bounds_within(std::vector<int64_t>{0, 10, 20, 30}, {5, 25}), ElementsAre(0, 5, 15, 20));
  EXPECT_THAT(bounds_within(std::vector<int64_t>{0, 10, 20, 30}, {12, 18}), ElementsAre(0, 0, 6, 6));
}

TEST(ShardsTest, PartsOfAParameter) {
  Context context(Device{}, {.threads = 1});
  const auto errors = testing::run_together(3, [&](Communicator& communicator) {
    Context own(Device{}, {.threads = 1});
    ParameterSet parameters;
    add_parameters(parameters);
    parameters.materialize(own, DType::float32, 1, 3);
    Processes processes(&communicator);
    DataParallel parallel(own, parameters, {}, processes, true);
    const FlatRange range = updated_range(&parallel, parameters);
    int64_t total = 0;
    for (size_t index = 0; index < parameters.all().size(); ++index) {
      const int64_t begin = std::max(parameters.offset(index), range.begin);
      const ShardedTensor part = part_of_parameter(&parallel, parameters, index, "x", parameters.master(), begin);
      const int64_t size = part.part.defined() ? part.part.numel() : 0;
      const auto rank = static_cast<size_t>(communicator.rank());
      check(size == part.bounds[rank + 1] - part.bounds[rank], "part of {} elements", size);
      if (size == 0) continue;
      const std::vector<double> all = read_values(own, parameters.all()[index].master);
      check(read_values(own, part.part)[0] == all[static_cast<size_t>(part.begin)], "another part");
      total += size;
    }
    check(total > 0, "nothing for process {}", communicator.rank());
  });
  EXPECT_THAT(errors, Each(""));
}

// Process 0 gets all tensors whole, in order, in pieces that lie in one part or in several.
TEST(TensorCollectorThreaded, TheFirstProcessGetsAll) {
  for (const int64_t piece : {int64_t{100}, int64_t{1000}, TensorCollector::kPiece}) {
    const auto errors = testing::run_together(3, [&](Communicator& communicator) {
      Context context(Device{}, {.threads = 1});
      ParameterSet parameters;
      add_parameters(parameters);
      parameters.materialize(context, DType::float32, 1, 3);
      Processes processes(&communicator);
      DataParallel parallel(context, parameters, {}, processes, true);
      const FlatRange range = updated_range(&parallel, parameters);
      // What another process updates is not what this one has.
      Tensor mine = clone(context, parameters.master());
      fill_zero(context, mine);
      copy(context, mine.slice(0, range.begin, range.end), parameters.master().slice(0, range.begin, range.end));
      std::vector<ShardedTensor> tensors;
      for (size_t index = 0; index < parameters.all().size(); ++index) {
        const int64_t begin = std::max(parameters.offset(index), range.begin);
        tensors.push_back(part_of_parameter(&parallel, parameters, index, "x", mine, begin));
      }
      TensorCollector collector(context, processes, tensors, piece);
      for (const Parameter& parameter : parameters.all()) {
        const auto* found = static_cast<const float*>(collector.next());
        check((found != nullptr) == processes.is_first(), "on another process");
        if (found == nullptr) continue;
        const std::vector<double> expected = read_values(context, parameter.master);
        check(std::equal(expected.begin(), expected.end(), found), "{} is not the same", parameter.name);
      }
    });
    EXPECT_THAT(errors, Each("")) << piece;
  }
}

// The loss is a sum of linear layers one after the other, in which process r has r + 1 as its upstream gradient.
void check_reduction(Communicator& communicator, int64_t bucket_bytes, bool is_sharded, int64_t buckets) {
  Context context(Device{}, {.threads = 1});
  ParameterSet parameters;
  for (const char* name : {"a", "b", "c"}) parameters.add(name, {16, 16}, Initializer::normal(0.5), true);
  parameters.materialize(context, DType::float64, 3, communicator.size());
  std::vector<int64_t> bounds;
  if (is_sharded) bounds = shard_bounds(parameters, {}, communicator.size());
  GradientReduction reduction(context, parameters, communicator, {.bounds = bounds, .bucket_bytes = bucket_bytes});
  // 5 processes have a longer buffer, whose end is in the first bucket.
  check(communicator.size() == 5 || reduction.buckets() == buckets, "{} buckets", reduction.buckets());
  const auto gradient = [&](bool is_reduced, double upstream) {
    parameters.zero_grad();
    Tape tape(context);
    const Tensor x = Tensor::empty(context, {2, 16}, DType::float64);
    write_values(context, x, std::vector<double>(32, 0.25));
    Variable y = tape.constant(x);
    for (Parameter& parameter : parameters.all()) y = linear(tape, y, ParameterSet::on(tape, parameter));
    if (is_reduced) reduction.watch(tape);
    const Tensor d_y = Tensor::empty(context, {2, 16}, DType::float64);
    write_values(context, d_y, std::vector<double>(32, upstream));
    tape.backward(y, d_y);
    if (is_reduced) reduction.finish();
    return read_values(context, parameters.gradient());
  };
  const double sum = communicator.size() * (communicator.size() + 1) / 2.0;
  const std::vector<double> expected = gradient(false, sum), found = gradient(true, communicator.rank() + 1.0);
  int64_t begin = 0, end = static_cast<int64_t>(found.size());
  if (is_sharded) begin = bounds[communicator.rank()], end = bounds[communicator.rank() + 1];
  for (int64_t i = begin; i < end; ++i) {
    check(std::abs(found[i] - expected[i]) <= 1e-12, "element {} is {}, expected {}", i, found[i], expected[i]);
  }
}

TEST(GradientReductionThreaded, BucketsHoldTheSum) {
  constexpr int64_t kOne = 256 * 8;
  for (const bool is_sharded : {false, true}) {
    for (const auto& [bytes, buckets] :
         {std::pair(kOne, int64_t{3}), std::pair(kOne + 1, int64_t{2}), std::pair(4 * kOne, int64_t{1})}) {
      for (const int count : {2, 3, 5}) {
        const auto errors =
            testing::run_together(count, [&, bytes = bytes, buckets = buckets](Communicator& communicator) {
              check_reduction(communicator, bytes, is_sharded, buckets);
            });
        EXPECT_THAT(errors, Each("")) << bytes << " bytes, " << count << " processes";
      }
    }
  }
}

}  // namespace
}  // namespace heddle::shards_test
