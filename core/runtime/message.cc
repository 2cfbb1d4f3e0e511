#include "core/runtime/message.h"

#include <fmt/format.h>

namespace heddle {

std::string with_visible_controls(std::string_view text) {
  std::string visible;
  for (const char character : text) {
    const auto byte = static_cast<unsigned char>(character);
    const bool is_shown = (byte >= 0x20 && byte != 0x7f) || character == '\n' || character == '\t';
    visible += is_shown ? std::string(1, character) : fmt::format("\\x{:02x}", byte);
  }
  return visible;
}

void print_message(std::FILE* out, std::string_view text) noexcept {
  const bool written = std::fwrite(text.data(), 1, text.size(), out) == text.size();
  if (!written || std::fflush(out) != 0) std::clearerr(out);  // the next message is tried again
}

}  // namespace heddle
