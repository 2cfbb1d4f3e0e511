// How the tokens lie in a file: bytes of text, raw integers, or integers after the header of llm.c.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/io/mapped_file.h"
#include "trainers/data/data_config.h"

namespace heddle {

struct FileFormat {
  int64_t header_bytes = 0;
  int64_t width = 1;  // bytes of a token: 1, 2 or 4, little-endian
};

// The token of this width at `bytes`. A uint32 above the range of int32 comes out negative.
int32_t read_token(const char* bytes, int64_t width);

// Writes a token that is not negative as an integer of this width.
void write_token(char* bytes, int64_t width, int32_t token);
// The width of the tokens of a vocabulary in a file: 2 up to 65536 ids, else 4.
int64_t token_bytes(int64_t vocab_size);

// The headers of llm.c: 256 int32, of which the first three are a magic number, a version and the number of tokens
// (uint32 here, beyond what llm.c writes), the others 0.
struct LlmcHeader {
  int32_t magic, version;
  int64_t width;  // of the tokens
};
inline constexpr int64_t kLlmcHeaderBytes = 256 * 4;
inline constexpr LlmcHeader kLlmcHeaders[] = {{20240520, 1, 2}, {20240801, 7, 4}};

// text: bytes as they are. tokens: one of kLlmcHeaders, which says how wide its tokens are, or none, then integers of
// data.token_width. Throws Error that names the file, says what was found and what helps: for an empty file, files of
// another kind (.npy, gzip, safetensors, other headers of llm.c, ... and text where tokens are expected), a size that
// does not fit, and integers that look as if they had another width than data.token_width.
FileFormat format_of(const MappedFile& file, const DataConfig& data, int64_t vocab_size);

// The command, but for its `--out FILE`, that writes what such data read by their tokenizer. Separators are asked for
// where they are no text, which would have them already; the KIND of documents is left to the user.
std::string tokenize_command(const std::string& input, const DataConfig& data);

// Whether the integers of `bytes`, which were read as 32 bits wide, are all ids of the vocabulary when they are read as
// 16 bits wide.
bool fits_uint16(std::string_view bytes, int64_t vocab_size);

}  // namespace heddle
