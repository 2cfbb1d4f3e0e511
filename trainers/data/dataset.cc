#include "trainers/data/dataset.h"

#include <algorithm>
#include <cstddef>

#include "core/runtime/host_memory.h"
#include "core/tensor/transfer.h"
#include "trainers/data/generated_data.h"
#include "trainers/data/token_data.h"

namespace heddle {

Dataset::Sizes Dataset::sizes_of(const DatasetOptions& options) {
  Sizes sizes{options.batch_size, options.sequence_length, options.eval_sequences, {}};
  if (options.data.pack) sizes.separator = static_cast<int32_t>(options.data.separator);
  return sizes;
}

template <class Sequence>
Batch Dataset::assemble(int64_t first, int64_t size, const Sequence& sequence) const {
  Batch batch;
  batch.size = size;
  batch.length = sizes_.length;
  check_host_memory("a batch", batch.size * batch.length, 2 * sizeof(int32_t));
  batch.tokens.assign(static_cast<size_t>(batch.size * batch.length), 0);
  batch.targets.assign(batch.tokens.size(), kIgnoredTarget);
  for (int64_t row = 0; row < batch.size; ++row) {
    sequence(first + row, batch.tokens.data() + row * batch.length, batch.targets.data() + row * batch.length);
  }
  if (!sizes_.separator) return batch;
  batch.segments.resize(batch.tokens.size());
  for (int64_t row = 0; row < batch.size; ++row) {
    number_documents(
        std::span(batch.tokens).subspan(static_cast<size_t>(row * batch.length), static_cast<size_t>(batch.length)),
        *sizes_.separator, batch.segments.data() + row * batch.length);
  }
  return batch;
}

Batch Dataset::training_batch(int64_t first_sequence) const {
  return assemble(first_sequence, sizes_.batch,
                  [&](int64_t i, int32_t* tokens, int32_t* targets) { training_sequence(i, tokens, targets); });
}

Batch Dataset::validation_batch(int64_t first_sequence) const {
  return assemble(first_sequence, std::min(sizes_.batch, validation_sequences() - first_sequence),
                  [&](int64_t i, int32_t* tokens, int32_t* targets) { validation_sequence(i, tokens, targets); });
}

std::unique_ptr<Dataset> make_dataset(const DatasetOptions& options) {
  switch (options.data.type) {
    case DataType::text:
    case DataType::tokens:
      return std::make_unique<TokenData>(options);
    case DataType::mqar:
      return std::make_unique<RecallData>(options);
    case DataType::copy:
      return std::make_unique<CopyData>(options);
  }
  return nullptr;
}

void number_documents(std::span<const int32_t> tokens, int32_t separator, int32_t* segments) {
  int32_t document = 0;
  for (const int32_t token : tokens) {
    if (token == separator) ++document;
    *segments++ = document;
  }
}

DeviceBatch empty_batch(Context& context, const Batch& like) {
  const MemoryScope scope(context, MemoryCategory::data);
  const Shape shape{like.size, like.length};
  DeviceBatch batch{Tensor::empty(context, shape, DType::int32), Tensor::empty(context, shape, DType::int32), {}};
  if (!like.segments.empty()) batch.segments = Tensor::empty(context, shape, DType::int32);
  return batch;
}

DeviceBatch to_device(Context& context, const Batch& batch) {
  DeviceBatch on_device = empty_batch(context, batch);
  copy_from_host(context, on_device.tokens, batch.tokens.data());
  copy_from_host(context, on_device.targets, batch.targets.data());
  if (on_device.segments.defined()) copy_from_host(context, on_device.segments, batch.segments.data());
  context.synchronize();
  return on_device;
}

}  // namespace heddle
