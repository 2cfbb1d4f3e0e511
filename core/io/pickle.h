// Writes a pickle of protocol 4 with dictionaries, lists, integers and texts, in those opcodes that small readers know,
// too. Source: https://docs.python.org/3/library/pickletools.html.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace heddle {

class Pickle {
 public:
  Pickle();

  void integer(int64_t value);
  // A text that was written before is referred to.
  void text(std::string_view value);

  // What is written between begin and end: keys and values in turn.
  void begin_dictionary() { bytes_ += "}("; }
  void end_dictionary() { bytes_ += 'u'; }
  // After each item of a list comes end_item().
  void begin_list() { bytes_ += ']'; }
  void end_item() { bytes_ += 'a'; }

  // Remembers what was written last, a whole value, and returns its number.
  uint32_t remember();
  // Writes a remembered value once more.
  void again(uint32_t number);

  // The whole pickle; nothing may be written afterwards.
  std::string finish();

 private:
  // The value in `bytes` bytes, the lowest first.
  void number(uint64_t value, int bytes);

  std::string bytes_;
  uint32_t remembered_ = 0;
  std::map<std::string, uint32_t, std::less<>> texts_;
};

}  // namespace heddle
