#include "trainers/data/token_writer.h"

#include <cstddef>
#include <limits>
#include <string>

#include "core/runtime/error.h"

namespace heddle {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 16;

}  // namespace

TokenWriter::TokenWriter(const std::filesystem::path& path, int64_t vocab_size)
    : path_(path), header_(kLlmcHeaders[token_bytes(vocab_size) == 2 ? 0 : 1]), file_(path) {
  file_.overwrite(0, "", 0);  // what cannot be written again is refused before anything is written
  const std::string header(static_cast<size_t>(kLlmcHeaderBytes), '\0');
  file_.write(header.data(), header.size());
}

void TokenWriter::add(std::span<const int32_t> tokens) {
  constexpr int64_t kMost = std::numeric_limits<uint32_t>::max();
  tokens_ += static_cast<int64_t>(tokens.size());
  check(tokens_ <= kMost, "{} would have more than {} tokens, which its header cannot count: give it part of the text",
        path_.string(), kMost);
  const auto width = static_cast<size_t>(header_.width);
  const size_t held = buffer_.size();
  buffer_.resize(held + tokens.size() * width);
  for (size_t i = 0; i < tokens.size(); ++i) write_token(buffer_.data() + held + i * width, header_.width, tokens[i]);
  if (buffer_.size() >= kBufferBytes) flush();
}

void TokenWriter::flush() {
  file_.write(buffer_.data(), buffer_.size());
  buffer_.clear();
}

void TokenWriter::commit() {
  flush();
  std::string header(12, '\0');
  write_token(header.data(), 4, header_.magic);
  write_token(header.data() + 4, 4, header_.version);
  write_token(header.data() + 8, 4, static_cast<int32_t>(static_cast<uint32_t>(tokens_)));
  file_.overwrite(0, header.data(), header.size());
  file_.commit();
}

}  // namespace heddle
