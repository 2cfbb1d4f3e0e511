#include "trainers/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/tensor/transfer.h"

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

// Sum of the losses of all targets that count. Each sequence has a loss of its own, loss_of(row), so that the sum does
// not depend on which sequences share a batch.
template <class LossOf>
double sum_losses(Tape& tape, const Batch& batch, const LossOf& loss_of) {
  std::vector<Tensor> means;
  for (int64_t row = 0; row < batch.size; ++row) means.push_back(loss_of(row).value);
  double sum = 0.0;
  for (int64_t row = 0; row < batch.size; ++row) {
    const auto begin = batch.targets.begin() + row * batch.length;
    const auto counted = batch.length - std::count(begin, begin + batch.length, kIgnoredTarget);
    sum += read_values(tape.context(), means[static_cast<size_t>(row)])[0] * static_cast<double>(counted);
  }
  return sum;
}

// Bytes that the targets that count stand for.
int64_t count_bytes(const Tokenizer& tokenizer, const Batch& batch) {
  int64_t bytes = 0;
  for (const int32_t target : batch.targets) bytes += static_cast<int64_t>(tokenizer.bytes_of(target).size());
  return bytes;
}

}  // namespace

double Evaluation::bits_per_byte() const {
  if (bytes == 0) return std::numeric_limits<double>::quiet_NaN();
  return loss * (static_cast<double>(targets) / static_cast<double>(bytes)) / std::log(2.0);
}

Evaluation evaluate(Context& context, const LanguageModel& model, const Dataset& data) {
  double sum = 0.0;
  int64_t targets = 0, right = 0, bytes = 0;
  for (int64_t sequence = 0; sequence < data.validation_sequences();) {
    const Batch batch = data.validation_batch(sequence);
    const DeviceBatch on_device = to_device(context, batch);
    Tape tape(context, Tape::Mode::inference);
    const bool has_logits = model.loss_chunk() == 0 || data.has_answers();
    const ModelInput input(on_device.tokens, on_device.segments);
    const Variable output = has_logits ? model.forward(tape, input) : model.features(tape, input);
    const auto loss_of = [&](int64_t row) {
      const Variable of_row = tape.constant(output.value.select(0, row));
      const Tensor targets_of_row = on_device.targets.select(0, row);
      return has_logits ? language_model_loss(tape, of_row, targets_of_row) : model.loss(tape, of_row, targets_of_row);
    };
    sum += sum_losses(tape, batch, loss_of);
    if (data.tokenizer() != nullptr) bytes += count_bytes(*data.tokenizer(), batch);
    if (data.has_answers()) right += count_right(context, output.value, batch);
    targets += static_cast<int64_t>(batch.targets.size()) -
               std::count(batch.targets.begin(), batch.targets.end(), kIgnoredTarget);
    sequence += batch.size;
  }
  const double total = static_cast<double>(targets);
  const double accuracy =
      data.has_answers() ? static_cast<double>(right) / total : std::numeric_limits<double>::quiet_NaN();
  return {sum / total, accuracy, targets, bytes};
}

}  // namespace heddle
