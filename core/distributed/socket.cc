#include "core/distributed/socket.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <system_error>

#include "core/runtime/error.h"

namespace heddle {
namespace {

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

std::string message_of(int code) { return std::generic_category().message(code); }

// The addresses of a host; none, with the reason in `why`, when its name has none.
Addresses find_addresses(const std::string& host, uint16_t port, std::string& why) {
  addrinfo wanted{};
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &wanted, &found);
  if (code != 0) why = code == EAI_SYSTEM ? message_of(errno) : ::gai_strerror(code);
  return {code == 0 ? found : nullptr, &::freeaddrinfo};
}

Descriptor open_socket(const addrinfo& address) {
  return Descriptor(::socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

void send_at_once(const Descriptor& socket) {
  const int on = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

bool is_loopback(const sockaddr& address) {
  if (address.sa_family == AF_INET) {
    sockaddr_in v4;
    std::memcpy(&v4, &address, sizeof(v4));
    return ntohl(v4.sin_addr.s_addr) >> 24 == 127;
  }
  if (address.sa_family != AF_INET6) return false;
  sockaddr_in6 v6;
  std::memcpy(&v6, &address, sizeof(v6));
  return IN6_IS_ADDR_LOOPBACK(&v6.sin6_addr);
}

// Waits for the end of connect(); 0, or the reason why there is no connection.
int finish_connecting(const Descriptor& socket, Clock::time_point deadline) {
  while (Clock::now() < deadline) {
    pollfd waited{socket.get(), POLLOUT, 0};
    if (::poll(&waited, 1, poll_milliseconds(deadline)) <= 0) continue;
    int code = 0;
    socklen_t size = sizeof(code);
    return ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &code, &size) == 0 ? code : errno;
  }
  return ETIMEDOUT;
}

}  // namespace

void Descriptor::close() {
  if (number_ >= 0) ::close(number_);
  number_ = -1;
}

Descriptor listen_on(const std::string& host, uint16_t port) {
  std::string why;
  const Addresses addresses = find_addresses(host, port, why);
  for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
    Descriptor socket = open_socket(*address);
    const int on = 1;
    if (socket) ::setsockopt(socket.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (socket && ::bind(socket.get(), address->ai_addr, address->ai_addrlen) == 0 &&
        ::listen(socket.get(), SOMAXCONN) == 0) {
      return socket;
    }
    why = message_of(errno);
    if (errno == EADDRNOTAVAIL) why = "it is no address of this host, " + host_name();
    if (errno == EADDRINUSE) why = "another program listens there";
  }
  fail("process 0 cannot listen on {}:{}: {}", host, port, why);
}

uint16_t port_of(const Descriptor& socket) {
  sockaddr_storage storage{};
  socklen_t size = sizeof(storage);
  check(::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&storage), &size) == 0, "getsockname: {}",
        message_of(errno));
  sockaddr_in6 v6;
  sockaddr_in v4;
  std::memcpy(&v6, &storage, sizeof(v6));
  std::memcpy(&v4, &storage, sizeof(v4));
  return ntohs(storage.ss_family == AF_INET6 ? v6.sin6_port : v4.sin_port);
}

Descriptor accept_from(const Descriptor& listening) {
  Descriptor socket(::accept4(listening.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  if (socket) send_at_once(socket);
  return socket;
}

Descriptor connect_to(const std::string& host, uint16_t port, Clock::duration limit, std::string& why) {
  const auto deadline = Clock::now() + limit;
  const Addresses addresses = find_addresses(host, port, why);
  for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
    Descriptor socket = open_socket(*address);
    int code = errno;
    if (socket) code = ::connect(socket.get(), address->ai_addr, address->ai_addrlen) == 0 ? 0 : errno;
    if (code == EINPROGRESS) code = finish_connecting(socket, deadline);
    if (code == 0) {
      send_at_once(socket);
      return socket;
    }
    why = message_of(code);
  }
  return {};
}

bool is_hidden_loopback(const std::string& host) {
  if (host == "localhost" || host == "::1" || host.starts_with("127.")) return false;
  std::string why;
  const Addresses addresses = find_addresses(host, 0, why);
  return addresses != nullptr && is_loopback(*addresses->ai_addr);
}

bool send_all(const Descriptor& socket, std::string_view bytes, Clock::time_point deadline) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent >= 0) {
      bytes.remove_prefix(static_cast<size_t>(sent));
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN || Clock::now() >= deadline) return false;
    pollfd waited{socket.get(), POLLOUT, 0};
    ::poll(&waited, 1, poll_milliseconds(deadline));
  }
  return true;
}

int poll_milliseconds(Clock::time_point deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1000));
}

std::string host_name() {
  char name[256] = {};
  if (::gethostname(name, sizeof(name) - 1) != 0) return "unknown host";
  return name;
}

}  // namespace heddle
