// How the processes of a run find each other over TCP before they have anything else.      docs/launching.md#rendezvous
//
// Process 0 listens at the master's address, and at no other, until all others have come: each connects, says hello and
// keeps its connection, which serves a ControlChannel from then on. A hello is
//
//   version | world size | rank | process id | token | host's name
//
// and is accepted when it shows the token of the run (compared in constant time). What is not such a hello, has another
// token, or does not come whole within some seconds is dropped without an answer, and keeps nobody from coming: one
// loop serves all connections, and what one of them may send before it is known is bounded. With the right token, a
// rank that is already there or another world size is refused with a reason.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "core/distributed/frame.h"
#include "core/distributed/launch.h"
#include "core/distributed/socket.h"
#include "core/runtime/error.h"

namespace heddle {

struct RendezvousOptions {
  Clock::duration limit = std::chrono::minutes(5);     // until all are there
  Clock::duration greeting = std::chrono::seconds(5);  // from a connection to its hello
  // Asked several times a second; true ends the wait with RendezvousStopped.
  std::function<bool()> stop_requested = [] { return false; };
  // Is told, once, what is waited for when it takes long.
  std::function<void(const std::string& line)> note = [](const std::string&) {};
};

// The user wants the process to end.
class RendezvousStopped : public Error {
 public:
  RendezvousStopped() : Error("stopped before all processes had come") {}
};

// A connection to another process, and who that is.
struct Peer {
  Descriptor socket;
  FrameReader reader{0};
  std::string host;
  int pid = 0;
};

// Rank 0 has all others as peers, each of these has rank 0.
struct Meeting {
  int rank = 0, world_size = 1;
  std::map<int, Peer> peers;
};

// Returns when all processes of the run are there; `launch` says which this one is, where they meet, and their token.
// Throws Error: at rank 0, when the time is over, with the ranks that have not come (and the others throw the same); at
// others, when rank 0 cannot be reached within the time, or refuses them.
Meeting meet(const Launch& launch, const RendezvousOptions& options = {});

// "0, 2-5, 7" for ascending ranks.
std::string list_ranks(const std::vector<int>& ranks);

}  // namespace heddle
