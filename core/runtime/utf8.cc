#include "core/runtime/utf8.h"

#include <algorithm>
#include <cstdint>

namespace heddle {
namespace {

bool is_continuation(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

}  // namespace

size_t length_of_character(uint8_t first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first < 0xE0) return 2;
  if (first >= 0xE0 && first < 0xF0) return 3;
  if (first >= 0xF0 && first < 0xF5) return 4;
  return 0;
}

bool continues_character(std::string_view before, uint8_t byte) {
  if (before.size() > 1) return byte >= 0x80 && byte < 0xC0;
  switch (static_cast<uint8_t>(before[0])) {
    case 0xE0:
      return byte >= 0xA0 && byte < 0xC0;
    case 0xED:
      return byte >= 0x80 && byte < 0xA0;
    case 0xF0:
      return byte >= 0x90 && byte < 0xC0;
    case 0xF4:
      return byte >= 0x80 && byte < 0x90;
    default:
      return byte >= 0x80 && byte < 0xC0;
  }
}

size_t character_length(std::string_view text) {
  if (text.empty()) return 0;
  const size_t length = length_of_character(static_cast<uint8_t>(text[0]));
  if (text.size() < length) return 0;
  for (size_t i = 1; i < length; ++i) {
    if (!continues_character(text.substr(0, i), static_cast<uint8_t>(text[i]))) return 0;
  }
  return length;
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
