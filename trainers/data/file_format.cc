#include "trainers/data/file_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>

#include "core/runtime/error.h"
#include "trainers/data/tokenizer.h"
#include "trainers/shell_argument.h"

namespace heddle {
namespace {

using namespace std::string_view_literals;

// Integers that are looked at to guess their width, at most.
constexpr int64_t kGuessedFrom = int64_t{1} << 20;

int32_t int32_at(std::string_view bytes, int64_t index) {
  return 4 * (index + 1) > static_cast<int64_t>(bytes.size()) ? 0 : read_token(bytes.data() + 4 * index, 4);
}

// A kind of file that holds no raw tokens, told by how it begins.
struct ForeignKind {
  std::string_view start;
  const char* name;
  const char* help;
};

constexpr const char* kDecompress = "decompress it first";
constexpr const char* kExport = "write its tokens to a file of nothing else";
constexpr std::array kForeignKinds = {
    ForeignKind{"\x93NUMPY"sv, "NumPy .npy", "array.tofile(FILE) writes the numbers alone"},
    ForeignKind{"\x1f\x8b\x08"sv, "gzip", kDecompress},
    ForeignKind{"\x28\xb5\x2f\xfd"sv, "zstd", kDecompress},
    ForeignKind{"\xfd\x37zXZ\0"sv, "xz", kDecompress},
    ForeignKind{"PK\x03\x04"sv, "zip (or .npz, or PyTorch)", kExport},
    ForeignKind{"\x89HDF\r\n\x1a\n"sv, "HDF5", kExport},
    ForeignKind{"PAR1\x15"sv, "Parquet", kExport},
    ForeignKind{"ARROW1\0\0"sv, "Arrow", kExport},
};

// A JSON header with its length in front.
bool is_safetensors(std::string_view bytes) {
  if (bytes.size() < 10 || bytes.substr(8, 2) != "{\"") return false;
  const auto length = static_cast<uint32_t>(int32_at(bytes, 0));
  return int32_at(bytes, 1) == 0 && length >= 2 && length <= bytes.size() - 8;
}

// "BZh", the size of its blocks as a digit, then the mark of a block.
bool is_bzip2(std::string_view bytes) { return bytes.starts_with("BZh") && bytes.substr(3, 7).ends_with("1AY&SY"); }

void refuse_foreign(const MappedFile& file) {
  const std::string_view bytes = file.bytes();
  for (const ForeignKind& kind : kForeignKinds) {
    check(!bytes.starts_with(kind.start), "{} is a {} file, expected raw text or tokens: {}", file.path().string(),
          kind.name, kind.help);
  }
  check(!is_bzip2(bytes), "{} is a bzip2 file, expected raw text or tokens: {}", file.path().string(), kDecompress);
  check(!is_safetensors(bytes), "{} is a safetensors file, expected raw text or tokens: {}", file.path().string(),
        kExport);
}

// Bytes of the UTF-8 character that begins here, without control characters; 0: none does.
size_t text_character(std::string_view bytes) {
  const auto at = [&](size_t i) { return i < bytes.size() ? static_cast<uint8_t>(bytes[i]) : uint8_t{0x80}; };
  const uint8_t first = at(0);
  if (first < 0x80) return first >= 0x20 || first == '\n' || first == '\r' || first == '\t' ? 1 : 0;
  const size_t length = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  for (size_t i = 1; i < length; ++i) {
    if (at(i) < 0x80 || at(i) >= 0xC0) return 0;
  }
  return length;
}

bool is_utf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const size_t length = text_character(bytes);
    if (length == 0) return false;
    bytes.remove_prefix(std::min(length, bytes.size()));
  }
  return true;
}

// Whether a file begins as text does: UTF-8, or nearly all of it letters as in other encodings. That token ids look
// like this for so long is next to impossible.
bool is_text(std::string_view bytes) {
  constexpr size_t kEnough = 4096, kTooFew = 16;
  if (bytes.size() < kTooFew) return false;
  bytes = bytes.substr(0, kEnough);
  const auto plain = std::count_if(bytes.begin(), bytes.end(), [](char byte) {
    return static_cast<uint8_t>(byte) < 0x80 && text_character({&byte, 1}) == 1;
  });
  return 10 * static_cast<size_t>(plain) >= 9 * bytes.size() || is_utf8(bytes);
}

// The other headers of llm.c, which begin with a date.
const char* other_llmc_file(int32_t magic) {
  switch (magic) {
    case 20240522:
      return "an evaluation of multiple choices";
    case 20240326:
      return "a model";
    case 20240327:
      return "a model's activations and gradients";
    case 20240328:
      return "a tokenizer";
    default:
      return nullptr;
  }
}

const LlmcHeader* header_of(int32_t magic) {
  for (const LlmcHeader& header : kLlmcHeaders) {
    if (header.magic == magic) return &header;
  }
  return nullptr;
}

