#include "trainers/data/token_files.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/runtime/error.h"
#include "trainers/data/data_identity.h"
#include "trainers/data/find_files.h"

namespace heddle {
namespace {

// Little-endian integers of type T as tokens, uint32 above the range of int32 as negative ones.
template <class T>
void convert(const char* bytes, int64_t count, int32_t* tokens) {
  for (int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, bytes + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    tokens[i] = static_cast<int32_t>(value);
  }
}

void convert(const char* bytes, int64_t width, int64_t count, int32_t* tokens) {
  if (width == 1) return convert<uint8_t>(bytes, count, tokens);
  if (width == 2) return convert<uint16_t>(bytes, count, tokens);
  convert<uint32_t>(bytes, count, tokens);
}

// A negative token counts as the uint32 that it was.
int64_t largest(const int32_t* tokens, int64_t count) {
  uint32_t found = 0;
  for (int64_t i = 0; i < count; ++i) found = std::max(found, static_cast<uint32_t>(tokens[i]));
  return found;
}

}  // namespace

TokenFiles::TokenFiles(const std::string& path_or_pattern, const DataConfig& data, int64_t vocab_size,
                       const Tokenizer* tokenizer)
    : vocab_size_(vocab_size) {
  const bool is_encoded = data.type == DataType::text && !is_bytes_of_text(data);
  uint64_t bytes = 0;
  for (const std::string& path : find_files(path_or_pattern)) {
    const MappedFile& file = files_.emplace_back(path);
    const FileFormat format = format_of(file, data, vocab_size);
    bytes += file.bytes().size();
    const int64_t count = (static_cast<int64_t>(file.bytes().size()) - format.header_bytes) / format.width;
    Row row{.count = count, .width = format.width, .tokens = file.bytes().data() + format.header_bytes};
    if (is_encoded) {
      check(bytes <= kMostEncodedBytes,
            "{} has more than {} MiB of text, which would be encoded each time; encode it once by `{} --out FILE.bin`, "
            "and read that by data.type: tokens",
            path_or_pattern, kMostEncodedBytes >> 20, tokenize_command(path_or_pattern, data));
      row = encode(file.bytes(), *tokenizer);
    }
    row.first = size_;
    size_ += row.count;
    rows_.push_back(row);
  }
  if (data.type == DataType::text || bytes > kFullDigestBytes) return;
  for (size_t file = 0; file < files_.size(); ++file) check_ids(file);
}

void TokenFiles::read(int64_t begin, int64_t count, int32_t* tokens) const {
  // The last file whose first token is not after `begin`.
  size_t file = static_cast<size_t>(std::upper_bound(rows_.begin(), rows_.end(), begin,
                                                     [](int64_t place, const Row& row) { return place < row.first; }) -
                                    rows_.begin() - 1);
  while (count > 0) {
    const Row& row = rows_.at(file);
    const int64_t place = begin - row.first, here = std::min(count, row.count - place);
    convert(bytes_of(file, place), row.width, here, tokens);
    if (largest(tokens, here) >= vocab_size_) refuse_first_stranger(file, place, {tokens, static_cast<size_t>(here)});
    begin += here;
    count -= here;
    tokens += here;
    ++file;
  }
}

const char* TokenFiles::bytes_of(size_t file, int64_t place) const {
  return rows_[file].tokens + place * rows_[file].width;
}

TokenFiles::Row TokenFiles::encode(std::string_view text, const Tokenizer& tokenizer) {
  const std::vector<int32_t> ids = encode_text(tokenizer, text);
  Row row{.count = static_cast<int64_t>(ids.size()), .width = token_bytes(tokenizer.size())};
  std::vector<char>& bytes = encoded_.emplace_back(ids.size() * static_cast<size_t>(row.width));
  for (size_t i = 0; i < ids.size(); ++i) {
    write_token(bytes.data() + i * static_cast<size_t>(row.width), row.width, ids[i]);
  }
  row.tokens = bytes.data();
  return row;
}

void TokenFiles::check_ids(size_t file) const {
  constexpr int64_t kPart = 1 << 14;
  std::vector<int32_t> part(kPart);
  const Row& row = rows_[file];
  for (int64_t begin = 0; begin < row.count; begin += kPart) {
    const int64_t count = std::min(kPart, row.count - begin);
    read(row.first + begin, count, part.data());
    files_[file].release({bytes_of(file, begin), static_cast<size_t>(count * row.width)});
  }
}

void TokenFiles::refuse_first_stranger(size_t file, int64_t place, std::span<const int32_t> tokens) const {
  const auto stranger = std::find_if(tokens.begin(), tokens.end(), [&](int32_t token) {
    return int64_t{static_cast<uint32_t>(token)} >= vocab_size_;
  });
  const bool is_wrong_width = rows_[file].width == 4 && fits_uint16(files_[file].bytes(), vocab_size_);
  fail("{}: token {} is {}, expected less than model.vocab_size ({}){}", files_[file].path().string(),
       place + (stranger - tokens.begin()), static_cast<uint32_t>(*stranger), vocab_size_,
       is_wrong_width ? "; as uint16 all are, so data.token_width: uint16 may be meant" : "");
}

}  // namespace heddle
