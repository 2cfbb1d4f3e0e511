#include "core/runtime/utf8.h"

#include <algorithm>
#include <cstdint>

namespace heddle {
namespace {

bool is_continuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

// How many bytes a character has that begins with this one; 0: none does.
size_t length_after(uint8_t first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first < 0xE0) return 2;
  if (first >= 0xE0 && first < 0xF0) return 3;
  if (first >= 0xF0 && first < 0xF5) return 4;
  return 0;
}

// Whether the first two bytes of a character of several are those of an overlong form, of a surrogate, or of a number
// above U+10FFFF.
bool is_out_of_range(uint8_t first, uint8_t second) {
  return (first == 0xE0 && second < 0xA0) || (first == 0xED && second >= 0xA0) || (first == 0xF0 && second < 0x90) ||
         (first == 0xF4 && second >= 0x90);
}

}  // namespace

size_t character_length(std::string_view text) {
  if (text.empty()) return 0;
  const auto first = static_cast<uint8_t>(text[0]);
  const size_t length = length_after(first);
  if (length <= 1) return length;
  if (text.size() < length || is_out_of_range(first, static_cast<uint8_t>(text[1]))) return 0;
  const std::string_view rest = text.substr(1, length - 1);
  return std::all_of(rest.begin(), rest.end(), is_continuation) ? length : 0;
}

std::string valid_utf8(std::string_view text) {
  std::string valid;
  while (!text.empty()) {
    const size_t length = character_length(text);
    valid += length > 0 ? text.substr(0, length) : kReplacementCharacter;
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return valid;
}

std::string_view last_characters(std::string_view text, size_t count) {
  size_t begin = text.size();
  for (; begin > 0 && count > 0; --count) {
    do --begin;
    while (begin > 0 && is_continuation(text[begin]));
  }
  return text.substr(begin);
}

}  // namespace heddle
