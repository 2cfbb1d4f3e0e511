// Text files as one token file.                                                                docs/cli.md#tokenize
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "core/io/mapped_file.h"
#include "core/runtime/error.h"
#include "trainers/data/token_writer.h"
#include "trainers/data/tokenizer.h"

namespace heddle {

// What a document is. A separator is written before each.
enum class Documents {
  none,       // there are no documents: the files are one text, without a separator
  file,       // a file
  line,       // a line that is not empty, without its line break
  paragraph,  // lines up to an empty one, without the last line break; empty lines belong to none
};

struct TokenizeOptions {
  Documents documents = Documents::none;
  int32_t separator = 0;  // of documents
  // Is told from time to time how many bytes of text are done. When it says no, tokenize() ends and throws Stopped.
  std::function<bool(uint64_t bytes)> goes_on = [](uint64_t) { return true; };
};

// tokenize() was asked to end.
class Stopped : public Error {
 public:
  using Error::Error;
};

struct TokenizeResult {
  int64_t tokens = 0;
  int64_t documents = 0;
  uint64_t bytes = 0;          // of text that was encoded
  uint64_t decoded_bytes = 0;  // of what the tokens stand for
  int64_t changed_pieces = 0;  // of at most kPieceBytes, which the tokens do not give back as they were
};

// Maps the files that the paths and patterns name, in this order. Throws Error for files that are empty or no text.
std::vector<MappedFile> open_texts(const std::vector<std::string>& paths);

// Encodes the texts one after the other. What is in memory at a time does not depend on how long they are.
TokenizeResult tokenize(const std::vector<MappedFile>& texts, const Tokenizer& tokenizer,
                        const TokenizeOptions& options, TokenWriter& writer);

// The contents of a model file of sentencepiece that train_sentencepiece() makes of these texts. Of texts with more
// than kTrainedBytes together every k-th line is read, k the least number with which so many bytes are enough.
inline constexpr uint64_t kTrainedBytes = uint64_t{128} << 20;
std::string train_vocabulary(const std::vector<MappedFile>& texts, int64_t vocabulary);

}  // namespace heddle
