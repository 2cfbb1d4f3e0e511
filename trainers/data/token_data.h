// Windows of a long row of tokens: the bytes of text files, or the ids of a token file.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>

#include "trainers/data/dataset.h"
#include "trainers/data/token_files.h"

namespace heddle {

// An epoch shows windows of sequence_length tokens that do not overlap, in shuffled order; each epoch has its own order
// and its own start of the first window.
//
// The validation tokens are those of data.validation_path or the end of those of data.path. An evaluation of fewer
// sequences than there are reads whole windows spread evenly over them; else it reads all windows, of which the last
// may be shorter, so that every token but the first is a target once.
class TokenData : public Dataset {
 public:
  explicit TokenData(const DatasetOptions& options);
  TokenData(const TokenData&) = delete;
  TokenData& operator=(const TokenData&) = delete;

  int64_t validation_sequences() const override;
  DataIdentity identity() const override;
  bool is_text() const override { return is_text_; }

 protected:
  void training_sequence(int64_t index, int32_t* tokens, int32_t* targets) const override;
  void validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const override;

 private:
  // Tokens of one row of files.
  struct Part {
    const TokenFiles* files = nullptr;
    int64_t begin = 0, end = 0;

    int64_t tokens() const { return end - begin; }
    // Writes the window of `length` tokens from the place `first` of the part on, or what there is of it.
    void window(int64_t first, int64_t length, int32_t* tokens, int32_t* targets) const;
  };

  void split(const DatasetOptions& options);
  void check_parts(const DatasetOptions& options) const;
  int64_t whole_validation_windows() const { return (validation_.tokens() - 1) / sizes().length; }

  TokenFiles files_, validation_files_;
  Part training_, validation_;
  bool is_text_ = true;
  uint64_t seed_ = 0;
  mutable std::once_flag is_identified_;
  mutable DataIdentity identity_;  // when somebody has asked for it
};

}  // namespace heddle
