// Tasks that need no text: sequences made from the counter RNG, where only the answers count as targets.
// Token 0 fills gaps and separates; the others mean what each task says.
#pragma once

#include <cstdint>

#include "core/tensor/random.h"
#include "trainers/data/dataset.h"

namespace heddle {

// A sequence is a function of seed, split and index. There are as many validation sequences as evaluation asks for,
// which must say a number of batches.
class GeneratedData : public Dataset {
 public:
  int64_t validation_sequences() const override { return sizes().validation_sequences.value(); }
  bool has_answers() const override { return true; }

 protected:
  // Throws Error for "all" validation sequences: there is no end of them.
  explicit GeneratedData(const DatasetOptions& options);
  // Before the call all tokens are 0 and all targets kIgnoredTarget.
  virtual void generate(Random& random, int32_t* tokens, int32_t* targets) const = 0;

  void training_sequence(int64_t index, int32_t* tokens, int32_t* targets) const override;
  void validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const override;

 private:
  uint64_t seed_;
};

// Multi-query associative recall: num_pairs times (key, value), then num_queries times (key, value) at random even
// places of the rest; the target at the second occurrence of a key is its value. Keys: 1 .. V/2 - 1; values: V/2 .. V
// - 1. Source: Arora et al., "Zoology", arXiv:2312.04927.
class RecallData : public GeneratedData {
 public:
  explicit RecallData(const DatasetOptions& options);

 protected:
  void generate(Random& random, int32_t* tokens, int32_t* targets) const override;
  int64_t counted_in_training_sequence(int64_t) const override { return queries_; }

 private:
  int64_t pairs_, queries_, vocabulary_;
};

// `length` symbols of 1 .. V - 1, the separator 0, then the same symbols; the targets are the symbols of the repeat.
class CopyData : public GeneratedData {
 public:
  explicit CopyData(const DatasetOptions& options);

 protected:
  void generate(Random& random, int32_t* tokens, int32_t* targets) const override;
  int64_t counted_in_training_sequence(int64_t) const override { return copied_; }

 private:
  int64_t copied_, vocabulary_;
};

}  // namespace heddle
