// TCP sockets: descriptors that close themselves, and the calls that the rendezvous needs. No call waits longer than it
// says, and no descriptor is handed to a program that is started.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace heddle {

using Clock = std::chrono::steady_clock;

// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() { close(); }
  Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(number_, other.number_);
    return *this;
  }

  int get() const { return number_; }
  explicit operator bool() const { return number_ >= 0; }
  void close();

 private:
  int number_ = -1;
};

// A socket that waits for connections to `host`, which must be an address or a name of this host, and to no other
// address. Port 0 takes any that is free. Throws Error that says why there is none.
Descriptor listen_on(const std::string& host, uint16_t port);
uint16_t port_of(const Descriptor& socket);
// The next connection that waits at `listening`; none when there is none. It does not block.
Descriptor accept_from(const Descriptor& listening);

// A connection to `host`, which then does not block. None after `limit` or when it is refused: `why` then says so.
Descriptor connect_to(const std::string& host, uint16_t port, Clock::duration limit, std::string& why);

// Whether `host` is an address of the loopback interface, or a name of one, and not written as such.
bool is_hidden_loopback(const std::string& host);

// Sends all bytes before `deadline`; false when that is not possible.
bool send_all(const Descriptor& socket, std::string_view bytes, Clock::time_point deadline);

// Milliseconds from now to `deadline` for poll(), at least 0 and at most a second, after which callers look around.
int poll_milliseconds(Clock::time_point deadline);

// This host's name.
std::string host_name();

}  // namespace heddle
