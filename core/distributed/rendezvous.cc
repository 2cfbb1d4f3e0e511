#include "core/distributed/rendezvous.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace heddle {
namespace {

constexpr uint32_t kVersion = 1;
constexpr size_t kLargestHello = 1024;
constexpr size_t kMostStrangers = 64;  // connections at a time that have not said hello
constexpr auto kAnswer = std::chrono::seconds(10);
constexpr auto kLongWait = std::chrono::seconds(10);

double seconds_of(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// Takes the same time wherever the first difference is.
bool equal_in_constant_time(std::string_view found, std::string_view expected) {
  unsigned difference = found.size() == expected.size() ? 0 : 1;
  for (size_t i = 0; i < expected.size(); ++i) {
    const unsigned char c = i < found.size() ? static_cast<unsigned char>(found[i]) : 0;
    difference |= c ^ static_cast<unsigned char>(expected[i]);
  }
  return difference == 0;
}

struct Hello {
  uint32_t version, world_size, rank, pid;
  std::string token, host;
};

std::string encode(const Launch& launch) {
  PayloadWriter payload;
  payload.add(kVersion).add(static_cast<uint32_t>(launch.world_size)).add(static_cast<uint32_t>(launch.rank));
  payload.add(static_cast<uint32_t>(::getpid())).add(launch.token).add(host_name());
  return encode(FrameKind::hello, payload.bytes());
}

std::optional<Hello> decode(const Frame& frame) {
  if (frame.kind != FrameKind::hello) return {};
  PayloadReader payload(frame.payload);
  const auto version = payload.number(), world_size = payload.number(), rank = payload.number(), pid = payload.number();
  auto token = payload.text(), host = payload.text();
  if (!version || !world_size || !rank || !pid || !token || !host || !payload.at_end()) return {};
  return Hello{*version, *world_size, *rank, *pid, std::move(*token), std::move(*host)};
}

// A process of a large run has a connection to each other one, which may be more than it may open by default.
void allow_descriptors(int world_size) {
  rlimit limit{};
  const rlim_t wanted = static_cast<rlim_t>(world_size) + 1024;
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min(limit.rlim_max, wanted);
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

// Process 0.
class Host {
 public:
  Host(const Launch& launch, const RendezvousOptions& options)
      : launch_(launch), options_(options), begin_(Clock::now()), deadline_(begin_ + options.limit) {
    allow_descriptors(launch.world_size);
    if (launch.local_size < launch.world_size && is_hidden_loopback(launch.master_addr)) {
      throw UsageError(fmt::format(
          "MASTER_ADDR: '{}' is a loopback address on this host, {}, which other hosts do not reach: give its "
          "address in the network",
          launch.master_addr, host_name()));
    }
  }

  Meeting run() {
    listen();
    while (static_cast<int>(meeting_.peers.size()) < launch_.world_size - 1) {
      if (options_.stop_requested()) throw RendezvousStopped();
      if (Clock::now() >= deadline_) give_up();
      tell_what_is_missing();
      wait();
      take_connections();
      hear_strangers();
      hear_members();
    }
    listening_.close();
    strangers_.clear();
    for (auto& [rank, peer] : meeting_.peers)
      send_all(peer.socket, encode(FrameKind::complete), Clock::now() + kAnswer);
    meeting_.world_size = launch_.world_size;
    return std::move(meeting_);
  }

 private:
  struct Stranger {
    Peer peer;
    Clock::time_point deadline;
  };

  // Another run, or the one before this, may still be about to end.
  void listen() {
    const auto deadline = std::min(deadline_, begin_ + 2 * kLongWait);
    while (true) {
      try {
        listening_ = listen_on(launch_.master_addr, launch_.master_port);
        return;
      } catch (const Error&) {
        if (Clock::now() >= deadline) throw;
      }
      if (options_.stop_requested()) throw RendezvousStopped();
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
    }
  }

  void wait() {
    std::vector<pollfd> waited = {{listening_.get(), POLLIN, 0}};
    Clock::time_point next = std::min(deadline_, Clock::now() + std::chrono::milliseconds(200));
    for (const Stranger& stranger : strangers_) {
      waited.push_back({stranger.peer.socket.get(), POLLIN, 0});
      next = std::min(next, stranger.deadline);
    }
    for (const auto& [rank, peer] : meeting_.peers) waited.push_back({peer.socket.get(), POLLIN, 0});
    ::poll(waited.data(), waited.size(), poll_milliseconds(next));
  }

  // Few at a time, so that each is heard before others push it out.
  void take_connections() {
    for (size_t i = 0; i < kMostStrangers / 2; ++i) {
      Descriptor socket = accept_from(listening_);
      if (!socket) return;
      if (strangers_.size() == kMostStrangers) strangers_.pop_front();  // the one that has had most of its time
      strangers_.push_back({{std::move(socket), FrameReader(kLargestHello), "", 0}, Clock::now() + options_.greeting});
    }
  }

  void hear_strangers() {
    for (auto stranger = strangers_.begin(); stranger != strangers_.end();) {
      const auto state = stranger->peer.reader.read(stranger->peer.socket);
      const std::optional<Frame> frame = stranger->peer.reader.take();
      if (frame) welcome(std::move(stranger->peer), decode(*frame));
      const bool is_done = frame || state != FrameReader::State::open || Clock::now() >= stranger->deadline;
      stranger = is_done ? strangers_.erase(stranger) : std::next(stranger);
    }
  }

  void welcome(Peer peer, const std::optional<Hello>& hello) {
    if (!hello || !equal_in_constant_time(hello->token, launch_.token)) {
      ++turned_away_;
      return;
    }
    const std::string reason = reason_against(*hello);
    const auto deadline = Clock::now() + std::chrono::seconds(1);
    if (!reason.empty()) {
      send_all(peer.socket, encode(FrameKind::refused, reason), deadline);
    } else if (send_all(peer.socket, encode(FrameKind::accepted), deadline)) {
      peer.host = hello->host;
      peer.pid = static_cast<int>(hello->pid);
      meeting_.peers.emplace(static_cast<int>(hello->rank), std::move(peer));
    }
  }

  // Why a process of this run cannot take part; empty when it can.
  std::string reason_against(const Hello& hello) const {
    if (hello.version != kVersion) return "process 0 runs another version of heddle";
    if (hello.world_size != static_cast<uint32_t>(launch_.world_size)) {
      return fmt::format("it was told of {} processes, and process 0 of {}", hello.world_size, launch_.world_size);
    }
    if (hello.rank >= hello.world_size) return fmt::format("there is no rank {} of {}", hello.rank, hello.world_size);
    if (hello.rank == 0) return fmt::format("{} (pid {}) is rank 0 already", host_name(), ::getpid());
    const auto other = meeting_.peers.find(static_cast<int>(hello.rank));
    if (other == meeting_.peers.end()) return "";
    return fmt::format("{} (pid {}) is rank {} already", other->second.host, other->second.pid, hello.rank);
  }

  // A process that has come and says something, or ends, before all are there is none of ours any more: it may come
  // again.
  void hear_members() {
    for (auto member = meeting_.peers.begin(); member != meeting_.peers.end();) {
      Peer& peer = member->second;
      const bool is_gone = peer.reader.read(peer.socket) != FrameReader::State::open || peer.reader.take();
      member = is_gone ? meeting_.peers.erase(member) : std::next(member);
    }
  }

  std::string missing() const {
    std::vector<int> ranks;
    for (int rank = 1; rank < launch_.world_size; ++rank) {
      if (!meeting_.peers.contains(rank)) ranks.push_back(rank);
    }
    return fmt::format("rank{} {} of {}", ranks.size() == 1 ? "" : "s", list_ranks(ranks), launch_.world_size);
  }

  void tell_what_is_missing() {
    if (has_told_ || Clock::now() < begin_ + kLongWait) return;
    has_told_ = true;
    options_.note(fmt::format("waiting at {}:{} for {}, at most {:g} s", launch_.master_addr, launch_.master_port,
                              missing(), seconds_of(options_.limit)));
  }

  [[noreturn]] void give_up() {
    std::string message = fmt::format("{} did not come to {}:{} within {:g} s", missing(), launch_.master_addr,
                                      launch_.master_port, seconds_of(options_.limit));
    if (turned_away_ > 0) {
      message += fmt::format(
          "; {} connections without the token of this run were dropped (HEDDLE_TOKEN must be the same "
          "on all hosts)",
          turned_away_);
    }
    const auto deadline = Clock::now() + std::chrono::seconds(1);
    for (auto& [rank, peer] : meeting_.peers) send_all(peer.socket, encode(FrameKind::refused, message), deadline);
    fail("{}", message);
  }

  const Launch& launch_;
  const RendezvousOptions& options_;
  const Clock::time_point begin_, deadline_;
  Descriptor listening_;
  std::list<Stranger> strangers_;
  Meeting meeting_;
  int turned_away_ = 0;
  bool has_told_ = false;
};

// Any other process.
class Guest {
 public:
  Guest(const Launch& launch, const RendezvousOptions& options)
      : launch_(launch), options_(options), begin_(Clock::now()), deadline_(begin_ + options.limit) {}

  Meeting run() {
    auto pause = std::chrono::milliseconds(20);
    while (!try_once()) {
      if (Clock::now() >= deadline_) {
        fail("rank {} on {} did not reach rank 0 at {}:{} within {:g} s: {}", launch_.rank, host_name(),
             launch_.master_addr, launch_.master_port, seconds_of(options_.limit), why_);
      }
      tell_what_is_waited_for();
      rest(pause);
      pause = std::min(2 * pause, std::chrono::milliseconds(1000));
    }
    Meeting meeting{launch_.rank, launch_.world_size, {}};
    meeting.peers.emplace(0, std::move(peer_));
    return meeting;
  }

 private:
  void check_stop() const {
    if (options_.stop_requested()) throw RendezvousStopped();
  }

  void rest(std::chrono::milliseconds pause) const {
    check_stop();
    std::this_thread::sleep_for(pause);
  }

  // Connects, says hello and waits until all are there. False when it may be tried again: why_ says what happened.
  bool try_once() {
    peer_ = {connect_to(launch_.master_addr, launch_.master_port, std::chrono::seconds(5), why_),
             FrameReader(kLargestHello), launch_.master_addr, 0};
    if (!peer_.socket) return false;
    const auto answer = Clock::now() + kAnswer;
    if (!send_all(peer_.socket, encode(launch_), answer)) {
      why_ = "the connection was cut";
      return false;
    }
    why_ = "what listens there answered nothing, or closed the connection (is HEDDLE_TOKEN the same on all hosts?)";
    if (hear(answer) != FrameKind::accepted) return false;
    why_ = "process 0 was there and ended";
    return hear(deadline_ + kAnswer) == FrameKind::complete;  // process 0 gives up first
  }

  // The kind of the next frame before `until`; none when there is none. Throws Error with the reason of a refusal.
  std::optional<FrameKind> hear(Clock::time_point until) {
    while (Clock::now() < until) {
      check_stop();
      pollfd waited{peer_.socket.get(), POLLIN, 0};
      ::poll(&waited, 1, std::min(200, poll_milliseconds(until)));
      const auto state = peer_.reader.read(peer_.socket);
      if (const auto frame = peer_.reader.take()) {
        if (frame->kind == FrameKind::refused) {
          fail("rank {} on {} cannot take part in the run at {}:{}: {}", launch_.rank, host_name(), launch_.master_addr,
               launch_.master_port, frame->payload);
        }
        return frame->kind;
      }
      if (state != FrameReader::State::open) return {};
    }
    return {};
  }

  void tell_what_is_waited_for() {
    if (has_told_ || Clock::now() < begin_ + kLongWait) return;
    has_told_ = true;
    options_.note(fmt::format("rank {} tries to reach rank 0 at {}:{}, for at most {:g} s: {}", launch_.rank,
                              launch_.master_addr, launch_.master_port, seconds_of(options_.limit), why_));
  }

  const Launch& launch_;
  const RendezvousOptions& options_;
  const Clock::time_point begin_, deadline_;
  Peer peer_;
  std::string why_;
  bool has_told_ = false;
};

}  // namespace

Meeting meet(const Launch& launch, const RendezvousOptions& options) {
  return launch.rank == 0 ? Host(launch, options).run() : Guest(launch, options).run();
}

std::string list_ranks(const std::vector<int>& ranks) {
  std::string text;
  for (size_t i = 0; i < ranks.size();) {
    size_t last = i;
    while (last + 1 < ranks.size() && ranks[last + 1] == ranks[last] + 1) ++last;
    if (!text.empty()) text += ", ";
    text += std::to_string(ranks[i]);
    if (last > i) text += (last == i + 1 ? ", " : "-") + std::to_string(ranks[last]);
    i = last + 1;
  }
  return text;
}

}  // namespace heddle
