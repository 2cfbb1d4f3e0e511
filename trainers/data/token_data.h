// Windows of a long row of tokens: the bytes of text files, or the ids of a token file.
#pragma once

#include <cstdint>
#include <string>

#include "trainers/data/dataset.h"

namespace heddle {

// An epoch shows windows of sequence_length tokens that do not overlap, in shuffled order; each epoch has its own order
// and its own start of the first window. The end of the tokens is for validation, by windows spread evenly over it.
class TokenData : public Dataset {
 public:
  explicit TokenData(const DatasetOptions& options);
  DataIdentity identity() const override { return identity_; }
  bool is_text() const override { return width_ == 1; }

 protected:
  void training_sequence(int64_t index, int32_t* tokens, int32_t* targets) const override;
  void validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const override;
  int64_t validation_sequences() const override;

 private:
  int32_t token(int64_t position) const;
  void window(int64_t begin, int32_t* tokens, int32_t* targets) const;
  void check_ids(const DatasetOptions& options) const;

  DataIdentity identity_;
  std::string bytes_;  // of all files, little-endian ids
  int64_t width_ = 1;  // bytes of one token
  int64_t tokens_ = 0;
  int64_t validation_begin_ = 0;
  uint64_t seed_ = 0;
};

}  // namespace heddle
