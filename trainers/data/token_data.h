// Windows of a long row of tokens: the bytes of text files, or the ids of a token file.
#pragma once

#include <cstdint>
#include <string>

#include "trainers/data/dataset.h"
#include "trainers/data/token_files.h"

namespace heddle {

// An epoch shows windows of sequence_length tokens that do not overlap, in shuffled order; each epoch has its own order
// and its own start of the first window. The end of the tokens is for validation, by windows spread evenly over it.
class TokenData : public Dataset {
 public:
  explicit TokenData(const DatasetOptions& options);
  DataIdentity identity() const override { return identify(files_.files()); }
  bool is_text() const override { return is_text_; }

 protected:
  void training_sequence(int64_t index, int32_t* tokens, int32_t* targets) const override;
  void validation_sequence(int64_t index, int32_t* tokens, int32_t* targets) const override;
  int64_t validation_sequences() const override;

 private:
  void window(int64_t begin, int32_t* tokens, int32_t* targets) const;

  TokenFiles files_;
  bool is_text_ = true;
  int64_t validation_begin_ = 0;
  uint64_t seed_ = 0;
};

}  // namespace heddle
