// Event files of TensorBoard, byte by byte. tests/trainers/tensorboard_logger_test.cc has TensorBoard read one.
#include "core/io/event_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/runtime/error.h"
#include "tests/temp_folder.h"

namespace heddle {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::StartsWith;

uint64_t number_of(std::string_view bytes) {
  uint64_t number = 0;
  for (size_t i = bytes.size(); i-- > 0;) number = number << 8 | static_cast<uint8_t>(bytes[i]);
  return number;
}

// CRC-32C bit by bit, as RFC 3720 defines it.
uint32_t slow_crc(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFF;
  for (const char byte : bytes) {
    crc ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) * 0x82F63B78);
  }
  return crc ^ 0xFFFFFFFF;
}

uint64_t masked(uint32_t crc) { return static_cast<uint32_t>((crc >> 15 | crc << 17) + 0xA282EAD8); }

// The messages of a file whose frames are whole.
std::vector<std::string> messages_of(const fs::path& path) {
  const std::string file = read_file(path);
  std::vector<std::string> messages;
  for (size_t at = 0; at < file.size();) {
    const std::string length = file.substr(at, 8);
    EXPECT_EQ(number_of(file.substr(at + 8, 4)), masked(slow_crc(length)));
    const std::string message = file.substr(at + 12, number_of(length));
    EXPECT_EQ(number_of(file.substr(at + 12 + message.size(), 4)), masked(slow_crc(message)));
    messages.push_back(message);
    at += 16 + message.size();
  }
  return messages;
}

std::string text(std::string_view literal) { return std::string(literal); }

TEST(EventFileTest, ChecksumsAreThoseOfTheStandard) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);  // RFC 3720, B.4
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
}

TEST(EventFileTest, RecordsHoldTheFieldsOfTheMessages) {
  const testing::TempFolder folder;
  EventFile file(folder.path(), 1.0);
  file.start(1.0, 300);
  file.scalars(1.0, 300, std::vector<EventScalar>{{"a", 1.5}, {"b/c", -2.0}});
  file.text(1.0, 2, "t", "hi");
  EXPECT_FALSE(fs::exists(file.path()));
  file.write();
  EXPECT_THAT(file.path().filename().string(), StartsWith("events.out.tfevents.0000000001."));
  const std::string time = text({"\x09\0\0\0\0\0\0\xF0\x3F", 9});  // field 1, a double
  EXPECT_THAT(messages_of(file.path()),
              ElementsAre(time + "\x1A\x0D" + "brain.Event:2",         // field 3, text
                          time + "\x10\xAC\x02" + "\x3A\x02\x08\x01",  // step 300; session_log with status START
                          time + "\x10\xAC\x02" + "\x2A\x16" +         // summary with two values
                              "\x0A\x08\x0A\x01" + "a" + text({"\x15\0\0\xC0\x3F", 5}) +  // tag, float
                              "\x0A\x0A\x0A\x03" + "b/c" + text({"\x15\0\0\0\xC0", 5}),
                          time + "\x10\x02" + "\x2A\x19\x0A\x17" + "\x0A\x01" + "t" + "\x42\x08" +
                              text({"\x08\x07\x12\0\x42\x02", 6}) + "hi" +  // tensor of strings
                              "\x4A\x08\x0A\x06\x0A\x04" + "text"));        // metadata
}

TEST(EventFileTest, FilesOfOneFolderHaveNamesOfTheirOwn) {
  const testing::TempFolder folder;
  EventFile first(folder.path(), 1.75e9);
  first.write();
  EventFile second(folder.path(), 1.75e9);
  second.write();
  second.write();
  EXPECT_NE(first.path(), second.path());
  EXPECT_EQ(messages_of(second.path()).size(), 1u);
  EXPECT_THROW(EventFile(folder / "none", 1.0).write(), Error);
}

// TensorBoard reads the files of a folder in this order, and takes away what was told before of the steps that begin
// anew.
TEST(EventFileTest, ANewFileComesAfterTheOthers) {
  const testing::TempFolder folder;
  const auto add = [&](double time) {
    EventFile file(folder.path(), time);
    file.write();
    return file.path().filename().string();
  };
  write_file(folder / "events.out.tfevents.1750000000.host.99999999.0", "of a process with a larger number");
  write_file(folder / "events.out.tfevents.9999999999.host.1.0", "after which there is none");
  write_file(folder / "events.out.tfevents.x", "of another program");
  EXPECT_THAT(add(1.75e9), StartsWith("events.out.tfevents.1750000001."));
  EXPECT_THAT(add(1.7e9), StartsWith("events.out.tfevents.1750000002.")) << "the clock was set back";
  EXPECT_THAT(add(1.76e9), StartsWith("events.out.tfevents.1760000000."));
}

}  // namespace
}  // namespace heddle
