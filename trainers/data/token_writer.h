// Writes a token file that data.type: tokens reads without further keys. docs/config.md#files-of-text-and-tokens
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/io/atomic_file.h"
#include "trainers/data/file_format.h"

namespace heddle {

// The header of llm.c with uint16 tokens up to a vocabulary of 65536 ids, with uint32 tokens above. The file has its
// name when commit() returns, and nothing is left without it. Throws Error naming the file, also for what is no regular
// file: the header, which holds the number of tokens, is written last.
class TokenWriter {
 public:
  TokenWriter(const std::filesystem::path& path, int64_t vocab_size);

  // Ids of the vocabulary.
  void add(std::span<const int32_t> tokens);
  void commit();

  int64_t tokens() const { return tokens_; }
  int64_t width() const { return header_.width; }  // bytes of a token

 private:
  void flush();

  std::filesystem::path path_;
  const LlmcHeader& header_;
  AtomicFile file_;
  std::vector<char> buffer_;  // not yet written
  int64_t tokens_ = 0;
};

}  // namespace heddle
