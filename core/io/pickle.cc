#include "core/io/pickle.h"

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

namespace heddle {
namespace {

// Opcodes, by the names that pickletools gives them.
constexpr char kProtocol = '\x80', kStop = '.';
constexpr char kLong1 = '\x8a', kBinInt = 'J', kBinInt1 = 'K', kBinInt2 = 'M';
constexpr char kShortBinUnicode = '\x8c', kBinUnicode = 'X';
constexpr char kMemoize = '\x94', kBinGet = 'h', kLongBinGet = 'j';

}  // namespace

Pickle::Pickle() : bytes_({kProtocol, 4}) {}

void Pickle::number(uint64_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) bytes_ += static_cast<char>(value >> (8 * i) & 0xff);
}

void Pickle::integer(int64_t value) {
  const auto unsigned_value = static_cast<uint64_t>(value);
  if (value >= 0 && value <= 0xff) {
    bytes_ += kBinInt1;
    number(unsigned_value, 1);
  } else if (value >= 0 && value <= 0xffff) {
    bytes_ += kBinInt2;
    number(unsigned_value, 2);
  } else if (value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max()) {
    bytes_ += kBinInt;
    number(unsigned_value, 4);
  } else {
    bytes_ += kLong1;
    number(8, 1);
    number(unsigned_value, 8);
  }
}

void Pickle::text(std::string_view value) {
  const auto known = texts_.find(value);
  if (known != texts_.end()) return again(known->second);
  const bool is_short = value.size() <= 0xff;
  bytes_ += is_short ? kShortBinUnicode : kBinUnicode;
  number(value.size(), is_short ? 1 : 4);
  bytes_ += value;
  texts_.emplace(value, remember());
}

uint32_t Pickle::remember() {
  bytes_ += kMemoize;
  return remembered_++;
}

void Pickle::again(uint32_t number_of_value) {
  const bool is_short = number_of_value <= 0xff;
  bytes_ += is_short ? kBinGet : kLongBinGet;
  number(number_of_value, is_short ? 1 : 4);
}

std::string Pickle::finish() {
  bytes_ += kStop;
  return std::move(bytes_);
}

}  // namespace heddle
