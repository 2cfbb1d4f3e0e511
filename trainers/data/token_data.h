// Windows of long rows of tokens: the bytes or pieces of text files, or the ids of token files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "trainers/data/dataset.h"
#include "trainers/data/mixture.h"
#include "trainers/data/token_files.h"

namespace heddle {

// An epoch of a source shows windows of sequence_length tokens that do not overlap, in shuffled order; each epoch has
// its own order and its own start of the first window. Of several sources each has its own epochs, and source_of() says
// which one a sequence comes from.
//
// The validation tokens are those of data.validation_path or the end of those of each source. Of several sources an
// evaluation reads sequences in proportion to their weights, or all of each. An evaluation of fewer sequences than a
// source has reads whole windows spread evenly over its tokens; else it reads all windows, of which the last may be
// shorter, so that every token but the first is a target once.
class TokenData : public Dataset {
 public:
  explicit TokenData(const DatasetOptions& options);
  TokenData(const TokenData&) = delete;
  TokenData& operator=(const TokenData&) = delete;

  int64_t validation_sequences() const override { return validation_.back().end_sequence; }
  DataIdentity identity() const override;
  const Tokenizer* tokenizer() const override { return tokenizer_.get(); }
  bool is_text() const override { return is_text_; }

 protected:
  void training_sequence(int64_t index, int32_t* tokens, int32_t* targets) const override;
  int64_t counted_in_training_sequence(int64_t) const override { return sizes().length; }
  void validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const override;

 private:
  // Tokens of one row of files.
  struct Part {
    const TokenFiles* files = nullptr;
    int64_t begin = 0, end = 0;

    int64_t tokens() const { return end - begin; }
    int64_t whole_windows(int64_t length) const { return (tokens() - 1) / length; }
    // Writes the window of `length` tokens from the place `first` of the part on, or what there is of it.
    void window(int64_t first, int64_t length, int32_t* tokens, int32_t* targets) const;
  };
  struct Validation {
    Part part;
    int64_t begin_sequence = 0, end_sequence = 0;  // of all validation sequences, those that are of this part
  };

  void open(const DatasetOptions& options);
  void split(const DatasetOptions& options);
  void check_parts(const DatasetOptions& options) const;
  void share_validation(const DatasetOptions& options);
  int64_t sequences_of(const Part& part, std::optional<int64_t> most) const;

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::unique_ptr<TokenFiles>> sources_;  // one where data.path names the files
  std::vector<uint64_t> odds_;
  TokenFiles validation_files_;
  std::vector<Part> training_;          // of each source
  std::vector<Validation> validation_;  // of each source, or that of validation_path
  bool is_text_ = true;
  uint64_t seed_ = 0;
  mutable std::once_flag is_identified_;
  mutable DataIdentity identity_;  // when somebody has asked for it
};

}  // namespace heddle
