// A long row of tokens in files that are mapped into memory, one file after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/mapped_file.h"
#include "trainers/data/data_config.h"
#include "trainers/data/file_format.h"
#include "trainers/data/tokenizer.h"

namespace heddle {

// Text of all files together that is encoded when a data set is opened, at most; `heddle tokenize` encodes any text.
inline constexpr uint64_t kMostEncodedBytes = uint64_t{256} << 20;

class TokenFiles {
 public:
  TokenFiles() = default;  // no file, no token
  // The files that `path_or_pattern` names, as find_files() says. Text whose tokens are no bytes is encoded here, by
  // `tokenizer`, and its ids are kept in memory. Throws Error for what find_files() and format_of() refuse, for text of
  // more than kMostEncodedBytes that is to be encoded, and for a token that is no id of the vocabulary; files of more
  // than kFullDigestBytes together are too long to look at each token here, and read() does so.
  TokenFiles(const std::string& path_or_pattern, const DataConfig& data, int64_t vocab_size,
             const Tokenizer* tokenizer = nullptr);

  int64_t size() const { return size_; }  // tokens
  const std::vector<MappedFile>& files() const { return files_; }
  // Writes the tokens begin .. begin + count - 1, which may lie in several files. Throws Error for a token that is no
  // id of the vocabulary, naming its file and place.
  void read(int64_t begin, int64_t count, int32_t* tokens) const;

 private:
  // The tokens of one file.
  struct Row {
    int64_t first = 0;  // number of its first token in all files
    int64_t count = 0;
    int64_t width = 1;             // bytes of a token
    const char* tokens = nullptr;  // in the file, or in encoded_
  };

  // The ids of a text as integers of `width` bytes, little-endian, in encoded_.
  Row encode(std::string_view text, const Tokenizer& tokenizer);
  // Where the token number `place` of a file begins.
  const char* bytes_of(size_t file, int64_t place) const;
  void check_ids(size_t file) const;
  // Of the tokens at `place` of a file, of which one at least is no id of the vocabulary.
  [[noreturn]] void refuse_first_stranger(size_t file, int64_t place, std::span<const int32_t> tokens) const;

  std::vector<MappedFile> files_;
  std::vector<Row> rows_;                   // one a file
  std::vector<std::vector<char>> encoded_;  // the ids of text, of files that need it
  int64_t size_ = 0;
  int64_t vocab_size_ = 0;
};

}  // namespace heddle
