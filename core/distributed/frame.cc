#include "core/distributed/frame.h"

#include <sys/socket.h>
#include <sys/types.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <string_view>

namespace heddle {
namespace {

constexpr uint32_t kMagic = 0x4c444548;  // "HEDL"
constexpr size_t kHeaderBytes = 12;

struct Header {
  uint32_t magic, kind, bytes;
};
static_assert(sizeof(Header) == kHeaderBytes);

Header header_of(std::string_view bytes) {
  Header header;
  std::memcpy(&header, bytes.data(), kHeaderBytes);
  return header;
}

}  // namespace

std::string encode(FrameKind kind, std::string_view payload) {
  const Header header{kMagic, static_cast<uint32_t>(kind), static_cast<uint32_t>(payload.size())};
  std::string bytes(kHeaderBytes, '\0');
  std::memcpy(bytes.data(), &header, kHeaderBytes);
  return bytes.append(payload);
}

// Bytes that cannot begin a frame are found out as soon as they are there, before room is made for what they announce.
bool FrameReader::looks_right() const {
  const size_t known = std::min(bytes_.size(), sizeof(kMagic));
  if (std::memcmp(bytes_.data(), &kMagic, known) != 0) return false;
  if (bytes_.size() < kHeaderBytes) return true;
  const Header header = header_of(bytes_);
  return header.kind >= static_cast<uint32_t>(FrameKind::hello) &&
         header.kind <= static_cast<uint32_t>(FrameKind::failure) && header.bytes <= largest_payload_;
}

FrameReader::State FrameReader::read(const Descriptor& socket) {
  char buffer[16384];
  // One frame more than the largest is not read at once, so that a sender that never ends takes no memory.
  while (!malformed_ && bytes_.size() <= kHeaderBytes + largest_payload_) {
    const ssize_t count = ::recv(socket.get(), buffer, sizeof(buffer), 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) return State::open;
    if (count <= 0) return State::closed;
    bytes_.append(buffer, static_cast<size_t>(count));
    malformed_ = !looks_right();
  }
  return malformed_ ? State::malformed : State::open;
}

std::optional<Frame> FrameReader::take() {
  if (malformed_ || bytes_.size() < kHeaderBytes) return {};
  const Header header = header_of(bytes_);
  if (bytes_.size() < kHeaderBytes + header.bytes) return {};
  Frame frame{static_cast<FrameKind>(header.kind), bytes_.substr(kHeaderBytes, header.bytes)};
  bytes_.erase(0, kHeaderBytes + header.bytes);
  malformed_ = !looks_right();
  return frame;
}

PayloadWriter& PayloadWriter::add(uint32_t number) {
  char bytes[sizeof(number)];
  std::memcpy(bytes, &number, sizeof(number));
  bytes_.append(bytes, sizeof(bytes));
  return *this;
}

PayloadWriter& PayloadWriter::add(std::string_view text) {
  add(static_cast<uint32_t>(text.size()));
  bytes_.append(text);
  return *this;
}

std::optional<uint32_t> PayloadReader::number() {
  uint32_t number = 0;
  if (bytes_.size() < sizeof(number)) return {};
  std::memcpy(&number, bytes_.data(), sizeof(number));
  bytes_.remove_prefix(sizeof(number));
  return number;
}

std::optional<std::string> PayloadReader::text() {
  const std::optional<uint32_t> size = number();
  if (!size || *size > bytes_.size()) return {};
  std::string text(bytes_.substr(0, *size));
  bytes_.remove_prefix(*size);
  return text;
}

}  // namespace heddle
