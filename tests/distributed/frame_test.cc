// Messages in a stream of bytes, whole, in pieces, and wrong.
#include "core/distributed/frame.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <optional>
#include <string>

#include "core/distributed/socket.h"

namespace heddle {
namespace {

using State = FrameReader::State;

// Two ends of a connection.
struct Connection {
  Connection() {
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
    here = Descriptor(ends[0]);
    there = Descriptor(ends[1]);
  }
  void send(const std::string& bytes) const { EXPECT_TRUE(send_all(there, bytes, Clock::now())); }

  Descriptor here, there;
};

// How a reader of payloads of at most 100 bytes finds a connection on which these bytes come.
State state_after(const std::string& bytes) {
  const Connection connection;
  connection.send(bytes);
  FrameReader reader(100);
  return reader.read(connection.here);
}

TEST(FrameTest, ArrivesInPieces) {
  Connection connection;
  FrameReader reader(100);
  const std::string bytes = encode(FrameKind::gather, "some text") + encode(FrameKind::heartbeat) +
                            encode(FrameKind::failure, std::string(100, 'x'));
  std::string found;
  for (const char c : bytes) {
    connection.send({c});
    ASSERT_EQ(reader.read(connection.here), State::open);
    while (const std::optional<Frame> frame = reader.take()) {
      found += std::to_string(static_cast<int>(frame->kind)) + frame->payload + " ";
    }
  }
  EXPECT_EQ(found, "6some text 5 9" + std::string(100, 'x') + " ");
  connection.there.close();
  EXPECT_EQ(reader.read(connection.here), State::closed);
}

TEST(FrameTest, WhatCameBeforeTheEndCanBeTaken) {
  Connection connection;
  FrameReader reader(100);
  connection.send(encode(FrameKind::goodbye));
  connection.there.close();
  EXPECT_EQ(reader.read(connection.here), State::closed);
  const std::optional<Frame> frame = reader.take();
  ASSERT_TRUE(frame.has_value());
  EXPECT_EQ(frame->kind, FrameKind::goodbye);
}

// Before it is whole, and before there is room for what it announces.
TEST(FrameTest, WhatIsNoneIsFoundOutAtOnce) {
  const std::string right = encode(FrameKind::gather, std::string(100, 'x'));
  EXPECT_EQ(state_after(right.substr(0, 12)), State::open);
  EXPECT_EQ(state_after(right.substr(0, 1)), State::open);
  EXPECT_EQ(state_after("X"), State::malformed);
  EXPECT_EQ(state_after("X" + right.substr(1)), State::malformed);
  EXPECT_EQ(state_after(right.substr(0, 3) + "X" + right.substr(4)), State::malformed);
  EXPECT_EQ(state_after(encode(FrameKind::gather, std::string(101, 'x')).substr(0, 12)), State::malformed);
  for (const char kind : {'\0', '\x0a', '\xff'}) {
    EXPECT_EQ(state_after(right.substr(0, 4) + kind + right.substr(5)), State::malformed) << static_cast<int>(kind);
  }
}

TEST(FrameTest, WhatFollowsAFrameIsLookedAt) {
  Connection connection;
  FrameReader reader(100);
  connection.send(encode(FrameKind::heartbeat) + "GET /");
  EXPECT_EQ(reader.read(connection.here), State::open);
  EXPECT_TRUE(reader.take().has_value());
  EXPECT_TRUE(reader.is_malformed());
  EXPECT_FALSE(reader.take().has_value());
}

TEST(PayloadTest, ReadsWhatWasWritten) {
  PayloadWriter writer;
  writer.add(7).add("text").add("").add(0xffffffff);
  PayloadReader reader(writer.bytes());
  EXPECT_EQ(reader.number(), 7u);
  EXPECT_EQ(reader.text(), "text");
  EXPECT_EQ(reader.text(), "");
  EXPECT_FALSE(reader.at_end());
  EXPECT_EQ(reader.number(), 0xffffffffu);
  EXPECT_TRUE(reader.at_end());
  EXPECT_EQ(reader.number(), std::nullopt);
  EXPECT_EQ(reader.text(), std::nullopt);
}

TEST(PayloadTest, ATextIsNoLongerThanWhatIsThere) {
  PayloadWriter writer;
  writer.add(5);
  EXPECT_EQ(PayloadReader(writer.bytes() + "four").text(), std::nullopt);
  EXPECT_EQ(PayloadReader(writer.bytes() + "fives").text(), "fives");
}

}  // namespace
}  // namespace heddle
