#include "core/distributed/control_channel.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "core/runtime/block_signals.h"
#include "core/runtime/message.h"

namespace heddle {
namespace {

constexpr size_t kLargestPayload = size_t{64} << 20;
constexpr auto kTick = std::chrono::milliseconds(500);
constexpr auto kFarewell = std::chrono::seconds(2);

void end_process(const std::string& failure) {
  print_message(stderr, fmt::format("error: {}\n", failure));
  ::_exit(1);
}

}  // namespace

// The thread, and what it shares with the thread that uses the channel. mutex_ guards everything below it; connections
// are the thread's alone.
class ControlChannel::Watcher {
 public:
  Watcher(Meeting&& meeting, ControlChannelOptions options)
      : options_(std::move(options)), rank_(meeting.rank), world_size_(meeting.world_size) {
    const auto now = Clock::now();
    for (auto& [rank, peer] : meeting.peers) {
      peer.reader.set_largest_payload(2 * kLargestPayload);  // the parts of all, and their sizes
      connections_.emplace(rank, Connection{std::move(peer), "", now, false});
    }
    if (!options_.expire) options_.expire = end_process;
    heddle::check(static_cast<bool>(wake_), "eventfd: no descriptor is left");
    const BlockSignals blocked;  // the thread inherits it
    thread_ = std::thread([this] { run(); });
  }

  ~Watcher() { end(false); }

  int rank() const { return rank_; }
  int world_size() const { return world_size_; }

  std::vector<std::string> all_gather(std::string_view bytes) {
    std::unique_lock lock(mutex_);
    throw_failure();
    heddle::check(bytes.size() < kLargestPayload / static_cast<size_t>(world_size_),
                  "all_gather of {} bytes: expected at most 64 MiB of all {} processes together", bytes.size(),
                  world_size_);
    own_ = std::string(bytes);
    is_gathering_ = true;
    wake();
    changed_.wait(lock, [&] { return gathered_ || !failure_.empty(); });
    is_gathering_ = false;
    if (!gathered_) throw_failure();
    return *std::exchange(gathered_, std::nullopt);
  }

  void fail(std::string_view reason) noexcept {
    const std::lock_guard lock(mutex_);
    if (!failure_.empty() || !own_failure_.empty()) return;
    own_failure_ = reason.empty() ? "it cannot go on" : reason;
    wake();
  }

  std::string failure() const {
    const std::lock_guard lock(mutex_);
    return failure_;
  }
  void check(Clock::duration time) const {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, time, [&] { return !failure_.empty(); });
    throw_failure();
  }

  // Ends the thread, after a goodbye or, with `is_failing`, after telling that this process ends.
  void end(bool is_failing) {
    if (!thread_.joinable()) return;
    if (is_failing) fail("it ended with an error");
    {
      const std::lock_guard lock(mutex_);
      is_leaving_ = true;
      wake();
    }
    thread_.join();
    {
      const std::lock_guard lock(mutex_);
      is_over_ = true;
    }
    changed_.notify_all();
    if (expiry_.joinable()) expiry_.join();
  }

 private:
  struct Connection {
    Peer peer;
    std::string unsent;
    Clock::time_point heard;
    bool has_left = false;
  };

  bool is_hub() const { return rank_ == 0; }
  std::string name_of(int rank) const {
    const Peer& peer = connections_.at(rank).peer;
    const std::string pid = peer.pid != 0 ? fmt::format(" (pid {})", peer.pid) : "";
    return fmt::format("rank {} on {}{}", rank, peer.host, pid);
  }
  std::string own_name() const { return fmt::format("rank {} on {} (pid {})", rank_, host_name(), ::getpid()); }

  void throw_failure() const {
    if (!failure_.empty()) heddle::fail("{}", failure_);
  }
  void wake() const {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
  }

  // ---- the thread ----
  void run() {
    auto next_heartbeat = Clock::now(), next_watch = next_heartbeat, last = next_heartbeat;
    while (true) {
      const auto now = Clock::now();
      // Who was stopped himself, as a suspended machine is, cannot say how long others were silent.
      if (now - last > options_.silence / 2) hear_all_again(now);
      last = now;
      for (auto& [rank, connection] : connections_) receive(rank, connection);
      note_silence();
      if (now >= next_heartbeat) {
        send_to_all(encode(FrameKind::heartbeat));
        next_heartbeat = now + options_.heartbeat;
      }
      if (now >= next_watch) {
        if (const std::string found = options_.watch(); !found.empty()) fail(found);
        next_watch = now + kTick;
      }
      if (!speak()) break;
      for (auto& [rank, connection] : connections_) send_some(connection);
      wait(std::min(next_heartbeat, next_watch));
    }
    take_leave();
  }

