// Text as UTF-8, for formats that hold nothing else. Names of files may be any bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace heddle {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD
inline constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";  // U+FEFF, with which spreadsheets begin a file

// Bytes of the character that this byte begins; 0 where it begins none.
size_t length_of_character(uint8_t first);

// Whether `byte` may follow `before`, the bytes of a character so far: no overlong forms, no surrogates, nothing above
// U+10FFFF.
bool continues_character(std::string_view before, uint8_t byte);

// Bytes of the character that `text` begins with; 0 where it begins with none. Overlong forms, surrogates and what is
// above U+10FFFF are no characters.
size_t character_length(std::string_view text);

// The text with U+FFFD in place of each byte that belongs to no character.
std::string valid_utf8(std::string_view text);

// The last `count` characters of valid UTF-8, or all of it.
std::string_view last_characters(std::string_view text, size_t count);

}  // namespace heddle
