// A long row of tokens in files that are mapped into memory, one file after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/io/mapped_file.h"
#include "trainers/data/data_config.h"
#include "trainers/data/file_format.h"

namespace heddle {

class TokenFiles {
 public:
  TokenFiles() = default;  // no file, no token
  // The files that `path_or_pattern` names, as find_files() says. Throws Error for what find_files() and format_of()
  // refuse, and for a token that is no id of the vocabulary; files of more than kFullDigestBytes together are too long
  // to look at each token here, and read() does so.
  TokenFiles(const std::string& path_or_pattern, const DataConfig& data, int64_t vocab_size);

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
    FileFormat format;
  };

  // Where the token number `place` of a file begins.
  const char* bytes_of(size_t file, int64_t place) const;
  void check_ids(size_t file) const;
  // Of the tokens at `place` of a file, of which one at least is no id of the vocabulary.
  [[noreturn]] void refuse_first_stranger(size_t file, int64_t place, std::span<const int32_t> tokens) const;

  std::vector<MappedFile> files_;
  std::vector<Row> rows_;  // one a file
  int64_t size_ = 0;
  int64_t vocab_size_ = 0;
};

}  // namespace heddle
