// Tensors that processes share, whole and on the host of the first of them: what a checkpoint is written from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "trainers/parallel/processes.h"
#include "trainers/parallel/shards.h"

namespace heddle {

// Every process has one, of the same tensors, each with its parts. next() is collective where a tensor is shared.
class TensorCollector {
 public:
  static constexpr int64_t kPiece = int64_t{1} << 22;
  // All must outlive it. `piece` elements are collected at once: 16 MiB of float32.
  TensorCollector(Context& context, const Processes& processes, std::span<const ShardedTensor> tensors,
                  int64_t piece = kPiece)
      : context_(context), processes_(processes), tensors_(tensors), piece_(piece) {}

  // The data of the next tensor, in the order in which they were given, valid until the next call; nullptr on all
  // processes but the first.
  const void* next();
  // Calls next() for those that are left.
  void finish();

 private:
  void collect(const ShardedTensor& tensor);

  Context& context_;
  const Processes& processes_;
  std::span<const ShardedTensor> tensors_;
  int64_t piece_;
  size_t next_ = 0;
  std::vector<char> host_;
};

}  // namespace heddle
