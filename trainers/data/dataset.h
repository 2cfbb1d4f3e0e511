// Batches for training and validation.                                                            docs/config.md#data
//
// The training data are one endless row of sequences, numbered from 0, each a pure function of the seed and its number.
// A run that continues needs to know nothing but how many of them it has seen, whatever the size of its batches.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/runtime/context.h"
#include "core/tensor/tensor.h"
#include "trainers/data/data_config.h"
#include "trainers/data/data_identity.h"
#include "trainers/data/tokenizer.h"

namespace heddle {

// This target counts in no loss: after its token nothing is asked for.
inline constexpr int32_t kIgnoredTarget = -100;

// targets[b, n] is the token that the model has to give after tokens[b, 0..n], or kIgnoredTarget. All (size, length),
// or all empty: for device meta, which reads no numbers, the shape of a batch is enough.
struct Batch {
  int64_t size = 0;
  int64_t length = 0;
  std::vector<int32_t> tokens;
  std::vector<int32_t> targets;
  std::vector<int32_t> segments = {};  // with data.pack: number of the document of each token; else empty
  // Where this is the part of one process: where it begins in the batch of all, and how many targets count in that one.
  int64_t first_row = 0;
  int64_t counted_by_all = 0;  // 0: this is a whole batch
  bool packed = false;         // of a shape alone: whether the batch has segments

  bool has_segments() const { return packed || !segments.empty(); }
};

// Number of targets that count in a loss.
int64_t counted_targets(const Batch& batch);

// A data set is constant once it is made, so several threads may use it.
class Dataset {
 public:
  virtual ~Dataset() = default;

  // The sequences first_sequence .. first_sequence + batch size - 1, in this order; first_sequence >= 0.
  Batch training_batch(int64_t first_sequence) const;
  // The part of that batch that process `rank` of `processes` trains on: as many of its sequences, in their order, as
  // each other process has. The number of processes divides the batch size.
  Batch training_part(int64_t first_sequence, int rank, int processes) const;
  // Of the validation sequences, which are the same at every evaluation, batch size many from `first_sequence` on, or
  // those that are left. 0 <= first_sequence < validation_sequences().
  Batch validation_batch(int64_t first_sequence) const;
  // The sequences of that batch from `first_row` on, at most `rows`; none where it ends before.
  Batch validation_part(int64_t first_sequence, int64_t first_row, int64_t rows) const;
  int64_t batch_size() const { return sizes_.batch; }
  // How many an evaluation reads.
  virtual int64_t validation_sequences() const = 0;
  // Reads the files that the data are made of, the first time.
  virtual DataIdentity identity() const { return {}; }
  // What turns tokens into text, so that a loss can be given in bits per byte; nullptr: they are no text.
  virtual const Tokenizer* tokenizer() const { return nullptr; }
  // Whether tokens are bytes of text.
  virtual bool is_text() const { return false; }
  // Whether targets are answers that can be right or wrong, so that an accuracy says something.
  virtual bool has_answers() const { return false; }

 protected:
  struct Sizes {
    int64_t batch = 0;                            // sequences of a batch
    int64_t length = 0;                           // tokens of a sequence
    std::optional<int64_t> validation_sequences;  // at most; none: all
    std::optional<int32_t> separator;             // with data.pack
  };
  static Sizes sizes_of(const DatasetOptions& options);
  explicit Dataset(const Sizes& sizes) : sizes_(sizes) {}
  const Sizes& sizes() const { return sizes_; }

  // Writes sizes().length tokens and as many targets. Before the call all tokens are 0 and all targets kIgnoredTarget.
  virtual void training_sequence(int64_t index, int32_t* tokens, int32_t* targets) const = 0;
  virtual void validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const = 0;
  // Number of targets that count in a training sequence. Unless it is overridden, the sequence is made and counted.
  virtual int64_t counted_in_training_sequence(int64_t index) const;

 private:
  template <class Sequence>
  Batch assemble(int64_t first, int64_t size, const Sequence& sequence) const;

  Sizes sizes_;
};

// Throws ConfigError at data.path for files that are missing, empty, or too short for one sequence.
std::unique_ptr<Dataset> make_dataset(const DatasetOptions& options);

// A batch on the device: int32 (size, length), counted as data.
struct DeviceBatch {
  Tensor tokens;
  Tensor targets;
  Tensor segments = {};  // undefined when the batch has none
};
DeviceBatch to_device(Context& context, const Batch& batch);
// The tensors of a batch like this one, not yet written.
DeviceBatch empty_batch(Context& context, const Batch& like);

// Writes the number of the document of each token of a sequence: the separators up to it, itself included.
void number_documents(std::span<const int32_t> tokens, int32_t separator, int32_t* segments);

}  // namespace heddle
