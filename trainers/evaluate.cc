#include "trainers/evaluate.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/tensor/transfer.h"
#include "layers/ops/cross_entropy.h"

namespace heddle {
namespace {

// Number of targets whose logit is the largest of its row. kIgnoredTarget is the index of no logit.
int64_t count_right(Context& context, const Tensor& logits, const Batch& batch) {
  const std::vector<double> values = read_values(context, logits);
  const int64_t classes = logits.size(-1);
  int64_t right = 0;
  for (size_t i = 0; i < batch.targets.size(); ++i) {
    const auto row = values.begin() + static_cast<int64_t>(i) * classes;
    if (std::max_element(row, row + classes) - row == batch.targets[i]) ++right;
  }
  return right;
}

// Sum of the losses of all targets that count. Each sequence has a loss of its own, so that the sum does not depend on
// which sequences share a batch.
double sum_losses(Tape& tape, const Variable& logits, const DeviceBatch& on_device, const Batch& batch) {
  std::vector<Tensor> means;
  for (int64_t row = 0; row < batch.size; ++row) {
    const Variable row_logits = tape.constant(logits.value.select(0, row));
    means.push_back(language_model_loss(tape, row_logits, on_device.targets.select(0, row)).value);
  }
  double sum = 0.0;
  for (int64_t row = 0; row < batch.size; ++row) {
    const auto begin = batch.targets.begin() + row * batch.length;
    const auto counted = batch.length - std::count(begin, begin + batch.length, kIgnoredTarget);
    sum += read_values(tape.context(), means[static_cast<size_t>(row)])[0] * static_cast<double>(counted);
  }
  return sum;
}

}  // namespace

Variable language_model_loss(Tape& tape, const Variable& logits, const Tensor& targets) {
  const MemoryScope scope(tape.context(), "loss", MemoryCategory::activation);
  return cross_entropy(tape, logits, targets, {.ignore_index = kIgnoredTarget});
}

Evaluation evaluate(Context& context, const LanguageModel& model, const Dataset& data) {
  double sum = 0.0;
  int64_t targets = 0, right = 0;
  for (int64_t sequence = 0; sequence < data.validation_sequences();) {
    const Batch batch = data.validation_batch(sequence);
    const DeviceBatch on_device = to_device(context, batch);
    Tape tape(context, Tape::Mode::inference);
    const Variable logits = model.forward(tape, on_device.tokens);
    sum += sum_losses(tape, logits, on_device, batch);
    targets += static_cast<int64_t>(batch.targets.size()) -
               std::count(batch.targets.begin(), batch.targets.end(), kIgnoredTarget);
    if (data.has_answers()) right += count_right(context, logits.value, batch);
    sequence += batch.size;
  }
  const double total = static_cast<double>(targets);
  const double accuracy =
      data.has_answers() ? static_cast<double>(right) / total : std::numeric_limits<double>::quiet_NaN();
  return {sum / total, accuracy, targets};
}

}  // namespace heddle
