// What the processes of a run say to each other on their hosts while GPUs do the rest, and how they notice that one of
// them is gone. docs/launching.md#failures
//
// Every process is connected to process 0, which passes everything on. A thread of its own does all the talking: every
// two seconds a sign of life, and what all_gather() is given. A process is lost when its connection ends, or when
// nothing is heard of it for 20 seconds, which is also what a cut cable and a stopped process look like. Process 0
// tells all others who was lost; a process that loses process 0 has lost the run.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/distributed/rendezvous.h"

namespace heddle {

struct ControlChannelOptions {
  Clock::duration heartbeat = std::chrono::seconds(2);
  Clock::duration silence = std::chrono::seconds(20);
  // From a loss until `expire` is called, unless the channel is gone before: the time that the process has to notice
  // the loss by itself.
  Clock::duration grace = std::chrono::seconds(6);
  // Called once, on a thread of the channel, when another process is lost, to end what waits for it.
  std::function<void()> on_failure = [] {};
  // Called about every half second on a thread of the channel. What it returns, if anything, is a failure of this
  // process that the others are told of.
  std::function<std::string()> watch = [] { return std::string(); };
  // Called on a thread of the channel when the grace is over. By default it prints the failure and ends the process.
  std::function<void(const std::string& failure)> expire;
};

// Calls may come from one thread at a time; fail() and failure() from any.
class ControlChannel {
 public:
  explicit ControlChannel(Meeting meeting, ControlChannelOptions options = {});
  // Says goodbye, which is no loss for the others as long as they wait for nothing; when an exception is on its way,
  // that this process ends. Waits at most two seconds for the others to hear it.
  ~ControlChannel();
  ControlChannel(const ControlChannel&) = delete;
  ControlChannel& operator=(const ControlChannel&) = delete;

  int rank() const;
  int world_size() const;

  // The bytes of all processes, by rank; all processes call it in the same order. At most 64 MiB together. Throws Error
  // that says who was lost, and waits for as long as nobody is.
  std::vector<std::string> all_gather(std::string_view bytes);

  // Tells all others that this process cannot go on, and why.
  void fail(std::string_view reason) noexcept;
  // Who was lost and how; empty as long as nobody is.
  std::string failure() const;
  // Throws Error when somebody is lost, or will be within the time given.
  void check(Clock::duration time = {}) const;

 private:
  class Watcher;
  std::unique_ptr<Watcher> watcher_;
  int exceptions_;  // on their way when this was made
};

}  // namespace heddle