  void wait(Clock::time_point until) {
    std::vector<pollfd> waited = {{wake_.get(), POLLIN, 0}};
    for (const auto& [rank, connection] : connections_) {
      if (!connection.peer.socket) continue;
      const short events = connection.unsent.empty() ? POLLIN : POLLIN | POLLOUT;
      waited.push_back({connection.peer.socket.get(), events, 0});
    }
    ::poll(waited.data(), waited.size(), poll_milliseconds(until));
    uint64_t count = 0;
    [[maybe_unused]] const ssize_t drained = ::read(wake_.get(), &count, sizeof(count));
  }

  // Passes on what the user of the channel has to say. False when the channel is to end.
  bool speak() {
    std::optional<std::string> own;
    std::string own_failure;
    {
      const std::lock_guard lock(mutex_);
      own = std::exchange(own_, std::nullopt);
      own_failure = std::exchange(own_failure_, "");
      if (own_failure.empty() && !own && is_leaving_) return false;
    }
    if (!own_failure.empty()) {
      declare(fmt::format("{}: {}", own_name(), own_failure), true);
    } else if (own && is_hub()) {
      collect(0, std::move(*own));
    } else if (own && connections_.at(0).has_left) {
      lose(0, "it has ended, and others still wait for it");
    } else if (own) {
      send_to_all(encode(FrameKind::gather, *own));
    }
    return true;
  }

  void receive(int rank, Connection& connection) {
    if (!connection.peer.socket) return;
    const auto state = connection.peer.reader.read(connection.peer.socket);
    while (const std::optional<Frame> frame = connection.peer.reader.take()) {
      connection.heard = Clock::now();
      hear(rank, connection, *frame);
    }
    if (state == FrameReader::State::open && !connection.peer.reader.is_malformed()) return;
    connection.peer.socket.close();
    connection.unsent.clear();
    if (connection.has_left) return;
    lose(rank, state == FrameReader::State::closed ? "its connection ended, as it does when a process dies"
                                                   : "it sent what no process of this run sends");
  }

  void hear(int rank, Connection& connection, const Frame& frame) {
    switch (frame.kind) {
      case FrameKind::heartbeat:
        return;
      case FrameKind::goodbye:
        connection.has_left = true;
        return note_who_left(rank);
      case FrameKind::failure:
        connection.has_left = true;
        return declare(frame.payload, is_hub());
      case FrameKind::gather:
        if (is_hub()) return collect(rank, frame.payload);
        break;
      case FrameKind::gathered:
        if (!is_hub()) return distribute(frame.payload);
        break;
      default:
        break;
    }
    lose(rank, "it sent what no process of this run sends");
  }

  // Process 0: takes the part of one process; sends all parts once they are there.
  void collect(int rank, std::string bytes) {
    if (!parts_.emplace(rank, std::move(bytes)).second)
      return lose(rank, "it is a collective call ahead of the others");
    for (const auto& [other, connection] : connections_) {
      if (connection.has_left && !parts_.contains(other))
        return lose(other, "it has ended, and others still wait for it");
    }
    if (static_cast<int>(parts_.size()) < world_size_) return;
    PayloadWriter payload;
    for (const auto& [other, part] : parts_) payload.add(part);
    parts_.clear();
    send_to_all(encode(FrameKind::gathered, payload.bytes()));
    distribute(payload.bytes());
  }

  void distribute(std::string_view bytes) {
    PayloadReader payload(bytes);
    std::vector<std::string> all;
    for (int rank = 0; rank < world_size_; ++rank) {
      std::optional<std::string> part = payload.text();
      if (!part) return lose(0, "it sent what no process of this run sends");
      all.push_back(std::move(*part));
    }
    const std::lock_guard lock(mutex_);
    gathered_ = std::move(all);
    changed_.notify_all();
  }

  // A process that has ended, while others wait for it, is as good as lost.
  void note_who_left(int rank) {
    if (is_hub() ? !parts_.empty() && !parts_.contains(rank) : is_waiting()) {
      lose(rank, "it has ended, and others still wait for it");
    }
  }
  bool is_waiting() const {
    const std::lock_guard lock(mutex_);
    return is_gathering_ && !gathered_;
  }

