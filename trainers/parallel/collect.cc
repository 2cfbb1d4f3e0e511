#include "trainers/parallel/collect.h"

#include <algorithm>
#include <cstdint>

#include "core/tensor/transfer.h"

namespace heddle {

const void* TensorCollector::next() {
  const ShardedTensor& tensor = tensors_[next_++];
  if (processes_.is_first()) host_.resize(static_cast<size_t>(numel(tensor.shape)) * size_of(tensor.dtype));
  if (!tensor.is_whole()) {
    collect(tensor);
  } else if (processes_.is_first()) {
    copy_to_host(context_, tensor.part, host_.data());
  }
  return processes_.is_first() ? host_.data() : nullptr;
}

void TensorCollector::finish() {
  while (next_ < tensors_.size()) next();
}

void TensorCollector::collect(const ShardedTensor& tensor) {
  const MemoryScope scope(context_, MemoryCategory::workspace);
  const int64_t size = numel(tensor.shape);
  const FlatRange mine{tensor.begin, tensor.begin + (tensor.part.defined() ? tensor.part.numel() : 0)};
  for (int64_t begin = 0; begin < size; begin += piece_) {
    const FlatRange range{begin, std::min(size, begin + piece_)};
    const Tensor values = Tensor::empty(context_, {range.size()}, tensor.dtype);
    if (const FlatRange here = intersection(mine, range); here.size() > 0) {
      copy(context_, values.slice(0, here.begin - range.begin, here.end - range.begin),
           tensor.part.slice(0, here.begin - mine.begin, here.end - mine.begin));
    }
    processes_.communicator().all_gather(values, bounds_within(tensor.bounds, range), context_.stream());
    if (processes_.is_first()) {
      copy_to_host(context_, values, host_.data() + static_cast<size_t>(begin) * size_of(tensor.dtype));
    }
  }
}

}  // namespace heddle
