#include "trainers/data/generated_data.h"

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "core/runtime/error.h"

namespace heddle {
namespace {

// Substreams of RandomStream::data; 0 orders the windows of TokenData.
constexpr uint32_t kTrainingSequences = 1;
constexpr uint32_t kValidationSequences = 2;
// One sequence may use 2^kWordsBits random words.
constexpr int kWordsBits = 24;

// Draws `count` different numbers of first, first + 1 .. last - 1, in random order.
std::vector<int32_t> draw_distinct(Random& random, int64_t first, int64_t last, int64_t count) {
  std::vector<int32_t> values(static_cast<size_t>(last - first));
  std::iota(values.begin(), values.end(), static_cast<int32_t>(first));
  for (int64_t i = 0; i < count; ++i) {
    std::swap(values[i], values[i + random.next_below(values.size() - i)]);
  }
  values.resize(static_cast<size_t>(count));
  return values;
}

int32_t draw(Random& random, int64_t first, int64_t last) {
  return static_cast<int32_t>(first + static_cast<int64_t>(random.next_below(static_cast<uint64_t>(last - first))));
}

}  // namespace

GeneratedData::GeneratedData(const DatasetOptions& options) : Dataset(sizes_of(options)), seed_(options.seed) {
  check(options.eval_sequences.has_value(), "generated data have sequences without end, expected a number to evaluate");
}

void GeneratedData::training_sequence(int64_t index, int32_t* tokens, int32_t* targets) const {
  Random random(seed_, RandomStream::data, kTrainingSequences);
  random.seek(static_cast<uint64_t>(index) << kWordsBits);
  generate(random, tokens, targets);
}

void GeneratedData::validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const {
  Random random(seed_, RandomStream::data, kValidationSequences);
  random.seek(static_cast<uint64_t>(index) << kWordsBits);
  generate(random, tokens, targets);
}

RecallData::RecallData(const DatasetOptions& options)
    : GeneratedData(options),
      pairs_(options.data.num_pairs),
      queries_(options.data.num_queries),
      vocabulary_(options.vocab_size) {}

void RecallData::generate(Random& random, int32_t* tokens, int32_t* targets) const {
  const std::vector<int32_t> keys = draw_distinct(random, 1, vocabulary_ / 2, pairs_);
  std::vector<int32_t> values(keys.size());
  for (int64_t i = 0; i < pairs_; ++i) {
    values[i] = draw(random, vocabulary_ / 2, vocabulary_);
    tokens[2 * i] = keys[i];
    tokens[2 * i + 1] = values[i];
  }
  const std::vector<int32_t> asked = draw_distinct(random, 0, pairs_, queries_);
  const std::vector<int32_t> places = draw_distinct(random, pairs_, sizes().length / 2, queries_);
  for (int64_t i = 0; i < queries_; ++i) {
    tokens[2 * places[i]] = keys[asked[i]];
    tokens[2 * places[i] + 1] = values[asked[i]];
    targets[2 * places[i]] = values[asked[i]];
  }
}

CopyData::CopyData(const DatasetOptions& options)
    : GeneratedData(options), copied_(options.data.length), vocabulary_(options.vocab_size) {}

void CopyData::generate(Random& random, int32_t* tokens, int32_t* targets) const {
  for (int64_t i = 0; i < copied_; ++i) {
    const int32_t symbol = draw(random, 1, vocabulary_);
    tokens[i] = symbol;
    targets[copied_ + i] = symbol;
    if (i + 1 < copied_) tokens[copied_ + 1 + i] = symbol;
  }
}

}  // namespace heddle
