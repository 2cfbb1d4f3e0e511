#include "trainers/evaluate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>
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

// Sums over the sequences of one batch.
struct BatchSums {
  std::vector<double> losses;  // of each sequence, over its targets that count
  int64_t targets = 0, right = 0, bytes = 0;
};

// The losses of the sequences of a batch. Each has a loss of its own, loss_of(row), so that it does not depend on which
// sequences share the batch.
template <class LossOf>
std::vector<double> sum_losses(Tape& tape, const Batch& batch, const LossOf& loss_of) {
  std::vector<Tensor> means;
  for (int64_t row = 0; row < batch.size; ++row) means.push_back(loss_of(row).value);
  std::vector<double> sums;
  for (int64_t row = 0; row < batch.size; ++row) {
    const auto begin = batch.targets.begin() + row * batch.length;
    const auto counted = batch.length - std::count(begin, begin + batch.length, kIgnoredTarget);
    sums.push_back(read_values(tape.context(), means[static_cast<size_t>(row)])[0] * static_cast<double>(counted));
  }
  return sums;
}

// Bytes that the targets that count stand for.
int64_t count_bytes(const Tokenizer& tokenizer, const Batch& batch) {
  int64_t bytes = 0;
  for (const int32_t target : batch.targets) bytes += static_cast<int64_t>(tokenizer.bytes_of(target).size());
  return bytes;
}

BatchSums evaluate_batch(Context& context, const LanguageModel& model, const Dataset& data, const Batch& batch) {
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
  BatchSums sums{.losses = sum_losses(tape, batch, loss_of), .targets = counted_targets(batch)};
  if (data.tokenizer() != nullptr) sums.bytes = count_bytes(*data.tokenizer(), batch);
  if (data.has_answers()) sums.right = count_right(context, output.value, batch);
  return sums;
}

// The sums of all parts of a batch, of which each process has one, in the order of the sequences.
BatchSums join(const Processes& processes, const BatchSums& mine) {
  if (processes.count() == 1) return mine;
  const std::array<int64_t, 3> counts_of_mine = {mine.targets, mine.right, mine.bytes};
  std::string bytes(reinterpret_cast<const char*>(counts_of_mine.data()), sizeof(counts_of_mine));
  bytes.append(reinterpret_cast<const char*>(mine.losses.data()), mine.losses.size() * sizeof(double));
  BatchSums all;
  for (const std::string& text : processes.gather(bytes)) {
    std::array<int64_t, 3> counts{};
    std::memcpy(counts.data(), text.data(), sizeof(counts));
    all.targets += counts[0];
    all.right += counts[1];
    all.bytes += counts[2];
    const size_t before = all.losses.size();
    all.losses.resize(before + (text.size() - sizeof(counts)) / sizeof(double));
    std::memcpy(all.losses.data() + before, text.data() + sizeof(counts), text.size() - sizeof(counts));
  }
  return all;
}

}  // namespace

double Evaluation::bits_per_byte() const {
  if (bytes == 0) return std::numeric_limits<double>::quiet_NaN();
  return loss * (static_cast<double>(targets) / static_cast<double>(bytes)) / std::log(2.0);
}

Evaluation evaluate(Context& context, const LanguageModel& model, const Dataset& data, const Processes& processes) {
  double sum = 0.0;
  int64_t targets = 0, right = 0, bytes = 0;
  const int64_t rows = (data.batch_size() + processes.count() - 1) / processes.count();
  for (int64_t sequence = 0; sequence < data.validation_sequences(); sequence += data.batch_size()) {
    const int64_t first_row = std::min(processes.rank() * rows, data.batch_size());
    const Batch batch = data.validation_part(sequence, first_row, std::min(rows, data.batch_size() - first_row));
    const BatchSums sums =
        join(processes, batch.size > 0 ? evaluate_batch(context, model, data, batch) : BatchSums{.losses = {}});
    sum += std::accumulate(sums.losses.begin(), sums.losses.end(), 0.0);
    targets += sums.targets;
    right += sums.right;
    bytes += sums.bytes;
  }
  const double total = static_cast<double>(targets);
  const double accuracy =
      data.has_answers() ? static_cast<double>(right) / total : std::numeric_limits<double>::quiet_NaN();
  return {sum / total, accuracy, targets, bytes};
}

}  // namespace heddle