  void note_silence() {
    const auto now = Clock::now();
    for (auto& [rank, connection] : connections_) {
      if (!connection.peer.socket || connection.has_left || now - connection.heard < options_.silence) continue;
      connection.peer.socket.close();
      lose(rank, fmt::format("nothing was heard of it for {:g} s: it is stopped, or the network to it is cut",
                             std::chrono::duration<double>(options_.silence).count()));
    }
  }
  void hear_all_again(Clock::time_point now) {
    for (auto& [rank, connection] : connections_) connection.heard = now;
  }

  void lose(int rank, const std::string& how) {
    connections_.at(rank).has_left = true;
    declare(fmt::format("{} is lost: {}", name_of(rank), how), is_hub());
  }

  // The first failure counts. `is_to_be_told`: whether the others do not know.
  void declare(const std::string& failure, bool is_to_be_told) {
    {
      const std::lock_guard lock(mutex_);
      if (!failure_.empty()) return;
      failure_ = failure;
      expiry_ = std::thread([this] { expire_after_grace(); });
    }
    changed_.notify_all();
    if (is_to_be_told) {
      send_to_all(encode(FrameKind::failure, failure));
      for (auto& [rank, connection] : connections_) send_some(connection);
    }
    options_.on_failure();
  }

  void expire_after_grace() {
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, options_.grace, [&] { return is_over_; })) return;
    const std::string failure = failure_;
    lock.unlock();
    options_.expire(failure);
  }

  void send_to_all(const std::string& bytes) {
    for (auto& [rank, connection] : connections_) {
      if (connection.peer.socket) connection.unsent += bytes;
    }
  }

  // What the other end does not take now waits. That it is gone is noticed when reading.
  void send_some(Connection& connection) {
    while (connection.peer.socket && !connection.unsent.empty()) {
      const ssize_t sent =
          ::send(connection.peer.socket.get(), connection.unsent.data(), connection.unsent.size(), MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) return;
      connection.unsent.erase(0, static_cast<size_t>(sent));
    }
  }

  // Sends what is left and a goodbye, and waits until the others have closed: a connection that is closed with
  // something unread in it would lose what is on its way to the other end.
  void take_leave() {
    const auto deadline = Clock::now() + kFarewell;
    if (failure().empty()) send_to_all(encode(FrameKind::goodbye));
    for (auto& [rank, connection] : connections_) connection.has_left = true;
    const auto is_open = [](const auto& entry) { return static_cast<bool>(entry.second.peer.socket); };
    while (Clock::now() < deadline && std::any_of(connections_.begin(), connections_.end(), is_open)) {
      for (auto& [rank, connection] : connections_) {
        if (!connection.peer.socket) continue;
        send_some(connection);
        if (connection.unsent.empty()) ::shutdown(connection.peer.socket.get(), SHUT_WR);
        receive(rank, connection);
      }
      wait(std::min(deadline, Clock::now() + std::chrono::milliseconds(100)));
    }
  }

  ControlChannelOptions options_;
  const int rank_, world_size_;
  std::map<int, Connection> connections_;
  std::map<int, std::string> parts_;  // of the collective call under way, at process 0
  Descriptor wake_{::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
  std::thread thread_;

  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::optional<std::string> own_;                    // given to all_gather(), not yet taken by the thread
  std::optional<std::vector<std::string>> gathered_;  // its result
  bool is_gathering_ = false;                         // all_gather() waits
  std::string failure_, own_failure_;
  bool is_leaving_ = false, is_over_ = false;
  std::thread expiry_;
};

ControlChannel::ControlChannel(Meeting meeting, ControlChannelOptions options)
    : watcher_(std::make_unique<Watcher>(std::move(meeting), std::move(options))),
      exceptions_(std::uncaught_exceptions()) {}

ControlChannel::~ControlChannel() { watcher_->end(std::uncaught_exceptions() > exceptions_); }

int ControlChannel::rank() const { return watcher_->rank(); }
int ControlChannel::world_size() const { return watcher_->world_size(); }
std::vector<std::string> ControlChannel::all_gather(std::string_view bytes) { return watcher_->all_gather(bytes); }
void ControlChannel::fail(std::string_view reason) noexcept { watcher_->fail(reason); }
std::string ControlChannel::failure() const { return watcher_->failure(); }
void ControlChannel::check(Clock::duration time) const { watcher_->check(time); }

}  // namespace heddle
