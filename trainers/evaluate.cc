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

// Counts the targets whose logit is the largest of its row. kIgnoredTarget is the index of no logit.
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

}  // namespace

Variable language_model_loss(Tape& tape, const Variable& logits, const Tensor& targets) {
  const MemoryScope scope(tape.context(), "loss", MemoryCategory::activation);
  return cross_entropy(tape, logits, targets, {.ignore_index = kIgnoredTarget});
}

Evaluation evaluate(Context& context, const LanguageModel& model, const Dataset& data) {
  double sum = 0.0;
  int64_t targets = 0, right = 0;
  for (int64_t index = 0; index < data.validation_batches(); ++index) {
    const Batch batch = data.validation_batch(index);
    const DeviceBatch on_device = to_device(context, batch);
    Tape tape(context, Tape::Mode::inference);
    const Variable logits = model.forward(tape, on_device.tokens);
    const double loss = read_values(context, language_model_loss(tape, logits, on_device.targets).value)[0];
    const int64_t counted = static_cast<int64_t>(batch.targets.size()) -
                            std::count(batch.targets.begin(), batch.targets.end(), kIgnoredTarget);
    sum += loss * static_cast<double>(counted);
    targets += counted;
    if (data.has_answers()) right += count_right(context, logits.value, batch);
  }
  const double total = static_cast<double>(targets);
  const double accuracy =
      data.has_answers() ? static_cast<double>(right) / total : std::numeric_limits<double>::quiet_NaN();
  return {sum / total, accuracy, targets};
}

}  // namespace heddle