// The format when the file has a header of llm.c.
std::optional<FileFormat> llmc_format(const MappedFile& file) {
  const std::string_view bytes = file.bytes();
  const std::string path = file.path().string();
  const int32_t magic = int32_at(bytes, 0);
  if (const char* other = other_llmc_file(magic)) {
    fail(
        "{} has a header of llm.c with magic {}: {}; expected magic {} (uint16 tokens) or {} (uint32), or integers "
        "without a header",
        path, magic, other, kLlmcHeaders[0].magic, kLlmcHeaders[1].magic);
  }
  const LlmcHeader* const header = header_of(magic);
  if (header == nullptr) return std::nullopt;
  const int32_t version = int32_at(bytes, 1);
  const char* const type = header->width == 2 ? "uint16" : "uint32";
  check(version == header->version, "{} has a header of llm.c of version {}, expected version {} ({} tokens)", path,
        version, header->version, type);
  const auto count = static_cast<uint32_t>(int32_at(bytes, 2));
  const int64_t expected = kLlmcHeaderBytes + header->width * int64_t{count};
  check(static_cast<int64_t>(bytes.size()) == expected,
        "{} has {} bytes, expected {}: its header of llm.c says {} tokens ({})", path, bytes.size(), expected, count,
        type);
  check(count > 0, "{} has a header of llm.c that says 0 tokens", path);
  return FileFormat{kLlmcHeaderBytes, header->width};
}

// Whether integers of this width look like the lower halves of wider ones: every second one is an upper half of an id,
// the others are not.
bool are_halves(std::string_view bytes, int64_t width, int64_t vocab_size) {
  constexpr int64_t kFewest = 16;
  const int64_t pairs = std::min(static_cast<int64_t>(bytes.size()) / width, kGuessedFrom) / 2;
  if (pairs < kFewest) return false;
  const int64_t largest_upper = width == 2 ? (vocab_size - 1) >> 16 : 0;
  bool has_lower = false;
  for (int64_t i = 0; i < pairs; ++i) {
    const auto id = [&](int64_t place) {
      return static_cast<uint32_t>(read_token(bytes.data() + place * width, width));
    };
    if (id(2 * i + 1) > largest_upper) return false;
    has_lower |= id(2 * i) > largest_upper;
  }
  return has_lower;
}

void check_width(const MappedFile& file, int64_t width, int64_t vocab_size) {
  if (!are_halves(file.bytes(), width, vocab_size)) return;
  const bool are_64_bits = width == 4 || are_halves(file.bytes(), 4, vocab_size);
  const char* upper = width == 2 && vocab_size > (1 << 16) ? "the upper half of an id" : "0";
  check(!are_64_bits,
        "{}: every second integer of 32 bits is 0, as in a file of int64; expected uint16 or uint32, in NumPy "
        "array.astype('uint32').tofile(FILE)",
        file.path().string());
  fail("{}: every second uint16 is {}, as in a file of uint32; set data.token_width: uint32", file.path().string(),
       upper);
}

// Says how the text can be read; where the data have a tokenizer, its tokens must be those of this one.
[[noreturn]] void refuse_text(const std::string& path, const DataConfig& data) {
  if (!data.tokenizer) fail("{} is plain text, expected token ids; data.type: text reads it", path);
  fail("{} is plain text, expected token ids; `{} --out {}` writes them", path, tokenize_command(path, data),
       shell_argument(path + ".bin"));
}

}  // namespace

int32_t read_token(const char* bytes, int64_t width) {
  uint32_t value = 0;
  for (int64_t i = 0; i < width; ++i) value |= uint32_t{static_cast<uint8_t>(bytes[i])} << 8 * i;
  return static_cast<int32_t>(value);
}

void write_token(char* bytes, int64_t width, int32_t token) {
  for (int64_t i = 0; i < width; ++i) bytes[i] = static_cast<char>(static_cast<uint32_t>(token) >> 8 * i & 0xffu);
}

int64_t token_bytes(int64_t vocab_size) { return vocab_size <= int64_t{1} << 16 ? 2 : 4; }

std::string tokenize_command(const std::string& input, const DataConfig& data) {
  const bool is_text = *data.tokenizer == kByteTokenizer && data.separator < ByteTokenizer().size();
  const bool needs_separators = data.type == DataType::tokens && data.pack && !is_text;
  return fmt::format("heddle tokenize {} --tokenizer {}{}", shell_argument(input), shell_argument(*data.tokenizer),
                     needs_separators ? fmt::format(" --documents KIND --separator {}", data.separator) : "");
}

FileFormat format_of(const MappedFile& file, const DataConfig& data, int64_t vocab_size) {
  const std::string path = file.path().string();
  check(!file.bytes().empty(), "{} is empty", path);
  refuse_foreign(file);
  if (data.type == DataType::text) {
    check(header_of(int32_at(file.bytes(), 0)) == nullptr,
          "{} holds tokens after a header of llm.c, expected text; data.type: tokens reads it", path);
    return {};
  }
  if (const auto format = llmc_format(file)) return *format;
  if (is_text(file.bytes())) refuse_text(path, data);
  const int64_t width = data.token_width == TokenWidth::uint16 ? 2 : 4;
  check(file.bytes().size() % static_cast<size_t>(width) == 0,
        "{} has {} bytes, no whole number of tokens of {} bytes (data.token_width: {})", path, file.bytes().size(),
        width, width == 2 ? "uint16" : "uint32");
  check_width(file, width, vocab_size);
  return {0, width};
}

bool fits_uint16(std::string_view bytes, int64_t vocab_size) {
  const int64_t count = std::min(static_cast<int64_t>(bytes.size()) / 2, kGuessedFrom);
  for (int64_t i = 0; i < count; ++i) {
    if (read_token(bytes.data() + 2 * i, 2) >= vocab_size) return false;
  }
  return true;
}

}  // namespace heddle
