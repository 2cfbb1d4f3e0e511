#include "core/runtime/message.h"

namespace heddle {

void print_message(std::FILE* out, std::string_view text) noexcept {
  const bool written = std::fwrite(text.data(), 1, text.size(), out) == text.size();
  if (!written || std::fflush(out) != 0) std::clearerr(out);  // the next message is tried again
}

}  // namespace heddle
