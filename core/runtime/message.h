// What a program tells a person while it works.
#pragma once

#include <cstdio>
#include <string>
#include <string_view>

namespace heddle {

// The text with "\x0d" in place of a control character that no terminal shows, and "\x00" of the NUL byte that would
// end what(); line breaks and tabs stay.
std::string with_visible_controls(std::string_view text);

// Writes `text` to `out` and flushes it. A message that cannot be written (a full disk, a closed pipe) is lost, since
// it must never end the work that it tells of. A program that may write into a pipe ignores SIGPIPE.
void print_message(std::FILE* out, std::string_view text) noexcept;

}  // namespace heddle
