#include "trainers/data/dataset.h"

#include <algorithm>
#include <cstddef>

#include "core/runtime/error.h"
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

Batch Dataset::training_part(int64_t first_sequence, int rank, int processes) const {
  if (processes == 1) return training_batch(first_sequence);
  check(sizes_.batch % processes == 0, "a batch of {} sequences for {} processes, expected a multiple", sizes_.batch,
        processes);
  const int64_t rows = sizes_.batch / processes;
  Batch batch = assemble(first_sequence + rank * rows, rows,
                         [&](int64_t i, int32_t* tokens, int32_t* targets) { training_sequence(i, tokens, targets); });
  batch.first_row = rank * rows;
  for (int64_t i = 0; i < sizes_.batch; ++i) batch.counted_by_all += counted_in_training_sequence(first_sequence + i);
  return batch;
}

int64_t Dataset::counted_in_training_sequence(int64_t index) const {
  const auto length = static_cast<size_t>(sizes_.length);
  std::vector<int32_t> tokens(length, 0), targets(length, kIgnoredTarget);
  training_sequence(index, tokens.data(), targets.data());
  return sizes_.length - std::count(targets.begin(), targets.end(), kIgnoredTarget);
}

Batch Dataset::validation_batch(int64_t first_sequence) const {
  return validation_part(first_sequence, 0, sizes_.batch);
}

Batch Dataset::validation_part(int64_t first_sequence, int64_t first_row, int64_t rows) const {
  const int64_t first = first_sequence + first_row;
  const int64_t count = std::clamp<int64_t>(validation_sequences() - first, 0, rows);
  return assemble(first, count,
                  [&](int64_t i, int32_t* tokens, int32_t* targets) { validation_sequence(i, tokens, targets); });
}

int64_t counted_targets(const Batch& batch) {
  return static_cast<int64_t>(batch.targets.size()) -
         std::count(batch.targets.begin(), batch.targets.end(), kIgnoredTarget);
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
  if (like.has_segments()) batch.segments = Tensor::empty(context, shape, DType::int32);
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
