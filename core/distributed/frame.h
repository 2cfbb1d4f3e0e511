// Messages on a stream of bytes: a kind and a payload of bounded size.
//
//   magic (uint32) | kind (uint32) | bytes of the payload (uint32) | payload        in the byte order of the host
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/distributed/socket.h"

namespace heddle {

enum class FrameKind : uint32_t {
  hello = 1,
  accepted,
  refused,
  complete,
  heartbeat,
  gather,
  gathered,
  goodbye,
  failure
};

struct Frame {
  FrameKind kind = FrameKind::heartbeat;
  std::string payload;
};

std::string encode(FrameKind kind, std::string_view payload = {});

// Takes frames out of the bytes of one connection.
class FrameReader {
 public:
  explicit FrameReader(size_t largest_payload) : largest_payload_(largest_payload) {}
  void set_largest_payload(size_t bytes) { largest_payload_ = bytes; }

  enum class State { open, closed, malformed };
  // Reads what is there, without waiting. It says how the connection is afterwards; frames that arrived whole before
  // its end can still be taken.
  State read(const Descriptor& socket);
  // The next frame, once it is whole.
  std::optional<Frame> take();
  bool is_malformed() const { return malformed_; }

 private:
  bool looks_right() const;

  size_t largest_payload_;
  std::string bytes_;
  bool malformed_ = false;
};

// Payloads: numbers and texts one after the other.
class PayloadWriter {
 public:
  PayloadWriter& add(uint32_t number);
  PayloadWriter& add(std::string_view text);
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

// Reads what PayloadWriter wrote; each is nothing when it is not there or is longer than what is left.
class PayloadReader {
 public:
  explicit PayloadReader(std::string_view bytes) : bytes_(bytes) {}
  std::optional<uint32_t> number();
  std::optional<std::string> text();
  bool at_end() const { return bytes_.empty(); }

 private:
  std::string_view bytes_;
};

}  // namespace heddle
