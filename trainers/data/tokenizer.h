// What turns text into token ids and back. docs/config.md#tokenizers
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "trainers/data/data_config.h"

namespace heddle {

inline constexpr const char* kByteTokenizer = "bytes";

// Constant once it is made: several threads may use it.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  // The ids are 0 .. size() - 1.
  virtual int64_t size() const = 0;
  // The ids of a text, which is encoded as one piece: see encode_text() for long ones.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;
  // The bytes that a token stands for, at most a few; none for an id that is no text (a control token, a separator, an
  // id from size() on). Those of all tokens of a text together are the text.
  virtual std::string_view bytes_of(int32_t token) const = 0;
  // The token that a document may begin with where the user names none; none: the tokenizer has no such token.
  virtual std::optional<int32_t> separator() const = 0;
  // The file that it was read from; none for bytes.
  virtual std::optional<std::filesystem::path> file() const { return std::nullopt; }
  // What that file held.
  virtual std::string_view model() const { return {}; }
};

// Ids 0 .. 255, one a byte. A separator is 256, which is no byte.
class ByteTokenizer : public Tokenizer {
 public:
  int64_t size() const override { return 256; }
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string_view bytes_of(int32_t token) const override;
  std::optional<int32_t> separator() const override { return 256; }
};

// "bytes", or a model file of sentencepiece ("~/" at the start is the home folder). Throws Error that names the file
// when it is missing or damaged, and that names the package when heddle was built without sentencepiece.
std::shared_ptr<const Tokenizer> make_tokenizer(const std::string& name);

// That of data.tokenizer, which must fit the vocabulary of the model: an Error says so. nullptr: tokens are no text.
std::shared_ptr<const Tokenizer> tokenizer_of(const DataConfig& data, int64_t vocab_size);

// The length of the part of a text that is encoded as one piece, when it begins with `text`: at most kPieceBytes, up to
// behind the last line break there, else up to the last space, else up to the end of a UTF-8 character. So the ids of a
// text do not depend on how it arrives, as long as `text` has more than kPieceBytes or is the rest.
inline constexpr size_t kPieceBytes = size_t{1} << 14;
size_t piece_length(std::string_view text);

// The ids of a whole text, piece by piece.
std::vector<int32_t> encode_text(const Tokenizer& tokenizer, std::string_view text);

}  // namespace heddle
