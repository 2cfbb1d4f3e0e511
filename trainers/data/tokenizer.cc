#include "trainers/data/tokenizer.h"

#include <array>

#include "core/runtime/error.h"
#include "trainers/data/sentencepiece.h"

namespace heddle {
namespace {

// All bytes in order, for views of one of them.
constexpr std::array<char, 256> kBytes = [] {
  std::array<char, 256> bytes{};
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(static_cast<unsigned char>(i));
  return bytes;
}();

bool continues_character(char byte) { return (static_cast<unsigned char>(byte) & 0xC0u) == 0x80u; }

}  // namespace

std::vector<int32_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size());
  for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
  return ids;
}

std::string_view ByteTokenizer::bytes_of(int32_t token) const {
  if (token < 0 || token >= size()) return {};
  return {&kBytes[static_cast<size_t>(token)], 1};
}

std::shared_ptr<const Tokenizer> make_tokenizer(const std::string& name) {
  if (name == kByteTokenizer) return std::make_shared<ByteTokenizer>();
  return load_sentencepiece(name);
}

std::shared_ptr<const Tokenizer> tokenizer_of(const DataConfig& data, int64_t vocab_size) {
  if (!data.tokenizer && data.type != DataType::text) return nullptr;
  const std::string name = data.tokenizer.value_or(kByteTokenizer);
  std::shared_ptr<const Tokenizer> tokenizer = make_tokenizer(name);
  check(tokenizer->size() <= vocab_size, "{} has {} tokens, expected at most model.vocab_size ({})", name,
        tokenizer->size(), vocab_size);
  return tokenizer;
}

size_t piece_length(std::string_view text) {
  if (text.size() <= kPieceBytes) return text.size();
  const std::string_view piece = text.substr(0, kPieceBytes);
  if (const size_t line_break = piece.rfind('\n'); line_break != std::string_view::npos) return line_break + 1;
  if (const size_t space = piece.rfind(' '); space != std::string_view::npos && space > 0) return space;
  size_t end = kPieceBytes;
  while (end > kPieceBytes - 4 && continues_character(text[end])) --end;
  return continues_character(text[end]) ? kPieceBytes : end;
}

std::vector<int32_t> encode_text(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids;
  while (!text.empty()) {
    const size_t length = piece_length(text);
    const std::vector<int32_t> piece = tokenizer.encode(text.substr(0, length));
    ids.insert(ids.end(), piece.begin(), piece.end());
    text.remove_prefix(length);
  }
  return ids;
}

}  // namespace heddle
